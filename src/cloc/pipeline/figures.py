"""Figures for `dvc metrics` and `dvc plots`, which want few numbers, and JSON rather than JSON lines.

    python -m cloc.pipeline.figures --out work/figures --evaluation work/evaluation \
        CLOC=work/models/cloc "CLIP (equal steps)=work/models/clip_equal_steps"

Writes `<out>/metrics.json`, the headline by figure and model, and `<out>/<plot>.json`, the rows of each plot.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloc.evaluation.confusion import CONFUSION_FILE
from cloc.evaluation.recall import RECALL_FILE
from cloc.evaluation.summary import headline
from cloc.pipeline import curves

RECORDS_FILE = "metrics.jsonl"


def headline_figures(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The evaluation's headline as {figure: {model: share}}."""
    table = headline(metrics)
    return {
        row.label: {
            metrics["models"][model]["slug"]: cell.value
            for model, cell in zip(table.models, row.cells, strict=True)
            if cell.value is not None
        }
        for row in table.rows
        if row.compared
    }


def plots(evaluation: Path, metrics: Mapping[str, Any], trainings: Mapping[str, Path]) -> dict[str, list[curves.Row]]:
    """The rows of each plot.

    Args:
        evaluation: folder of the report.
        metrics: content of `metrics.json` there.
        trainings: model folders by the names of their rows.
    """
    records = {name: _records(folder / RECORDS_FILE) for name, folder in trainings.items()}
    order = curves.orders(metrics)
    return {
        "losses": curves.losses(records, order),
        "learning_rates": curves.learning_rates(records, order),
        "classes": curves.classes(metrics),
        "recalls": curves.recalls(metrics),
        "grounding": curves.grounding(metrics, _json(evaluation / RECALL_FILE)),
        "confusion": curves.confusion(_json(evaluation / CONFUSION_FILE)),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Figures for dvc metrics and dvc plots.")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--evaluation", required=True, type=Path, help="folder of the evaluation's report")
    parser.add_argument("models", nargs="*", metavar="NAME=FOLDER", help="a row of it that was trained here")
    given = parser.parse_args()
    metrics = json.loads((given.evaluation / "metrics.json").read_text())
    trainings: dict[str, Path] = {}
    for item in given.models:
        name, _, folder = item.partition("=")
        if not (Path(folder) / RECORDS_FILE).is_file():
            sys.exit(f"error: {item}: write it as NAME=FOLDER, of a folder that holds {RECORDS_FILE}")
        if name not in metrics["models"]:
            sys.exit(f"error: {item}: {given.evaluation} compares {', '.join(metrics['models'])}; take one of these")
        trainings[name] = Path(folder)
    given.out.mkdir(parents=True, exist_ok=True)
    _write(given.out / "metrics.json", headline_figures(metrics))
    for name, rows in plots(given.evaluation, metrics, trainings).items():
        _write(given.out / f"{name}.json", rows or {})  # DVC takes an empty list for an error


def _records(path: Path) -> list[curves.Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, body: Any) -> None:
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
