"""Servers that a stage talks to: S3, MLflow, the Hugging Face hub; and whether their clocks agree with ours."""

import os
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from cloc import tracking
from cloc.data.s3 import S3Storage
from cloc.data.storage_check import check_storage
from cloc.errors import ConfigError, DataError
from cloc.training.doctor.registry import MODEL_ROLES, Skip, Subject, Warn, check

CLOCK_LIMIT_S = 5 * 60
_TIMEOUT_S = 5.0


@check("S3")
def s3(subject: Subject) -> str:
    """Every prefix's server answers, knows us, and has the bucket."""
    if not subject.urls:
        raise Skip("nothing lies on S3")
    for url in subject.urls:
        storage = S3Storage(url)
        next(storage.walk("cloc-doctor"), None)
        if storage.clock_difference_s is not None:
            subject.clocks[storage.endpoint] = storage.clock_difference_s
    return f"{', '.join(subject.urls)} at {storage.endpoint}"


@check("storage", "train")
def storage(subject: Subject) -> str:
    """Where the run writes, everything that cloc asks of a storage works."""
    where = subject.config.train.storage
    if not where:
        raise Skip("train.storage is not set: the output folder is taken")
    report = check_storage(where, quick=True)
    if report.failure:
        raise DataError(f"train.storage: {report.failure.name}: {report.failure.detail}")
    speed = next((item.detail for item in report.checks if item.name == "throughput"), "")
    return f"{report.url}: {speed}"


@check("MLflow")
def mlflow(subject: Subject) -> str:
    """The tracking server answers, or its file can be written."""
    uri = tracking.tracking_uri(subject.config.tracking)
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return _ask_mlflow(subject, uri.rstrip("/"))
    if scheme != "sqlite":
        raise Skip(f"{uri.split('@')[-1]}: no server to ask, and no SQLite file")
    path = Path(uri.removeprefix("sqlite:///")).absolute()
    place = path if path.exists() else next(item for item in path.parents if item.exists())
    if not os.access(place, os.W_OK):
        raise ConfigError(f"MLflow's {path}: this user may not write {place}; set tracking.uri or MLFLOW_TRACKING_URI")
    if subject.role == "train" and not subject.local:
        raise Warn(f"{uri} is a file of this machine: ranks elsewhere cannot log into it; give a server (tracking.uri)")
    return str(path)


def _ask_mlflow(subject: Subject, uri: str) -> str:
    status, headers = _get(f"{uri}/health", what="MLflow", setting="tracking.uri or MLFLOW_TRACKING_URI")
    if status in (401, 403):
        raise ConfigError(
            f"MLflow at {uri} answers {status}: set MLFLOW_TRACKING_USERNAME and _PASSWORD, or let the server allow "
            "this host's name (--allowed-hosts)"
        )
    if status != 200:
        raise ConfigError(f"MLflow at {uri} answers {status} to /health; correct tracking.uri or MLFLOW_TRACKING_URI")
    if headers.get("Date"):
        there = parsedate_to_datetime(headers["Date"])
        subject.clocks[uri] = (there - datetime.now(UTC)).total_seconds()
    return uri


def _get(url: str, *, what: str, setting: str) -> tuple[int, dict[str, str]]:
    try:
        timeout = urllib3.Timeout(_TIMEOUT_S)
        answer = urllib3.PoolManager().request("GET", url, timeout=timeout, retries=False, preload_content=False)
    except HTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{what} at {url} cannot be reached ({reason}); start it, or correct {setting}") from None
    answer.release_conn()
    return answer.status, dict(answer.headers)


@check("clock")
def clock(subject: Subject) -> str:
    """This machine's time is the servers'."""
    if not subject.clocks:
        raise Skip("no server told its time")
    for server, seconds in subject.clocks.items():
        if abs(seconds) > CLOCK_LIMIT_S:
            raise ConfigError(
                f"the clock of {server} is {abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'} this "
                "machine's: set the clocks (NTP); S3 refuses requests that seem old"
            )
    worst = max(subject.clocks.values(), key=abs)
    return f"{worst:+.0f} s at most, {time.strftime('%H:%M:%S UTC', time.gmtime())}"


@check("checkpoints", *MODEL_ROLES)
def checkpoints(subject: Subject) -> str:
    """Models and tokenizers that the settings name are here, or their hub can be reached."""
    named = _named(subject)
    if not named:
        raise Skip("the settings name none")
    places = [f"{name} ({_place(name, setting=setting)})" for setting, name in named.items()]
    return ", ".join(places)


def _named(subject: Subject) -> dict[str, str]:
    """Hub ids and folders, by their setting."""
    config = subject.config
    found: dict[str, str] = {}
    if subject.role == "train":
        found = {"model.init_from": config.model.init_from, "model.text.tokenizer": config.model.text.tokenizer}
    elif subject.role == "label":
        if config.captioning.backend == "transformers":
            found["captioning.model"] = config.captioning.model
        if config.grounding.backend == "transformers":
            found["grounding.model"] = config.grounding.model
    elif subject.role == "mllm":
        found = {"adapter.language_model": config.adapter.language_model}
    return {setting: name for setting, name in found.items() if name}


def _place(name: str, *, setting: str) -> str:
    """Where a checkpoint is. Raises ConfigError where it is nowhere."""
    from huggingface_hub import constants, try_to_load_from_cache

    wanted = "tokenizer_config.json" if setting.endswith("tokenizer") else "config.json"
    folder = Path(name)
    if folder.is_dir():
        if not any((folder / each).is_file() for each in (wanted, "tokenizer.json")):
            raise ConfigError(f"{setting}: the folder {name} has no {wanted}")
        return "a folder"
    if name.startswith((".", "/")) or name.count("/") != 1:
        raise ConfigError(f"{setting}: there is no folder {name}, and it is no hub id (owner/name)")
    if isinstance(try_to_load_from_cache(name, wanted), str):
        return "in the cache"
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"{setting}: {name} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it")
    url = f"{constants.ENDPOINT}/{name}/resolve/main/{wanted}"
    status, _ = _get(url, what=f"{setting}: {name} is not in the cache, and the hub", setting="HF_ENDPOINT")
    if status >= 400:
        raise ConfigError(f"{setting}: the hub answers {status} for {name}; correct the name, or set HF_TOKEN")
    return "on the hub"
