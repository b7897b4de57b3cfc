"""The headline of a comparison: one table with the models side by side, and what it says in words.

Pure functions of `metrics.json`; no torch. The terminal, the Markdown file and the HTML report show the same table.
A model is called better than another only where the 95 % interval of their paired difference (`differences` of a split)
leaves zero out.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from cloc.pages import escape

READERS = {
    "crop": "crop",
    "roi_align": "RoIAlign",
    "masked": "masked attention",
    "prompter": "Prompter",
    "region_head": "region head",
}
FIGURES = {
    "region/mAcc": "region mAcc",
    "region/top1": "region top-1",
    "region_retrieval/r2t/R@1": "region→text R@1",
    "region_retrieval/t2r/R@1": "text→region R@1",
    "attributes/hard/accuracy": "attributes, hard",
    "attributes/1_attributes/accuracy": "attributes, one swapped",
    "probe/top1": "linear probe top-1",
    "retrieval/i2t/R@1": "image→text R@1",
    "retrieval/t2i/R@1": "text→image R@1",
    "grounding/acc@0.5": "grounding acc@0.5",
    "coherence/auc": "coherence AUC",
}
"""The figures of the headline, by their paths in a split's scores, as people call them."""

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
SUPERVISION = (
    "CLOC was trained with region texts and boxes that plain CLIP never saw: part of any gain is more supervision. "
    "Each model's best reader is picked on the split that is reported, for all models alike."
)
UNPAIRED = "Which differences stand is not known: these figures come without paired differences."


@dataclass(frozen=True)
class Found:
    """A figure of a model on a split: the share, its 95 % interval, and the reader ("" where none reads)."""

    value: float
    interval: tuple[float, float]
    reader: str = ""


@dataclass(frozen=True)
class Difference:
    """The candidate less another model, on the same images: shares in [-1, 1] and a 95 % interval.

    Attributes:
        figure: path of the figure.
        other: the other model.
        better: "a" where the candidate is, "b" where the other is, "" where the interval holds zero.
    """

    figure: str
    other: str
    value: float
    low: float
    high: float
    better: str

    @property
    def range(self) -> str:
        """The interval, in points."""
        return f"{signed(self.low)} to {signed(self.high)}"

    @property
    def text(self) -> str:
        """In points, with the interval."""
        return f"{signed(self.value)} points (95 % interval {self.range})"


@dataclass(frozen=True)
class Cell:
    """A figure of the table.

    Attributes:
        text: as shown; a dash where there is none.
        value: the share in [0, 1], or None for what is not compared.
        interval: its 95 % interval.
        note: small print, e.g. the reader.
        best: whether it is shown to be better: a candidate's than all others', another's than the candidate's.
        difference: the candidate less this model.
    """

    text: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""
    best: bool = False
    difference: Difference | None = None

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


def signed(share: float) -> str:
    """A share as points with its sign: "+3.1"."""
    points = f"{100 * abs(share):.1f}"
    return points if points == "0.0" else f"{'+' if share > 0 else MINUS}{points}"


def slug(name: str) -> str:
    """A row's name as a part of metric names: "CLIP (equal steps)" -> "clip-equal-steps"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def reader_name(reader: str) -> str:
    """A reader as people call it."""
    return READERS.get(reader, reader.replace("_", " "))


def best_row(
    metrics: Mapping[str, Any], *, split: str, model: str, figure: str = "region/mAcc"
) -> Mapping[str, Any] | None:
    """The row of a model's best reader on a split, by a figure of rows (ties: the first); None without any."""
    found = [(row, dig(row, figure)) for row in metrics["splits"][split]["rows"] if row["model"] == model]
    rows = [(row, value) for row, value in found if value is not None]
    return max(rows, key=lambda pair: pair[1])[0] if rows else None


def dig(scores: Mapping[str, Any], path: str) -> Any:
    """What lies at a path like "region/mAcc"; None where nothing does."""
    found: Any = scores
    for part in path.split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def figure(metrics: Mapping[str, Any], *, split: str, model: str, path: str) -> Found | None:
    """A figure of a model's best reader (or of the model, where nothing reads regions); None without it."""
    protocol, _, rest = path.partition("/")
    row = best_row(metrics, split=split, model=model, figure=path)
    scores = row[protocol] if row else metrics["splits"][split].get(protocol, {}).get(model)
    block, key = rest.rpartition("/")[0], rest.rpartition("/")[2]
    scores = dig(scores, block) if scores and block else scores
    if not scores or scores.get(key) is None or scores.get("n") == 0:
        return None
    low, high = scores["interval"][key]
    return Found(float(scores[key]), (low, high), str(row["reader"]) if row else "")


def differences(scores: Mapping[str, Any]) -> dict[tuple[str, str], Difference]:
    """The paired differences of a split, or of a classification set, by (figure, other model); empty without any."""
    found = [_difference(item) for item in scores.get("differences", ()) if known(item)]
    return {(item.figure, item.other): item for item in found}


def known(difference: Mapping[str, Any]) -> bool:
    """Whether both models have the figure that a difference of `metrics.json` is of."""
    return difference["value"] is not None and None not in difference["interval"]


def _difference(item: Mapping[str, Any]) -> Difference:
    low, high = item["interval"]
    return Difference(item["figure"], item["b"]["model"], item["value"], low, high, item["better"])


def headline(metrics: Mapping[str, Any]) -> Headline:
    """The headline table of `metrics.json`: figures of the headline split, then the first one of each other split."""
    first, models = metrics["headline"]["split"], tuple(metrics["models"])
    rows = [_amounts(metrics, "training steps", "steps"), _amounts(metrics, "CPU-seconds", "cpu_seconds")]
    rows += [figure_row(metrics, first, path, label) for path, label in FIGURES.items()]
    for other in metrics["splits"]:
        if other != first:
            rows.append(figure_row(metrics, other, "region/mAcc", f"region mAcc, {other.replace('_', ' ')}"))
    rows += list(_classifications(metrics))
    return Headline(models, tuple(row for row in rows if any(cell != NONE for cell in row.cells)))


def _amounts(metrics: Mapping[str, Any], label: str, key: str) -> Row:
    """Numbers of the models that are not compared; a dash for models that were trained elsewhere."""
    found = [model.get(key) for model in metrics["models"].values()]
    return Row(label, tuple(NONE if value is None else Cell(f"{value:,.0f}") for value in found))


def figure_row(metrics: Mapping[str, Any], split: str, path: str, label: str) -> Row:
    """A figure of all models, and what the differences say of it."""
    found = {model: figure(metrics, split=split, model=model, path=path) for model in metrics["models"]}
    notes = {model: reader_name(item.reader) for model, item in found.items() if item and item.reader}
    gaps = differences(metrics["splits"][split])
    return _row(label, found, notes, {model: gaps.get((path, model)) for model in found}, metrics)


def _row(
    label: str,
    found: Mapping[str, Found | None],
    notes: Mapping[str, str],
    gaps: Mapping[str, Difference | None],
    metrics: Mapping[str, Any],
) -> Row:
    """A figure's cells by model; bold where it is shown to be best."""
    candidate = metrics["headline"]["candidate"]
    others = [gaps[model] for model, item in found.items() if item and model != candidate]
    cells = []
    for model, item in found.items():
        if item is None:
            cells.append(NONE)
            continue
        gap = gaps[model]
        shown = [other is not None and other.better == "a" for other in others]
        best = bool(shown) and all(shown) if model == candidate else gap is not None and gap.better == "b"
        cells.append(Cell(f"{100 * item.value:.1f}", item.value, item.interval, notes.get(model, ""), best, gap))
    return Row(label, tuple(cells))


_WAYS = {"templates": "with templates", "plain": "plain names"}


def _classifications(metrics: Mapping[str, Any]) -> Iterator[Row]:
    """Top-1 on each set of classified images, with templates where they were used."""
    for name, scores in metrics.get("classification", {}).items():
        blocks = scores["models"]
        way = next((way for way in _WAYS if any(block.get(way) for block in blocks.values())), "plain")
        found: dict[str, Found | None] = {}
        for model in metrics["models"]:
            block = blocks.get(model, {}).get(way)
            found[model] = Found(block["top1"], tuple(block["interval"]["top1"]), "") if block else None
        gaps = differences(scores)
        notes = dict.fromkeys(found, _WAYS[way])
        yield _row(
            f"classification top-1, {name}",
            found,
            notes,
            {model: gaps.get((f"{way}/top1", model)) for model in found},
            metrics,
        )


def sentences(metrics: Mapping[str, Any]) -> list[str]:
    """What the table says, plainly: region accuracy against each other model, and what else is shown, or is not."""
    candidate = metrics["headline"]["candidate"]
    if not candidate:
        return ["There is no CLOC model in this comparison."]
    if not metrics["headline"]["baselines"]:
        return ["There is no plain CLIP in this comparison: nothing to hold CLOC against."]
    return [*_gains(metrics, candidate), *losses(metrics), *_open(metrics, candidate)]


def brief(metrics: Mapping[str, Any]) -> str:
    """One line: region accuracy, and on how many figures the candidate is below a plain CLIP."""
    candidate = metrics["headline"]["candidate"]
    if not candidate or not metrics["headline"]["baselines"]:
        return " ".join(sentences(metrics))
    lost = losses(metrics)
    if len(lost) > 1:
        lost = [f"It is below a plain CLIP on {len(lost)} figures; the report names each."]
    return " ".join([*_gains(metrics, candidate), *lost])


def _gains(metrics: Mapping[str, Any], candidate: str) -> Iterator[str]:
    first = metrics["headline"]["split"]
    own = figure(metrics, split=first, model=candidate, path="region/mAcc")
    gaps = differences(metrics["splits"][first])
    for baseline in metrics["headline"]["baselines"]:
        other = figure(metrics, split=first, model=baseline, path="region/mAcc")
        if own is None or other is None:
            continue
        times = f"{own.value / other.value:.1f} times " if other.value else ""
        gap = gaps.get(("region/mAcc", baseline))
        yield (
            f"Region mAcc on {first}: {candidate} ({reader_name(own.reader)}) {100 * own.value:.1f}, {times}"
            f"the {100 * other.value:.1f} of {baseline} ({reader_name(other.reader)})"
            + (f"; {_judged(gap, candidate, baseline)}." if gap else ".")
        )


def _judged(gap: Difference, candidate: str, baseline: str) -> str:
    if not gap.better:
        return f"no difference is shown: {gap.text}"
    return f"{candidate if gap.better == 'a' else baseline} is better: {gap.text}"


def losses(metrics: Mapping[str, Any]) -> list[str]:
    """One sentence for each figure on which a baseline is shown to be better; one sentence when none is."""
    if not any(split.get("differences") for split in metrics["splits"].values()):
        return [UNPAIRED]
    table, candidate = headline(metrics), metrics["headline"]["candidate"]
    found: list[str] = []
    for baseline in metrics["headline"]["baselines"]:
        for row in table.rows:
            own, theirs = row.cells[table.models.index(candidate)], row.cells[table.models.index(baseline)]
            if theirs.difference is not None and theirs.difference.better == "b":
                found.append(
                    f"{candidate} loses to {baseline} on {row.label}: {own.text} against {theirs.text}, "
                    f"{theirs.difference.text}."
                )
    return found or [f"No plain CLIP is shown to be better than {candidate} on any figure of the table."]


def _open(metrics: Mapping[str, Any], candidate: str) -> Iterator[str]:
    """The figures on which neither is shown to be better; baselines with the same ones in one sentence."""
    table = headline(metrics)
    found: dict[str, list[str]] = {}
    for baseline in metrics["headline"]["baselines"]:
        gaps = [(row.label, row.cells[table.models.index(baseline)].difference) for row in table.rows]
        labels = [label for label, gap in gaps if gap is not None and not gap.better and label != "region mAcc"]
        if labels:
            found.setdefault(", ".join(labels), []).append(baseline)
    for figures, baselines in found.items():
        yield f"Between {candidate} and {', '.join(baselines)} no difference is shown on {figures}."


def headline_table(metrics: Mapping[str, Any]) -> Table:
    """The headline table for a terminal; what is shown to be better is bold."""
    table = headline(metrics)
    split = metrics["headline"]["split"]
    result = Table(title=f"CLIP and CLOC on the split {split!r} (percent; 95 % interval)", title_justify="left")
    result.add_column("")
    for model in table.models:
        result.add_column(Text(model), justify="right")
    for row in table.rows:
        result.add_row(Text(row.label), *map(_rich, row.cells))
    return result


def _rich(cell: Cell) -> Text:
    text = Text(cell.text, style="bold" if cell.best else "")
    small = ", ".join(part for part in (cell.note, cell.range) if part)
    return text.append(f"\n{small}", style="dim not bold") if small else text


def headline_markdown(metrics: Mapping[str, Any]) -> str:
    """The headline table and its sentences as Markdown."""
    table = headline(metrics)
    lines = [
        f"## CLIP and CLOC on the split `{metrics['headline']['split']}`",
        "",
        "| | " + " | ".join(escape(model) for model in table.models) + " |",
        "|---|" + "---:|" * len(table.models),
    ]
    for row in table.rows:
        cells = []
        for cell in row.cells:
            small = ", ".join(part for part in (cell.note, cell.range) if part)
            shown = f"**{cell.text}**" if cell.best else cell.text
            cells.append(f"{shown} ({small})" if small else shown)
        lines.append(f"| {escape(row.label)} | " + " | ".join(cells) + " |")
    lines += ["", f"Percent; in brackets the reader and the 95 % interval over images. {BOLD}", ""]
    lines += [f"- {escape(sentence)}" for sentence in (*sentences(metrics), *_leakage(metrics), SUPERVISION)]
    return "\n".join(lines) + "\n"


BOLD = (
    "Bold: better than the candidate, and of the candidate's own better than all others, by the 95 % interval of the "
    "paired difference over images."
)


def _leakage(metrics: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each split of which it is known how many images were trained on."""
    for name, split in metrics["splits"].items():
        leaked = split.get("leaked")  # not in what earlier releases wrote
        if leaked is not None:
            yield (
                f"{leaked['exact'] + leaked['near']} of the {leaked['images']} images of {name} occur in "
                f"{leaked['split']} ({leaked['exact']} exact, {leaked['near']} near)."
            )
