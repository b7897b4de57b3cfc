"""The end of a pipeline run: the models side by side, the adapters side by side, and where everything lies.

Pure functions of the JSON files that the stages left; no torch.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cloc.evaluation.summary import SUPERVISION, headline, headline_markdown, headline_table, sentences
from cloc.mllm import report as answers_report
from cloc.mllm.scores import sentences as answer_sentences
from cloc.pipeline.component import Artifact, location, one_line_failure, skipped, write_metrics

SUMMARY_FILE, ANSWERS_FOLDER = "summary.json", "answers"
_ADAPTERS = "MLLM adapters by their encoder"
_WIDTH = 110  # columns in a log file


def write_summary(
    artifacts: Mapping[str, Artifact],
    *,
    evaluation: Artifact,
    adapters: Mapping[str, Artifact],
    summary: Artifact,
    page: Artifact,
    answers: Artifact,
    metrics: Artifact,
) -> None:
    """The pipeline's last task.

    Args:
        artifacts: what to point at, by the name to show.
        evaluation: the evaluation's report.
        adapters: the tuned adapters by the name of their encoder; the first is the baseline. Those that were not tuned
            are left out, as what was not trained is.
        summary: gets `summary.json` (figures, and where everything lies) and `answers/`, the report on the adapters.
        page: gets the tables as Markdown, for the user interface.
        answers: gets the page of the adapters' report.
        metrics: gets the headline figures.
    """
    with one_line_failure("summary"):
        folder = Path(summary.path)
        folder.mkdir(parents=True, exist_ok=True)
        Path(answers.path).parent.mkdir(parents=True, exist_ok=True)
        rows = {name: location(item) for name, item in adapters.items() if not skipped(item)}
        body: dict[str, Any] = {
            "evaluation": json.loads((Path(location(evaluation)) / "metrics.json").read_text()),
            "places": {name: location(item) for name, item in artifacts.items() if not skipped(item)},
        }
        if rows:
            place = folder / ANSWERS_FOLDER
            body["adapters"] = answers_report.write_report(rows, place, title=_ADAPTERS)
            body["places"][ANSWERS_FOLDER] = str(place)
            shutil.copyfile(place / answers_report.PAGE, answers.path)
        else:
            Path(answers.path).write_text("<!doctype html><title>Skipped</title><p>No adapter was tuned.</p>\n")
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


def adapter_table(comparison: Mapping[str, Any]) -> Table:
    """The adapters' figures for a terminal: percent, intervals, and in bold what is shown to be better."""
    table = Table(title=f"{_ADAPTERS} (percent)", title_justify="left")
    table.add_column("")
    names = [row["name"] for row in comparison["rows"]]
    for name in names:
        table.add_column(Text(name), justify="right")
    for entry in comparison["figures"]:
        cells = []
        for name in names:
            score, better = entry["scores"][name], entry["differences"].get(name, {}).get("better") == "a"
            low, high = (100 * end for end in score["interval"])
            cell = Text(f"{100 * score['value']:.1f}", style="bold" if better else "")
            cells.append(cell.append(f"\n{low:.1f}\N{EN DASH}{high:.1f}", style="dim"))
        table.add_row(entry["label"], *cells)
    return table


def markdown(body: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    first = headline_markdown(body["evaluation"])
    if "adapters" not in body:
        return first
    return "\n".join([first, f"## {_ADAPTERS}", "", answers_report.markdown(body["adapters"])])


def print_summary(body: Mapping[str, Any]) -> None:
    """The tables and what they say, on the terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    console.print()
    console.print(headline_table(body["evaluation"]))
    for sentence in (*sentences(body["evaluation"]), SUPERVISION):
        console.print(Text(f"- {sentence}"), soft_wrap=True)
    if "adapters" not in body:
        return
    console.print()
    console.print(adapter_table(body["adapters"]))
    for sentence in answer_sentences(body["adapters"]):
        console.print(Text(f"- {sentence}"), soft_wrap=True)
