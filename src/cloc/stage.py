"""What a stage is: one function `run(config, *, inputs, outputs) -> StageResult`.

The command line, a DVC stage and a KFP component all call it through `cloc.stages.run_stage`, so that a stage
behaves alike everywhere. Stages meet only through the data contract and the files named here.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

RESULT_FILE = "stage_result.json"
CONFIG_FILE = "config.yaml"
LINEAGE_FILE = "lineage.json"
"""What a model was made of, beside it: data, labels and their makers, code, run (see `cloc.training.lineage`)."""


@dataclass(frozen=True)
class ModelResult:
    """What a stage that measures several models says of one of them; in MLflow it has a run of its own.

    Attributes:
        metrics: its figures, by the names of `cloc.tracking.names`.
        about: how it came about, as far as that is known: objective, steps, hash of its weights, ...
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageResult:
    """What a stage reports, whoever called it.

    Attributes:
        stage: name of the stage in the registry.
        metrics: numbers to compare runs by, named by `cloc.tracking.names`; of several models those of the candidate.
        counts: how many items went through, were skipped, were quarantined.
        message: one line for a person.
        artifacts: files or folders worth keeping with the run, by the name to show.
        models: every model that was measured, by the name of its row, where there are several.
        headline: names of the metrics that the pipeline's run shows, too.
        made: hashes and names of what was made, to find the run by: `weights_sha256`, ...
        mlflow_run: id of the MLflow run that recorded the stage; set by `run_stage`, not saved.
    """

    stage: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    message: str = ""
    artifacts: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, ModelResult] = field(default_factory=dict)
    headline: tuple[str, ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)
    mlflow_run: str = ""

    def save(self, folder: str | Path) -> Path:
        """Writes the result as JSON into `folder` and returns the file's path."""
        path = Path(folder) / RESULT_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        body = {
            "stage": self.stage,
            "metrics": dict(self.metrics),
            "counts": dict(self.counts),
            "message": self.message,
            "artifacts": dict(self.artifacts),
            "models": {name: asdict(model) for name, model in self.models.items()},
            "headline": list(self.headline),
            "made": dict(self.made),
        }
        path.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "StageResult":
        """Reads what `save` wrote; what only earlier releases wrote is left out."""
        body = json.loads((Path(folder) / RESULT_FILE).read_text())
        body["models"] = {name: ModelResult(**model) for name, model in body.get("models", {}).items()}
        body["headline"] = tuple(body.get("headline", ()))
        return cls(**{item.name: body[item.name] for item in fields(cls) if item.name in body})


def fingerprint(*parts: Any) -> str:
    """A short stable hash of JSON-like values (settings, hashes, names): 16 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
