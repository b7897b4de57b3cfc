"""What is to be read of a registered version: why it is champion or challenger, what it is good at and where plain
CLIP is better, its figures, how it was made. Markdown for MLflow's pages, which break lines where the text does; and
the same as tags, to filter by.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloc.evaluation.card import facts
from cloc.evaluation.promotion import Measured
from cloc.evaluation.summary import (
    BOLD,
    FIGURES,
    SUPERVISION,
    Cell,
    figure,
    headline,
    reader_name,
    sentences,
)
from cloc.model.provenance import read_lineage
from cloc.pages import escape

DECISION_TAG = "cloc.decision"
_LIMIT = 5000  # characters that MLflow takes
_KIND = {"cloc": "encoders of images, texts and regions", "clip": "encoders of images and texts"}


@dataclass(frozen=True)
class Story:
    """What is told of a version.

    Attributes:
        alias: "champion" or "challenger".
        reason: why.
        command: what measures the champion on this evaluation set, where that is lacking; else "".
        gate: reasons of the gate.
        address: for `from_pretrained` and MLflow.
        folder: where the model lies.
    """

    alias: str
    reason: str
    command: str
    gate: tuple[str, ...]
    address: str
    folder: str


def describe(measured: Measured, story: Story) -> str:
    """The description; what does not fit any more is left out from the end of the figures."""
    metrics = measured.metrics
    parts = [
        f"{story.alias.capitalize()}: {story.reason}.",  # the list of versions shows its first words
        *([f"```\n{story.command}\n```"] if story.command else []),
        f"### What {escape(measured.model)} is good at, and where it is not",
        "\n".join(f"- {escape(sentence)}" for sentence in (*sentences(metrics), SUPERVISION)),
        "### How it was made",
        "\n".join(_made(measured, story)),
        "### How to use it",
        f'`CLOC.from_pretrained("{story.address}")` loads the model; '
        f'`mlflow.pyfunc.load_model("{story.address}")` answers tables of images, boxes and texts.',
    ]
    title = f"### Figures on `{measured.split}`"
    rows = list(_table(metrics))
    note = f"Percent; in brackets the 95 % interval over images. {BOLD}"
    while len(rows) > 2:
        text = "\n\n".join([*parts[:-4], title, "\n".join(rows), note, *parts[-4:]])
        if len(text) <= _LIMIT:
            return text
        rows.pop()
    return "\n\n".join(parts)


def _table(metrics: Mapping[str, Any]) -> Iterator[str]:
    table = headline(metrics)
    yield "| | " + " | ".join(escape(model) for model in table.models) + " |"
    yield "|---|" + "---:|" * len(table.models)
    for row in table.rows:
        if row.compared:
            yield f"| {escape(row.label)} | " + " | ".join(_cell(cell) for cell in row.cells) + " |"


def _cell(cell: Cell) -> str:
    shown = f"**{cell.text}**" if cell.best else cell.text
    return f"{shown} ({cell.range})" if cell.range else shown


def _made(measured: Measured, story: Story) -> Iterator[str]:
    """Lines of a list: kind, training, data, code, gate."""
    trained = ", ".join(
        f"{label} {escape(value)}" for label, value in facts(Path(story.folder)) if label != "objective"
    )
    objective = str(measured.metrics["models"][measured.model]["objective"])
    yield f"- {_KIND.get(objective, objective).capitalize()}" + (f": {trained}" if trained else "")
    lineage = read_lineage(story.folder)
    for name in ("data", "captions", "regions"):
        if record := lineage.get(name):
            counts = {**record, **record.get("counts", {})}
            told = [f"{counts[key]:,} {key}" for key in ("images", "rows", "shards") if key in counts]
            yield f"- {name}: `{record['place']}` ({', '.join(told)}; digest {str(record['digest'])[:16]})"
    commit = str(lineage.get("run", {}).get("tags", {}).get("mlflow.source.git.commit", ""))
    if commit:
        yield f"- code: commit {commit[:12]}"
    yield f"- passed the gate: {'; '.join(escape(reason) for reason in story.gate)}"


def tags(measured: Measured, story: Story) -> dict[str, str]:
    """What versions are searched by."""
    metrics = measured.metrics
    split, model = metrics["splits"][measured.split], metrics["models"][measured.model]
    hashed = f", digest {split['images_digest']}" if "images_digest" in split else ""
    run = read_lineage(story.folder).get("run", {})
    macc = figure(metrics, split=measured.split, model=measured.model, path="region/mAcc")
    found = {
        DECISION_TAG: f"{story.alias}: {story.reason}",
        "cloc.figures": "; ".join(_figures(measured)),
        "cloc.gate": "; ".join(story.gate),
        "cloc.evaluation_set": measured.digest,
        "cloc.evaluation_data": f"{split['data']} ({split['images']:,} images{hashed})",
        "cloc.protocols": ", ".join(f"{name} {version}" for name, version in sorted(metrics["protocols"].items())),
        "cloc.row": measured.model,
        "cloc.objective": str(model["objective"]),
        "cloc.steps": str(model.get("steps") or ""),
        "cloc.region_mAcc": f"{100 * macc.value:.1f}" if macc else "",
        "cloc.trained_by": str(run.get("id", "")),
        "cloc.git_commit": str(run.get("tags", {}).get("mlflow.source.git.commit", "")),
    }
    return {name: value for name, value in found.items() if value}


def _figures(measured: Measured) -> Iterator[str]:
    """The headline's figures with interval and reader."""
    for path, label in FIGURES.items():
        found = figure(measured.metrics, split=measured.split, model=measured.model, path=path)
        if found:
            low, high = found.interval
            beside = [f"{100 * low:.1f} to {100 * high:.1f}", *([reader_name(found.reader)] if found.reader else [])]
            yield f"{label} {100 * found.value:.1f} ({', '.join(beside)})"
