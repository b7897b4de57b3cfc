"""Stage: the gate between evaluation and the model registry.

A candidate that fails stops the pipeline with the reason; one that passes gets a receipt, and goes into MLflow's model
registry (`StageResult.registers`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloc.config import Config
from cloc.data.storage import open_storage
from cloc.errors import DataError, GateFailed
from cloc.evaluation.gate import judge
from cloc.evaluation.provenance import weights_digest
from cloc.stage import StageResult

STAGE = "registration"
RECEIPT_FILE = "receipt.json"
_METRICS_FILE, _REPORT_FILE = "metrics.json", "index.html"


@dataclass(frozen=True)
class Inputs:
    """What the stage reads.

    Attributes:
        evaluation: folder that the evaluation wrote.
        model: folder of the candidate; it must be among the models that were evaluated.
    """

    evaluation: str
    model: str


@dataclass(frozen=True)
class Outputs:
    """What the stage writes.

    Attributes:
        receipt: folder of `receipt.json`: the verdict, the model and its figures.
    """

    receipt: str


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Judges the candidate.

    Raises:
        GateFailed: a rule of section `evaluation` is not met; the message names rule, figures and report.
        DataError: there is no evaluation, or the model is not among those evaluated.
        ConfigError: there is no model.
    """
    metrics = _read_metrics(inputs.evaluation)
    name = _row_of(metrics, inputs)
    verdict = judge(metrics, config.evaluation, candidate=name)
    report = f"{inputs.evaluation.rstrip('/')}/{_REPORT_FILE}"
    if not verdict.passed:
        raise GateFailed(f"{name} is not registered: {verdict.reasons[0]}; report: {report}")
    receipt = {
        "passed": True,
        "reasons": list(verdict.reasons),
        "rules": config.evaluation.model_dump(mode="json", include={"min_region_gain", "max_image_loss"}),
        "model": {"name": name, "folder": inputs.model, **_provenance(metrics, name)},
        "report": report,
        "metrics": metrics,
    }
    open_storage(outputs.receipt).write_bytes(RECEIPT_FILE, (json.dumps(receipt, indent=1) + "\n").encode())
    path = f"{outputs.receipt.rstrip('/')}/{RECEIPT_FILE}"
    return StageResult(
        stage=STAGE,
        metrics={"gate/passed": 1.0},
        message=f"{name} passed the gate: {'; '.join(verdict.reasons)}",
        artifacts={"receipt": path, "report": report},
        registers=inputs.model,
    )


def _read_metrics(evaluation: str) -> dict[str, Any]:
    storage = open_storage(evaluation)
    if not storage.exists(_METRICS_FILE):
        raise DataError(f"{evaluation}: no evaluation here (there is no {_METRICS_FILE}); run the stage evaluation")
    try:
        metrics: dict[str, Any] = json.loads(storage.read_bytes(_METRICS_FILE))
        metrics["headline"]["candidate"], metrics["models"], metrics["splits"][metrics["headline"]["split"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{evaluation}/{_METRICS_FILE}: not the figures of an evaluation ({type(error).__name__}: {error})"
        ) from None
    return metrics


def _row_of(metrics: Mapping[str, Any], inputs: Inputs) -> str:
    """The evaluated model with the candidate's weights: by hash, as folders move between machines."""
    digest = weights_digest(inputs.model)
    names = [name for name, model in metrics["models"].items() if model["weights_sha256"] == digest]
    if not names:
        raise DataError(
            f"{inputs.model}: its weights are none of those evaluated in {inputs.evaluation} "
            f"({', '.join(metrics['models'])}); evaluate this model first"
        )
    if metrics["models"][names[0]]["objective"] != "cloc":
        raise DataError(f"{inputs.model}: {names[0]!r} is a plain CLIP; only a CLOC model is registered")
    return str(names[0])


def _provenance(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    model = metrics["models"][name]
    return {key: model[key] for key in ("objective", "steps", "cpu_seconds", "weights_sha256")}
