"""The end of a pipeline run: the models side by side, the adapters side by side, and where everything lies.

Pure functions of the JSON files that the stages left; no torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cloc.evaluation.summary import SUPERVISION, headline, headline_markdown, headline_table, sentences
from cloc.pipeline.component import Artifact, location, one_line_failure, write_metrics
from cloc.stage import StageResult

SUMMARY_FILE = "summary.json"
_WIDTH = 110  # columns in a log file


def write_summary(
    artifacts: Mapping[str, Artifact],
    *,
    evaluation: Artifact,
    adapters: Mapping[str, Artifact],
    summary: Artifact,
    page: Artifact,
    metrics: Artifact,
) -> None:
    """The pipeline's last task.

    Args:
        artifacts: what to point at, by the name to show.
        evaluation: the evaluation's report.
        adapters: the tuned adapters by the name of their encoder.
        summary: gets `summary.json`: figures, and where everything lies.
        page: gets the tables as Markdown, for the user interface.
        metrics: gets the headline figures.
    """
    with one_line_failure("summary"):
        body = {
            "evaluation": json.loads((Path(location(evaluation)) / "metrics.json").read_text()),
            "adapters": {name: dict(StageResult.load(item.path).metrics) for name, item in adapters.items()},
            "places": {name: location(item) for name, item in artifacts.items()},
        }
        folder = Path(summary.path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMMARY_FILE).write_text(json.dumps(body, indent=1) + "\n")
        Path(page.path).parent.mkdir(parents=True, exist_ok=True)
        Path(page.path).write_text(markdown(body))
        write_metrics(metrics, _headline_figures(body))
        print(f"summary of {len(body['places'])} results written", flush=True)


def _headline_figures(body: Mapping[str, Any]) -> dict[str, float]:
    """The figures that runs are compared by, named "<figure>/<model>"."""
    table = headline(body["evaluation"])
    return {
        f"{row.label}/{model}": cell.value
        for row in table.rows
        for model, cell in zip(table.models, row.cells, strict=True)
        if cell.value is not None
    }


def _adapter_rows(adapters: Mapping[str, Mapping[str, float]]) -> list[tuple[str, list[float]]]:
    """Accuracies that all adapters have, as (name, one value an adapter)."""
    if not adapters:
        return []
    first = next(iter(adapters.values()))
    names = [name for name in first if "acc" in name and all(name in other for other in adapters.values())]
    return [(name, [other[name] for other in adapters.values()]) for name in names]


def _plain(name: str) -> str:
    """A metric's name for people: "mllm/refer/noun_accuracy" is "refer noun accuracy"."""
    return name.partition("/")[2].replace("/", " ").replace("_", " ")


def adapter_table(adapters: Mapping[str, Mapping[str, float]]) -> Table:
    """The adapters' accuracies for a terminal."""
    table = Table(title="MLLM adapters by their encoder (percent)", title_justify="left")
    table.add_column("")
    for name in adapters:
        table.add_column(Text(name), justify="right")
    for name, values in _adapter_rows(adapters):
        best = max(values)
        cells = [Text(f"{100 * value:.1f}", style="bold" if value == best else "") for value in values]
        table.add_row(_plain(name), *cells)
    return table


def markdown(body: Mapping[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = [headline_markdown(body["evaluation"]), "## MLLM adapters by their encoder", ""]
    lines += ["| | " + " | ".join(body["adapters"]) + " |", "|---|" + "---:|" * len(body["adapters"])]
    for name, values in _adapter_rows(body["adapters"]):
        lines.append(f"| {_plain(name)} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")
    return "\n".join(lines) + "\n"


def print_summary(body: Mapping[str, Any]) -> None:
    """Both tables and what they say, on the terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    console.print()
    console.print(headline_table(body["evaluation"]))
    for sentence in (*sentences(body["evaluation"]), SUPERVISION):
        console.print(Text(f"- {sentence}"), soft_wrap=True)
    console.print()
    console.print(adapter_table(body["adapters"]))
