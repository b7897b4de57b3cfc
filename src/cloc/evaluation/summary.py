"""The headline of a comparison: one table with the models side by side, and what it says in words.

Pure functions of `metrics.json`; no torch. The terminal, the Markdown file and the HTML report show the same table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

READERS = {
    "crop": "crop",
    "roi_align": "RoIAlign",
    "prompter": "Prompter",
    "region_head": "region head",
}
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
SUPERVISION = (
    "CLOC was trained with region texts and boxes that plain CLIP never saw: part of any gain is more supervision. "
    "Each model's best reader is picked on the split that is reported, for all models alike."
)


@dataclass(frozen=True)
class Cell:
    """A figure of the table.

    Attributes:
        text: as shown; a dash where there is none.
        value: the share in [0, 1], or None for what is not compared.
        interval: its 95 % interval.
        note: small print, e.g. the reader.
    """

    text: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""

    @property
    def range(self) -> str:
        """The interval as shown, percent; "" without."""
        return f"{100 * self.interval[0]:.1f}{DASH}{100 * self.interval[1]:.1f}" if self.interval else ""


@dataclass(frozen=True)
class Row:
    """A row of the table: a label and a cell for every model, in order."""

    label: str
    cells: tuple[Cell, ...]

    @property
    def compared(self) -> bool:
        """Whether higher is better here."""
        return any(cell.value is not None for cell in self.cells)


@dataclass(frozen=True)
class Headline:
    """The table: names of the models in order, and rows."""

    models: tuple[str, ...]
    rows: tuple[Row, ...]


NONE = Cell(DASH)


def best_row(metrics: Mapping[str, Any], *, split: str, model: str) -> Mapping[str, Any] | None:
    """The region row of a model's best reader on a split, by mAcc (ties: the first); None without any row."""
    rows = [row for row in metrics["splits"][split]["rows"] if row["model"] == model]
    return max(rows, key=lambda row: row["region"]["mAcc"]) if rows else None


def headline(metrics: Mapping[str, Any]) -> Headline:
    """The headline table of `metrics.json`."""
    first = metrics["headline"]["split"]
    models = tuple(metrics["models"])

    def row(label: str, cell: Any) -> Row:
        return Row(label, tuple(cell(model) for model in models))

    rows = [
        row("training steps", lambda model: Cell(f"{metrics['models'][model]['steps']:,}")),
        row("CPU-seconds", lambda model: Cell(f"{metrics['models'][model]['cpu_seconds']:,.0f}")),
        row("region mAcc", lambda model: _region(metrics, first, model, "mAcc")),
        row("region top-1", lambda model: _region(metrics, first, model, "top1")),
        row("image→text R@1", lambda model: _recall(metrics, first, model, "i2t")),
        row("text→image R@1", lambda model: _recall(metrics, first, model, "t2i")),
        row("grounding acc@0.5", lambda model: _grounding(metrics, first, model)),
    ]
    for other in metrics["splits"]:
        if other != first:
            label = f"region mAcc, {other.replace('_', ' ')}"
            rows.append(row(label, lambda model, other=other: _region(metrics, other, model, "mAcc")))
    return Headline(models, tuple(rows))


def _figure(scores: Mapping[str, Any], key: str, *, note: str = "") -> Cell:
    low, high = scores["interval"][key]
    return Cell(f"{100 * scores[key]:.1f}", float(scores[key]), (low, high), note)


def _region(metrics: Mapping[str, Any], split: str, model: str, key: str) -> Cell:
    row = best_row(metrics, split=split, model=model)
    return _figure(row["region"], key, note=READERS[row["reader"]]) if row else NONE


def _recall(metrics: Mapping[str, Any], split: str, model: str, way: str) -> Cell:
    scores = metrics["splits"][split]["retrieval"].get(model)
    return _figure(scores[way], "R@1") if scores else NONE


def _grounding(metrics: Mapping[str, Any], split: str, model: str) -> Cell:
    scores = metrics["splits"][split]["grounding"].get(model)
    return _figure(scores, "acc@0.5") if scores else NONE


def sentences(metrics: Mapping[str, Any]) -> list[str]:
    """What the table says, plainly: the gain in region accuracy over each CLIP, and everywhere that CLOC loses."""
    candidate, baselines = metrics["headline"]["candidate"], metrics["headline"]["baselines"]
    if not candidate:
        return ["There is no CLOC model in this comparison."]
    if not baselines:
        return ["There is no plain CLIP in this comparison: nothing to hold CLOC against."]
    return [*_gains(metrics, candidate, baselines), *losses(metrics)]


def brief(metrics: Mapping[str, Any]) -> str:
    """One line: the gains, and how often the candidate is below a plain CLIP."""
    found = sentences(metrics)
    lost = [sentence for sentence in found if " loses to " in sentence]
    if len(lost) <= 1:
        return " ".join(found)
    kept = [sentence for sentence in found if sentence not in lost]
    return " ".join([*kept, f"It is below a plain CLIP on {len(lost)} figures; the report names each."])


def _gains(metrics: Mapping[str, Any], candidate: str, baselines: list[str]) -> Iterator[str]:
    first = metrics["headline"]["split"]
    best = best_row(metrics, split=first, model=candidate)
    for baseline in baselines:
        other = best_row(metrics, split=first, model=baseline)
        if best is None or other is None:
            continue
        own, theirs = best["region"]["mAcc"], other["region"]["mAcc"]
        times = f"{own / theirs:.1f} times " if theirs else ""
        yield (
            f"Region mAcc on {first}: {candidate} ({READERS[best['reader']]}) {100 * own:.1f}, {times}"
            f"the {100 * theirs:.1f} of {baseline} ({READERS[other['reader']]})."
        )


def losses(metrics: Mapping[str, Any]) -> list[str]:
    """One sentence for each figure where the candidate is below a baseline; one sentence when there is none."""
    table = headline(metrics)
    candidate = metrics["headline"]["candidate"]
    found: list[str] = []
    for baseline in metrics["headline"]["baselines"]:
        for row in table.rows:
            own, theirs = row.cells[table.models.index(candidate)], row.cells[table.models.index(baseline)]
            if own.value is None or theirs.value is None or own.value >= theirs.value:
                continue
            gap = 100 * (theirs.value - own.value)
            found.append(
                f"{candidate} loses to {baseline} on {row.label}: {own.text} against {theirs.text} "
                f"({MINUS}{gap:.1f} points; 95 % intervals {'overlap' if _overlap(own, theirs) else 'are apart'})."
            )
    return found or [f"{candidate} loses to no plain CLIP on any figure of the table."]


def _overlap(a: Cell, b: Cell) -> bool:
    assert a.interval is not None
    assert b.interval is not None
    return a.interval[0] <= b.interval[1] and b.interval[0] <= a.interval[1]


def headline_table(metrics: Mapping[str, Any]) -> Table:
    """The headline table for a terminal; the best figure of a row is bold."""
    table = headline(metrics)
    split = metrics["headline"]["split"]
    result = Table(title=f"CLIP and CLOC on the split {split!r} (percent; 95 % interval)", title_justify="left")
    result.add_column("")
    for model in table.models:
        result.add_column(Text(model), justify="right")
    for row in table.rows:
        result.add_row(Text(row.label), *(_rich(cell, bold=cell in _winners(row)) for cell in row.cells))
    return result


def _winners(row: Row) -> tuple[Cell, ...]:
    values = [cell.value for cell in row.cells if cell.value is not None]
    return tuple(cell for cell in row.cells if cell.value is not None and cell.value == max(values))


def is_best(row: Row, cell: Cell) -> bool:
    """Whether a cell holds the highest figure of a row that compares several."""
    return len([other for other in row.cells if other.value is not None]) > 1 and cell in _winners(row)


def _rich(cell: Cell, *, bold: bool) -> Text:
    text = Text(cell.text, style="bold" if bold else "")
    small = ", ".join(part for part in (cell.note, cell.range) if part)
    return text.append(f"\n{small}", style="dim not bold") if small else text


def headline_markdown(metrics: Mapping[str, Any]) -> str:
    """The headline table and its sentences as Markdown."""
    table = headline(metrics)
    lines = [
        f"## CLIP and CLOC on the split `{metrics['headline']['split']}`",
        "",
        "| | " + " | ".join(_escape(model) for model in table.models) + " |",
        "|---|" + "---:|" * len(table.models),
    ]
    for row in table.rows:
        cells = []
        for cell in row.cells:
            small = ", ".join(part for part in (cell.note, cell.range) if part)
            shown = f"**{cell.text}**" if is_best(row, cell) else cell.text
            cells.append(f"{shown} ({small})" if small else shown)
        lines.append(f"| {_escape(row.label)} | " + " | ".join(cells) + " |")
    lines += ["", "Percent; in brackets the reader and the 95 % interval over images.", ""]
    lines += [f"- {_escape(sentence)}" for sentence in (*sentences(metrics), *_leakage(metrics), SUPERVISION)]
    return "\n".join(lines) + "\n"


def _leakage(metrics: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each split of which it is known how many images were trained on."""
    for name, split in metrics["splits"].items():
        leaked = split.get("leaked")  # not in what earlier releases wrote
        if leaked is not None:
            yield (
                f"{leaked['exact'] + leaked['near']} of the {leaked['images']} images of {name} occur in "
                f"{leaked['split']} ({leaked['exact']} exact, {leaked['near']} near)."
            )


def _escape(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\|`*_<>[]" else char for char in text)
