"""The pipeline's parameters: a few settings under names in users' words, and the rest as `section.key=value`.

`params.yaml` stays the single source: each parameter is one of its settings, with the demo's value as default.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

from cloc.config import Config, apply_overrides, flatten, load_preset, parse
from cloc.data.dataset import Dataset, resolve_split
from cloc.data.storage import Storage
from cloc.errors import ConfigError, DataError
from cloc.labeling.settings import needed_teachers
from cloc.pipeline.sources import code_version
from cloc.stage import fingerprint
from cloc.stages import STAGES, stage_settings

BASE_PRESET = "demo"
OTHER = "other_settings"
_OUTSIDE = ("ingest", "duplicates", "attributes")  # the pipeline starts from data sets
# Parameter of the pipeline -> setting. The help texts stand in the pipeline's docstring.
PARAMETERS: Mapping[str, str] = {
    "demo_images": "data.scenes.train_images",
    "captioner": "captioning.backend",
    "captioning_model": "captioning.model",
    "region_finder": "grounding.backend",
    "detection_model": "grounding.model",
    "detection_threshold": "grounding.score_threshold",
    "min_caption_coverage": "validation.min_caption_coverage",
    "min_region_coverage": "validation.min_region_coverage",
    "start_from": "model.init_from",
    "training_steps": "train.steps",
    "batch_size": "train.batch_size",
    "learning_rate": "train.learning_rate",
    "region_weight": "loss.region_weight",
    "min_region_gain": "evaluation.min_region_gain",
    "max_image_loss": "evaluation.max_image_loss",
    "language_model": "adapter.language_model",
    "adapter_steps": "adapter.steps",
    "model_name": "tracking.model_name",
    "train_baselines": "pipeline.baselines",
    "tune_adapters": "pipeline.adapters",
    "labels_at": "pipeline.labels_at",
    "labelling_parts": "pipeline.label_parts",
}
SKIP, AT, PARTS, PART = "skip", "at", "parts", "part"
"""Fields of a task: why it does nothing; where its tables go instead of into its artifact; into how many parts its work
is divided at most; and which of them it is, "i/n"."""
BASELINE = "baseline"
"""The task that is no stage of its own: pre-training of plain CLIP."""
_NO_BASELINES = "the run was started without a plain CLIP to compare with (train_baselines)"
_NO_ADAPTERS = "the run was started without MLLM adapters (tune_adapters)"
_READ_THREADS = 16


def defaults() -> dict[str, Any]:
    """Default of every named parameter: the demo's setting."""
    values = flatten(load_preset(BASE_PRESET).model_dump(mode="json"))
    return {name: values[key] for name, key in PARAMETERS.items()}


def arguments(config: Config) -> dict[str, Any]:
    """The pipeline's arguments that make `resolve` give these settings again."""
    values = flatten(config.model_dump(mode="json"))
    base = flatten(load_preset(BASE_PRESET).model_dump(mode="json"))
    named = set(PARAMETERS.values())
    others = [f"{key}={json.dumps(value)}" for key, value in values.items() if key not in named and value != base[key]]
    return {**{name: values[key] for name, key in PARAMETERS.items()}, OTHER: others}


def resolve(values: Mapping[str, Any], others: Sequence[str]) -> Config:
    """The settings that a run was started with.

    Args:
        values: named parameters.
        others: `section.key=value` items, on top.

    Raises:
        ConfigError: a value is of the wrong type or range, or a setting is unknown.
    """
    tree = load_preset(BASE_PRESET).model_dump(mode="json")
    unknown = [name for name in values if name not in PARAMETERS]
    if unknown:
        raise ConfigError(f"the pipeline has no parameter {unknown[0]!r}; there are: {', '.join(PARAMETERS)}")
    for name, value in values.items():
        section, *path = PARAMETERS[name].split(".")
        node = tree[section]
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
    return parse(apply_overrides(tree, others), source="parameters of the pipeline")


def stage_parameters(config: Config, *, data: str = "") -> dict[str, str]:
    """What each task is given, as JSON, by the name of its stage: its own settings, the hash of its code, nothing else.

    KFP takes a task's result from its cache when its arguments and inputs are those of an earlier one. So a stage
    runs again when its own settings or its code changed, or what it reads, and only then. Data given from outside
    are named with a hash of their content.

    Raises:
        DataError: `data` lacks a split that the settings name.
    """
    names = [name for name in STAGES if name not in _OUTSIDE]
    settings = {name: stage_settings(name, config) for name in names}
    settings["teachers"]["teachers"]["fit"] = needed_teachers(config)
    if not config.pipeline.baselines:
        # There is nothing to hold the candidate against.
        settings["registration"]["evaluation"].update(min_region_gain=0.0, max_image_loss=1.0)
    tasks: dict[str, dict[str, Any]] = {
        name: {"settings": settings[name], "code": code_version(name)} for name in names
    }
    for name, place in _label_places(config, settings, data=data).items():
        tasks[name] |= {AT: place, PARTS: config.pipeline.label_parts}
    tasks[BASELINE] = tasks["pretraining"] | ({} if config.pipeline.baselines else {SKIP: _NO_BASELINES})
    if not config.pipeline.adapters:
        tasks["adapter_tuning"][SKIP] = _NO_ADAPTERS
    if data:
        given = {"location": data, "digest": data_digest(config, data)}
        tasks["scenes"] = {"settings": {}, "code": "", "data": given}
    return {name: json.dumps(task, sort_keys=True) for name, task in tasks.items()}


def _label_places(config: Config, settings: Mapping[str, Any], *, data: str) -> dict[str, str]:
    """Where each labelling stage keeps its tables, where that is not its artifact.

    A folder is named after the data and the settings that it is made from: no run finds those of another one, and the
    next one on grown data finds its own.
    """
    if not config.pipeline.labels_at:
        return {}
    root, made_from = config.pipeline.labels_at.rstrip("/"), [data or settings["scenes"], settings["teachers"]]
    places = {}
    for name in ("captioning", "grounding"):
        made_from.append(settings[name][name])
        places[name] = f"{root}/{name}-{fingerprint(made_from)}"
    return places


def data_digest(config: Config, data: str) -> str:
    """Hash of a collection: manifests (they hold the hashes of the tars) and label tables of the splits in use.

    Raises:
        DataError: a split is not there.
    """
    splits = dict.fromkeys((config.data.train_split, *config.data.test_splits))
    digests = [_split_digest(resolve_split(data, split)) for split in splits]
    if teachers := needed_teachers(config):
        try:
            digests.append(_split_digest(resolve_split(data, config.teachers.split)))
        except DataError as error:
            raise DataError(
                f"{error}; teachers ({', '.join(teachers)}) would be fitted on it: name a captioner and a detector "
                "(captioning.model, grounding.model), or take the data's own labels (backend annotations)"
            ) from None
    return fingerprint(digests)


def _split_digest(url: str) -> list[Any]:
    dataset = Dataset.open(url)
    tables = [path for folder in ("captions", "regions") for path in dataset.images.list(folder)]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        hashes = pool.map(lambda path: _hash(dataset.images, path), tables)
        return [dataset.manifest.to_json(), dict(zip(tables, hashes, strict=True))]


def _hash(storage: Storage, path: str) -> str:
    return sha256(storage.read_bytes(path)).hexdigest()
