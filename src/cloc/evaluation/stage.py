"""Stage: models side by side on the test splits, by every protocol, with a report.

The truth is what the splits say themselves (human captions, labelled human boxes), never what labelling wrote.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloc.config import Config
from cloc.data.storage import Storage, open_storage
from cloc.errors import ConfigError
from cloc.evaluation import region_recognition, report
from cloc.evaluation.cache import open_cache
from cloc.evaluation.class_scoring import classify
from cloc.evaluation.confusion import CONFUSION_FILE, square
from cloc.evaluation.features import Encoder, encode_split
from cloc.evaluation.leakage import measure
from cloc.evaluation.metrics import (
    ESTIMATES_FILE,
    METRICS_FILE,
    SplitResult,
    about_model,
    assemble,
    flatten,
    flatten_model,
    headline_names,
    pack_estimates,
)
from cloc.evaluation.models import load_models
from cloc.evaluation.recall import RECALL_FILE, by_iou
from cloc.evaluation.scoring import score_split
from cloc.evaluation.summary import best_row, brief
from cloc.evaluation.truth import Split, open_splits
from cloc.model.provenance import read_lineage
from cloc.stage import ModelResult, StageResult

STAGE = "evaluation"


@dataclass(frozen=True)
class Inputs:
    """What the stage reads.

    Attributes:
        data: a data set, or a collection with the splits `data.test_splits`; the first one is the headline.
        models: model folders by the names of their rows, in order.
    """

    data: str
    models: Mapping[str, str]


@dataclass(frozen=True)
class Outputs:
    """What the stage writes.

    Attributes:
        report: folder of `index.html`, `metrics.json`, `estimates.safetensors`, `confusion.json` of the
            candidate's best reader, `grounding_recall.json`, `summary.md`, tables and figures.
    """

    report: str


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Evaluates the models.

    Raises:
        ConfigError: a model folder is not one, or a reader is one of no model.
        DataError: a split is not there, broken, or has no truth to test against.
    """
    started, settings = time.monotonic(), config.evaluation
    splits = open_splits(inputs.data, config.data.test_splits)
    models = load_models(_rows(config, inputs), device=settings.device, readers=settings.readers)
    print(f"evaluation: {len(models)} models on {', '.join(split.name for split in splits)}", flush=True)
    with open_cache(settings.cache, gigabytes=settings.cache_gigabytes) as cache:
        encoder = Encoder(models, cache, settings.batch_size, settings.workers)
        results = {split.name: _evaluate(config, split, encoder, inputs) for split in splits}
        metrics = assemble(models, results, classify(config, encoder))
    storage = open_storage(outputs.report)
    first = splits[0]
    _write_figures(storage, metrics, results, first)
    written = report.write(config, metrics, first, results[first.name], models, data=inputs.data, storage=storage)
    root = outputs.report.rstrip("/")
    rows = {name: ModelResult(flatten_model(metrics, name), _about(metrics, name)) for name in metrics["models"]}
    candidate = rows.get(metrics["headline"]["candidate"], ModelResult())
    files = {"metrics": METRICS_FILE, "estimates": ESTIMATES_FILE, **written}
    return StageResult(
        stage=STAGE,
        metrics={**flatten(metrics), **candidate.metrics, "speed/wall_seconds": time.monotonic() - started},
        counts={
            "images": sum(len(result.items.keys) for result in results.values()),
            "regions": sum(len(result.items.labels) for result in results.values()),
            "models": len(models),
            "quarantined": sum(len(result.items.refused) for result in results.values()),
        },
        message=brief(metrics),
        models=rows,
        headline=tuple(name for name in headline_names(metrics) if name in candidate.metrics),
        artifacts={name: f"{root}/{path}" for name, path in files.items()},
    )


def _about(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """How a model came about, and the run that recorded it."""
    about = about_model(metrics, name)
    run = read_lineage(about["folder"]).get("run", {}).get("id")
    return about | ({"trained_by": run} if run else {})


def _rows(config: Config, inputs: Inputs) -> dict[str, str]:
    """The rows that the stage is given, then those of the settings."""
    twice = [name for name in config.evaluation.models if name in inputs.models]
    if twice:
        raise ConfigError(f"evaluation.models: the row {twice[0]!r} stands among the models that are given, too")
    return {**inputs.models, **config.evaluation.models}


def _evaluate(config: Config, split: Split, encoder: Encoder, inputs: Inputs) -> SplitResult:
    encoded = encode_split(split, encoder, quarantine_limit=config.data.quarantine_limit)
    # Fitting takes far longer than reading: only what the gate looks at is probed.
    headline = split.name == config.data.test_splits[0]
    result = score_split(encoded, encoder.models, probe_items=config.evaluation.probe_items if headline else 0)
    result.scores["leaked"] = measure(config, split, data=inputs.data)
    return result


def _write_figures(
    storage: Storage, metrics: Mapping[str, Any], results: Mapping[str, SplitResult], first: Split
) -> None:
    storage.write_bytes(ESTIMATES_FILE, pack_estimates(results))
    storage.write_bytes(METRICS_FILE, (json.dumps(metrics, indent=1) + "\n").encode())
    storage.write_bytes(RECALL_FILE, (json.dumps(by_iou(results[first.name].iou), indent=1) + "\n").encode())
    model = metrics["headline"]["candidate"] or next(iter(metrics["models"]))
    row = best_row(metrics, split=first.name, model=model)
    if row:
        result = results[first.name]
        predicted_R = result.recognitions[row["model"], row["reader"]].predicted
        labels_R = np.asarray(result.items.labels, dtype=np.int64)
        counts_CC = region_recognition.confusion(labels_R, predicted_R, classes=len(first.classes))
        body = {"model": row["model"], "reader": row["reader"], **square(counts_CC, first.classes)}
        storage.write_bytes(CONFUSION_FILE, (json.dumps(body, indent=1) + "\n").encode())
