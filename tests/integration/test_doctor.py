"""`cloc doctor`: nothing fails on a good set-up, and of each planted fault exactly the check that is about it."""

import json
import resource
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement

from cloc.cli import cloc
from cloc.config import apply_overrides, dump, parse
from cloc.data.checks import Outcome
from cloc.data.dataset import Dataset
from cloc.errors import ClocError, ConfigError, DataError, TrainingError
from cloc.training.doctor import CHECKS, Finding, Subject, examine, failure, machine, preflight, software
from tests.conftest import write_dataset
from tests.integration.test_training import TINY
from tests.s3_server import free_port

QUICK = ("imports",)  # takes seconds, and is tried by a test of its own


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection that lacks nothing."""
    folder = tmp_path_factory.mktemp("doctor") / "data"
    for split, images in (("train", 24), ("val", 8), ("test", 8)):
        write_dataset(folder / split, images)
    return folder


class Bench:
    """A set-up that is good, to be spoilt.

    Attributes:
        folder: its own.
        data: a copy of the collection.
        settings: overrides of TINY's settings.
        options: of the subject.
    """

    def __init__(self, folder: Path, made: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.data, self.patch = folder, folder / "data", patch
        shutil.copytree(made, self.data)
        self.settings = ["train.processes=1", "train.device=auto", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
        self.options: dict[str, Any] = {"out": str(folder / "out")}

    def subject(self) -> Subject:
        config = parse(apply_overrides(TINY, self.settings), source="test")
        return Subject(config, **{"data": str(self.data), **self.options})

    def kubernetes(self, url: str, **more: str) -> None:
        """Settings for a cluster at that URL."""
        cluster = {"name": "c", "cluster": {"server": url}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        body = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {"token": "t"}}]}
        path = self.folder / "kubeconfig"
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "x", **body}))
        self.patch.setenv("KUBECONFIG", str(path))
        self.settings += ["train.scheduler=kubernetes", f"train.storage={self.folder}/runs"]
        self.settings += ["train.kubernetes.image=registry/cloc:1", "tracking.uri=http://127.0.0.1:1"]
        self.settings += ["train.kubernetes.queue=gpu", "train.kubernetes.secrets=[s3]", "train.kubernetes.shm_mib=64"]
        self.settings += [f"train.kubernetes.{name}={value}" for name, value in more.items()]


@pytest.fixture
def bench(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, made, monkeypatch)


def found(subject: Subject, *, skip: tuple[str, ...] = QUICK) -> dict[str, Finding]:
    return {finding.check.name: finding for finding in examine(subject, skip=skip)}


def by(findings: dict[str, Finding], outcome: Outcome) -> set[str]:
    return {name for name, finding in findings.items() if finding.check.outcome is outcome}


@contextmanager
def answering(answers: dict[str, tuple[int, str]], *, ahead: float = 0.0) -> Iterator[str]:
    """A server with these answers by path (404 elsewhere), whose clock is some seconds ahead."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path.partition("?")[0], (404, json.dumps({"reason": "NotFound"})))
            self.send_response_only(status)
            self.send_header("Date", format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


CLUSTER = {
    "/version/": (
        200,
        json.dumps(
            {
                "major": "1",
                "minor": "31",
                "gitVersion": "v1.31.0",
                "gitCommit": "",
                "platform": "",
                "gitTreeState": "",
                "buildDate": "",
                "goVersion": "",
                "compiler": "",
            }
        ),
    ),
    "/api/v1/namespaces/default": (200, json.dumps({"kind": "Namespace", "metadata": {"name": "default"}})),
    "/apis/scheduling.volcano.sh/v1beta1/queues/gpu": (200, json.dumps({"status": {"state": "Open"}})),
    "/api/v1/namespaces/default/secrets/s3": (200, json.dumps({"kind": "Secret", "metadata": {"name": "s3"}})),
}


def test_a_good_set_up_passes(bench: Bench) -> None:
    findings = found(bench.subject())
    assert not by(findings, Outcome.FAILED), [finding.check.line for finding in findings.values()]
    assert {"libraries", "batch", "data set", "captions", "disk", "memory", "port", "MLflow"} <= by(
        findings, Outcome.PASSED
    )
    assert {"S3", "clock", "Kubernetes", "queue", "held-out split"} <= by(findings, Outcome.SKIPPED)
    assert all(finding.check.detail for finding in findings.values()), "each says what it found, or why it was skipped"
    assert sorted(path.name for path in bench.folder.iterdir()) == ["data"], "it leaves nothing behind"


def _library(bench: Bench) -> None:
    real = metadata.version
    bench.patch.setattr(metadata, "version", lambda name: "1.0" if name == "torch" else real(name))


def _truncated(bench: Bench) -> None:
    tar = bench.data / "train/images/00000.tar"
    tar.write_bytes(tar.read_bytes()[:100])


def _other_table(bench: Bench) -> None:
    shutil.copy(bench.data / "train/captions/00005.parquet", bench.data / "train/regions/00005.parquet")


def _full(where: str) -> Callable[[Bench], None]:
    def plant(bench: Bench) -> None:
        real = shutil.disk_usage
        bench.settings.append("train.workers=1")

        def usage(path: Any) -> Any:
            return SimpleNamespace(free=1000) if (str(path) == machine.SHM) == (where == "shm") else real(path)

        bench.patch.setattr(shutil, "disk_usage", usage)

    return plant


def _no_memory(bench: Bench) -> None:
    bench.patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 << 20, total=100 << 20))


def _no_port(bench: Bench) -> None:
    def bind(self: socket.socket, address: Any) -> None:
        raise OSError(98, "Address already in use")

    bench.patch.setattr(socket, "socket", type("Socket", (socket.socket,), {"bind": bind}))


def _few_files(bench: Bench) -> None:
    bench.patch.setattr(resource, "getrlimit", lambda kind: (64, 128) if kind == resource.RLIMIT_NOFILE else (-1, -1))


def _dead_s3(bench: Bench) -> None:
    bench.options["out"] = "s3://bucket/out"
    bench.patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    bench.patch.setenv("CLOC_S3_PATIENCE", "0")


def _set(*overrides: str) -> Callable[[Bench], None]:
    return lambda bench: bench.settings.extend(overrides)


def _gone(path: str) -> Callable[[Bench], None]:
    return lambda bench: (bench.data / path).unlink()


def _file_in_the_way(bench: Bench) -> None:
    (bench.folder / "out").write_text("")
    bench.options["out"] = str(bench.folder / "out/model")


FAULTS: list[tuple[str, Callable[[Bench], Any], str, type[ClocError]]] = [
    ("libraries", _library, "torch 1.0 is not ==2.13.0: pip install 'cloc[train]'", ConfigError),
    (
        "batch",
        _set("train.processes=3"),
        "batch_size 8 is not divisible by 3 processes; set it to 9",
        ConfigError,
    ),
    ("streams", _set("train.streams=3"), "batch_size 8 is not divisible by 3 streams (train.streams)", ConfigError),
    (
        "image size",
        _set("train.resolutions=[{share: 0.5, image_size: 20}]"),
        "image_size 20 is not a multiple of the model's patch size",
        ConfigError,
    ),
    ("schedule", _set("train.keep_best=1"), "set train.evaluate_every", ConfigError),
    ("data set", _gone("train/manifest.json"), "neither a data set nor a collection with a split 'train'", DataError),
    ("data set", _truncated, "00000.tar", DataError),
    (
        "images",
        _set("train.batch_size=64"),
        "24 images are fewer than a batch of 64; lower train.batch_size",
        DataError,
    ),
    (
        "captions",
        _gone("train/captions/00005.parquet"),
        "there is no captions/00005.parquet; run `cloc caption`",
        DataError,
    ),
    ("captions", _gone("train/captions/00002.parquet"), "5 of 6 shards have a captions table", DataError),
    (
        "regions",
        _gone("train/regions/00000.parquet"),
        "there is no regions/00000.parquet; run `cloc ground`",
        DataError,
    ),
    ("regions", _other_table, "are not the contract's", DataError),
    ("held-out split", _set("train.evaluate_every=2", "train.evaluate_split=dev"), "has no split 'dev'", ConfigError),
    ("shared memory", _full("shm"), "/dev/shm has 0 MiB free, and workers and NCCL need 1", TrainingError),
    ("disk", _full("disk"), "3 checkpoints of", DataError),
    ("disk", _file_in_the_way, "is a file; choose another folder", DataError),
    ("memory", _no_memory, "a process needs about", TrainingError),
    ("GPUs", _set("train.device=cuda"), "train.device is cuda, and torch sees no GPU", TrainingError),
    ("port", _no_port, "no port of this machine can be bound (Address already in use)", TrainingError),
    ("open files", _few_files, "may open 64 files", TrainingError),
    ("S3", _dead_s3, "cannot reach http://127.0.0.1", DataError),
    ("storage", _set("train.storage=/dev/null/runs"), "train.storage: reach: /dev/null/runs", DataError),
    (
        "MLflow",
        _set("tracking.uri=http://127.0.0.1:1"),
        "MLflow at http://127.0.0.1:1/health cannot be reached",
        ConfigError,
    ),
    ("checkpoints", _set("model.text.tokenizer=./none"), "there is no folder ./none", ConfigError),
    ("checkpoints", _set("model.init_from=./none"), "there is no folder ./none", ConfigError),
]


@pytest.mark.parametrize(
    ("name", "plant", "message", "kind"), FAULTS, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(FAULTS)]
)
def test_a_planted_fault_is_found_and_no_other(
    name: str, plant: Callable[[Bench], Any], message: str, kind: type[ClocError], bench: Bench
) -> None:
    if name == "GPUs":
        bench.patch.setattr("torch.cuda.is_available", lambda: False)
    plant(bench)
    findings = found(bench.subject())
    assert by(findings, Outcome.FAILED) == {name}, [finding.check.line for finding in findings.values()]
    assert message in findings[name].check.detail
    error = failure(findings.values())
    assert isinstance(error, kind)
    assert str(error).startswith(f"doctor: 1 check failed: {name}: ")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("micro-batch", ["train.micro_batch=3"], "does not divide a process's 8 images"),
        ("micro-batch", ["train.micro_batch=8"], "no effect"),
        ("shards", ["train.workers=7"], "6 shards are fewer than 7 readers"),
        ("images", ["train.steps=5000"], "show each of 24 images"),
        ("processor cores", ["train.workers=5000"], "5000 workers each share"),
        ("schedule", ["train.warmup_steps=6"], "reach the end"),
        ("schedule", ["train.checkpoint_every=1000"], "begins anew"),
    ],
)
def test_what_only_warns(name: str, overrides: list[str], message: str, bench: Bench) -> None:
    bench.settings += overrides
    findings = found(bench.subject(), skip=(*QUICK, "open files", "shared memory"))
    assert name in by(findings, Outcome.WARNED)
    assert message in findings[name].check.detail
    assert not by(findings, Outcome.FAILED)


def test_a_library_that_cannot_be_imported(bench: Bench) -> None:
    """In a package that is installed as far as its metadata tell."""
    (bench.folder / "brokenlib-1.0.dist-info").mkdir()
    (bench.folder / "brokenlib-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: brokenlib\nVersion: 1.0\n"
    )
    (bench.folder / "brokenlib.py").write_text("raise ImportError('operator does not exist')\n")
    bench.patch.syspath_prepend(str(bench.folder))
    bench.patch.setenv("PYTHONPATH", str(bench.folder))
    wanted = [Requirement("click"), Requirement("brokenlib; extra == 'train'")]
    bench.patch.setattr(software, "_wanted", lambda role: wanted)
    findings = found(bench.subject(), skip=())
    assert by(findings, Outcome.FAILED) == {"imports"}
    assert "brokenlib cannot be imported: ImportError: operator does not exist" in findings["imports"].check.detail
    (bench.folder / "brokenlib.py").write_text("")
    assert "imports" in by(found(bench.subject(), skip=()), Outcome.PASSED)


def test_a_clock_that_is_wrong(bench: Bench) -> None:
    with answering({"/health": (200, "OK")}, ahead=3600) as url:
        bench.settings.append(f"tracking.uri={url}")
        findings = found(bench.subject())
    assert by(findings, Outcome.FAILED) == {"clock"}
    assert "s ahead of this machine's" in findings["clock"].check.detail
    with answering({"/health": (200, "OK")}, ahead=60) as url:
        bench.settings.append(f"tracking.uri={url}")
        assert "clock" in by(found(bench.subject()), Outcome.PASSED)


@pytest.mark.parametrize(("status", "message"), [(403, "--allowed-hosts"), (500, "answers 500 to /health")])
def test_an_mlflow_that_refuses(status: int, message: str, bench: Bench) -> None:
    with answering({"/health": (status, "no")}) as url:
        bench.settings.append(f"tracking.uri={url}")
        findings = found(bench.subject())
    assert by(findings, Outcome.FAILED) == {"MLflow"}
    assert message in findings["MLflow"].check.detail


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("", {}, ""),
        ("Kubernetes", {"/version/": (401, "{}")}, "answers 401"),
        ("namespace", {"/api/v1/namespaces/default": (404, "{}")}, "no namespace 'default'"),
        ("queue", {"/apis/scheduling.volcano.sh/v1beta1/queues/gpu": (404, "{}")}, "no Volcano queue 'gpu'; install"),
        (
            "queue",
            {"/apis/scheduling.volcano.sh/v1beta1/queues/gpu": (200, json.dumps({"status": {"state": "Closed"}}))},
            "is Closed",
        ),
        ("secrets", {"/api/v1/namespaces/default/secrets/s3": (404, "{}")}, "no secret 's3'; create it"),
    ],
)
def test_a_cluster(name: str, changes: dict[str, tuple[int, str]], message: str, bench: Bench) -> None:
    with answering({**CLUSTER, **changes}) as url:
        bench.kubernetes(url)
        findings = found(bench.subject(), skip=(*QUICK, "MLflow"))
    assert by(findings, Outcome.FAILED) == ({name} if name else set())
    if name:
        assert message in findings[name].check.detail
    else:
        assert {"Kubernetes", "namespace", "queue", "image", "secrets", "shared memory"} <= by(findings, Outcome.PASSED)
        assert {"port", "GPUs", "memory"} <= by(findings, Outcome.SKIPPED), "these are of other machines"


def test_what_may_not_be_read_is_not_known(bench: Bench) -> None:
    with answering({**CLUSTER, "/api/v1/namespaces/default/secrets/s3": (403, "{}")}) as url:
        bench.kubernetes(url, image="registry/cloc", shm_mib="1")
        bench.settings.append("train.workers=40")
        findings = found(bench.subject(), skip=(*QUICK, "MLflow"))
    assert {"secrets", "image"} <= by(findings, Outcome.WARNED)
    assert by(findings, Outcome.FAILED) == {"shared memory"}
    assert "train.kubernetes.shm_mib has 1 MiB" in findings["shared memory"].check.detail
    bench.kubernetes(f"http://127.0.0.1:{free_port()}")
    findings = found(bench.subject(), skip=(*QUICK, "MLflow", "shared memory"))
    assert by(findings, Outcome.FAILED) == {"Kubernetes"}, "and what needs the cluster is skipped"


def test_roles(bench: Bench) -> None:
    bench.options["role"] = "evaluate"
    bench.settings.append("data.test_splits=[test, unseen]")
    findings = found(bench.subject())
    assert by(findings, Outcome.FAILED) == {"test splits"}
    assert "unseen" in findings["test splits"].check.detail
    assert not {"batch", "port", "Kubernetes"} & findings.keys()
    bench.options["role"] = "label"
    bench.settings += ["captioning.model=./nowhere", "grounding.backend=annotations"]
    findings = found(bench.subject())
    assert by(findings, Outcome.FAILED) == {"checkpoints"}
    assert "captioning.model: there is no folder ./nowhere" in findings["checkpoints"].check.detail
    bench.options["role"] = "baker"
    with pytest.raises(ConfigError, match="--role 'baker' is unknown; there are: train"):
        found(bench.subject())
    with pytest.raises(ConfigError, match="--skip 'none' is no check"):
        list(examine(Subject(bench.subject().config), skip=["none"]))


def test_preflight_raises_one_error(bench: Bench) -> None:
    subject = bench.subject()
    dataset = Dataset.open(bench.data / "train")
    preflight(subject.config, dataset, objective="cloc", out=subject.out)
    bench.settings += ["train.processes=3", "train.keep_best=1"]
    _few_files(bench)
    with pytest.raises(ConfigError) as caught:
        preflight(bench.subject().config, dataset, objective="cloc", out=subject.out)
    assert str(caught.value).startswith(
        "before the start: 3 checks failed: batch, schedule, open files; the first one: train.batch_size 8"
    )
    assert "\n" not in str(caught.value)
    cheap = {entry.name for entry in CHECKS if entry.cheap}
    assert not cheap & {"imports", "S3", "storage", "MLflow", "Kubernetes", "checkpoints"}, "no servers, no waiting"


def test_the_command(bench: Bench) -> None:
    (bench.folder / "params.yaml").write_text(dump(bench.subject().config))
    options = ["doctor", "--params", str(bench.folder / "params.yaml"), "--data", str(bench.data), "--skip", "imports"]
    result = CliRunner().invoke(cloc, [*options, "--out", str(bench.folder / "out")])
    assert result.exception is None, result.exception
    lines = result.stdout.splitlines()
    assert lines[-1].startswith("nothing would fail")
    assert {line[0] for line in lines[:-1]} <= {"✓", "!", "-"}
    assert lines[0].startswith("✓ libraries")
    spoilt = [*options, "-S", "train.batch_size=64", "-S", "train.streams=3"]
    result = CliRunner().invoke(cloc, [*spoilt, "--json"])
    assert isinstance(result.exception, ConfigError)
    report = json.loads(result.stdout)
    assert (report["ok"], report["reason"]) == (False, str(result.exception))
    assert [item["name"] for item in report["checks"] if item["outcome"] == "failed"] == ["streams", "images"]
    assert "2 checks failed: streams, images; the first one: " in report["reason"]
