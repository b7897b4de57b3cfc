"""Stage: models side by side on the test splits, by every protocol, with a report.

The truth is what the splits say themselves (human captions, labelled human boxes), never what labelling wrote.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from cloc.config import Config
from cloc.data.storage import open_storage
from cloc.evaluation import report
from cloc.evaluation.features import encode_split
from cloc.evaluation.leakage import measure
from cloc.evaluation.metrics import METRICS_FILE, SplitResult, assemble, flatten, score_split
from cloc.evaluation.models import load_models
from cloc.evaluation.summary import brief, headline_markdown
from cloc.evaluation.truth import open_splits
from cloc.stage import StageResult

STAGE = "evaluation"
SUMMARY_FILE = "summary.md"


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
        report: folder of `index.html`, `metrics.json` and `summary.md`.
    """

    report: str


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Evaluates the models.

    Raises:
        ConfigError: a model folder is not one.
        DataError: a split is not there, broken, or has no truth to test against.
    """
    started = time.monotonic()
    splits = open_splits(inputs.data, config.data.test_splits)
    models = load_models(inputs.models, device=config.evaluation.device)
    print(f"evaluation: {len(models)} models on {', '.join(split.name for split in splits)}", flush=True)
    results: dict[str, SplitResult] = {}
    for split in splits:
        items, features = encode_split(
            split,
            models,
            batch_size=config.evaluation.batch_size,
            quarantine_limit=config.data.quarantine_limit,
        )
        results[split.name] = score_split(split, items, features)
        results[split.name].scores["leaked"] = measure(config, split, data=inputs.data)
    metrics = assemble(models, results)
    page = report.render(config, metrics, splits[0], results[splits[0].name], data=inputs.data)
    storage = open_storage(outputs.report)
    storage.write_bytes(METRICS_FILE, (json.dumps(metrics, indent=1) + "\n").encode())
    storage.write_bytes(SUMMARY_FILE, headline_markdown(metrics).encode())
    storage.write_bytes(report.REPORT_FILE, page.encode())
    root = outputs.report.rstrip("/")
    return StageResult(
        stage=STAGE,
        metrics={**flatten(metrics), "eval/seconds": time.monotonic() - started},
        counts={
            "images": sum(len(result.items.keys) for result in results.values()),
            "regions": sum(len(result.items.labels) for result in results.values()),
            "models": len(models),
            "quarantined": sum(len(result.items.refused) for result in results.values()),
        },
        message=brief(metrics),
        artifacts={
            "report": f"{root}/{report.REPORT_FILE}",
            "metrics": f"{root}/{METRICS_FILE}",
            "summary": f"{root}/{SUMMARY_FILE}",
        },
    )
