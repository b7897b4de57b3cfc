"""Stage: the gate between evaluation and the model registry.

A candidate that fails the gate stops the pipeline with the reason. One that passes is registered in MLflow, as
`challenger`; it becomes `champion` where there is none, or where it beats the present one on the same evaluation set
(see `promotion`). Why it did or did not stands with the version, in the receipt and in the run.
"""

import json
import os
from dataclasses import dataclass
from typing import Any

from cloc.config import Config
from cloc.data.storage import open_storage
from cloc.errors import DataError, GateFailed
from cloc.evaluation.card import CARD_FILE, model_card
from cloc.evaluation.gate import judge
from cloc.evaluation.promotion import ESTIMATES_FILE, METRICS_FILE, Measured
from cloc.evaluation.versions import Candidate, Outcome, file_version
from cloc.model.provenance import weights_digest
from cloc.stage import StageResult
from cloc.tracking import STAGE_RUN, Registry

STAGE = "registration"
RECEIPT_FILE = "receipt.json"
_REPORT_FILE = "index.html"
_RULES = {"min_region_gain", "max_image_loss", "promote_figure", "promote_by", "promote_margin"}


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
        receipt: folder of `receipt.json`: verdict, version, decision and their reasons, the model and its figures; and
            of `model_card.md`.
    """

    receipt: str


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Judges the candidate, and registers it.

    Raises:
        GateFailed: a rule of section `evaluation` is not met; the message names rule, figures and report.
        DataError: there is no evaluation, or the model is not among those evaluated.
        ConfigError: there is no model, or the registry cannot be used.
    """
    files = _read(inputs.evaluation)
    weights = weights_digest(inputs.model)
    measured = _measured(files, weights, inputs)
    verdict = judge(measured.metrics, config.evaluation, candidate=measured.model)
    report = f"{inputs.evaluation.rstrip('/')}/{_REPORT_FILE}"
    if not verdict.passed:
        raise GateFailed(f"{measured.model} is not registered: {verdict.reasons[0]}; report: {report}")
    candidate = Candidate(measured, inputs.model, weights, files, verdict.reasons)
    registry = Registry(config.tracking, run_id=os.environ.get(STAGE_RUN, ""))
    outcome = file_version(registry, candidate, config.evaluation)
    receipt = {
        **_receipt(config, candidate, outcome, inputs),
        "report": report,
        "metrics": measured.metrics,
    }
    card = model_card(measured.metrics, model=measured.model, folder=inputs.model, source=outcome.version.address)
    storage, place = open_storage(outputs.receipt), outputs.receipt.rstrip("/")
    storage.write_bytes(CARD_FILE, card.encode())
    storage.write_bytes(RECEIPT_FILE, (json.dumps(receipt, indent=1) + "\n").encode())
    return StageResult(
        stage=STAGE,
        metrics={"gate/passed": 1.0, "gate/champion": float(outcome.champion)},
        headline=("gate/passed", "gate/champion"),
        message=f"{measured.model} passed the gate; {outcome.sentence}",
        artifacts={"receipt": f"{place}/{RECEIPT_FILE}", "model card": f"{place}/{CARD_FILE}", "report": report},
    )


def _read(evaluation: str) -> dict[str, bytes]:
    """The files of an evaluation that figures are read from."""
    storage = open_storage(evaluation)
    if not storage.exists(METRICS_FILE):
        raise DataError(f"{evaluation}: no evaluation here (there is no {METRICS_FILE}); run the stage evaluation")
    return {name: storage.read_bytes(name) for name in (METRICS_FILE, ESTIMATES_FILE) if storage.exists(name)}


def _measured(files: dict[str, bytes], weights: str, inputs: Inputs) -> Measured:
    """The candidate among the models evaluated: by hash of its weights, as folders move between machines."""
    try:
        metrics = json.loads(files[METRICS_FILE])
        metrics["headline"]["candidate"], metrics["splits"][metrics["headline"]["split"]]["digest"]
        found = Measured.of(files, weights=weights)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{inputs.evaluation}/{METRICS_FILE}: not the figures of an evaluation ({type(error).__name__}: {error})"
        ) from None
    if found is None:
        raise DataError(
            f"{inputs.model}: its weights are none of those evaluated in {inputs.evaluation} "
            f"({', '.join(metrics['models'])}); evaluate this model first"
        )
    if metrics["models"][found.model]["objective"] != "cloc":
        raise DataError(f"{inputs.model}: {found.model!r} is a plain CLIP; only a CLOC model is registered")
    return found


def _receipt(config: Config, candidate: Candidate, outcome: Outcome, inputs: Inputs) -> dict[str, Any]:
    model = candidate.measured.metrics["models"][candidate.measured.model]
    provenance = {key: model[key] for key in ("objective", "steps", "cpu_seconds", "weights_sha256")}
    return {
        "passed": True,
        "reasons": list(candidate.reasons),
        "rules": config.evaluation.model_dump(mode="json", include=_RULES),
        "registered": {
            "name": outcome.version.name,
            "version": outcome.version.number,
            "new": outcome.new,
            "champion": outcome.champion,
            "reason": outcome.reason,
            "evaluate_champion": outcome.command,
        },
        "model": {"name": candidate.measured.model, "folder": inputs.model, **provenance},
    }
