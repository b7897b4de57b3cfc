"""Figures for `dvc metrics` and `dvc plots`, which want few numbers, and JSON rather than JSON lines.

    python -m cloc.pipeline.figures --out work/figures --evaluation work/evaluation \
        cloc=work/models/cloc/metrics.jsonl clip=work/models/clip/metrics.jsonl

Writes `<out>/metrics.json`, the headline by figure and model, and `<out>/<name>.json`, a training's curve.
"""

import argparse
import json
import sys
from pathlib import Path

from cloc.evaluation.summary import headline


def write_metrics(out: Path, evaluation: Path) -> None:
    """The evaluation's headline as {figure: {model: share}}."""
    metrics = json.loads((evaluation / "metrics.json").read_text())
    table = headline(metrics)
    body = {
        row.label: {
            metrics["models"][model]["slug"]: cell.value
            for model, cell in zip(table.models, row.cells, strict=True)
            if cell.value is not None
        }
        for row in table.rows
        if row.compared
    }
    (out / "metrics.json").write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def write_curve(out: Path, name: str, source: Path) -> None:
    """A training's records as JSON, with the keys of the last one; "/" in them becomes "_", as plots want it."""
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    body = [{key.replace("/", "_"): row[key] for key in rows[-1] if key in row} for row in rows]
    (out / f"{name}.json").write_text(json.dumps(body, indent=1) + "\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Figures for dvc metrics and dvc plots.")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--evaluation", required=True, type=Path, help="folder of the evaluation's report")
    parser.add_argument("curves", nargs="*", metavar="NAME=FILE", help="metrics.jsonl of a training")
    given = parser.parse_args()
    for item in given.curves:
        name, _, source = item.partition("=")
        if not name.isidentifier() or not Path(source).is_file():
            sys.exit(f"error: {item}: write it as NAME=FILE, of a file that exists")
    given.out.mkdir(parents=True, exist_ok=True)
    write_metrics(given.out, given.evaluation)
    for item in given.curves:
        name, _, source = item.partition("=")
        write_curve(given.out, name, Path(source))


if __name__ == "__main__":
    main()
