"""All figures of a comparison as tables, one a protocol: the same for the page, for Markdown, and as CSV and JSON.

Pure functions of `metrics.json`; no torch. A protocol without figures has no table.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cloc.evaluation.summary import DASH, MINUS, known, reader_name, signed
from cloc.pages import escape

Scores = Mapping[str, Any]

NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_iou": "mean IoU",
    "mean_rank": "mean rank",
    "auc": "AUC",
    "inside": "cosine inside",
    "outside": "cosine outside",
    "1_attributes": "one swapped:",
    "2_attributes": "two swapped:",
    "3_attributes": "three swapped:",
}
_DECIMALS = {"mean_rank": 2, "inside": 3, "outside": 3, "gap": 3}  # all others are percent
SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class Value:
    """A figure of a table; `text` and `range` as shown, a dash and "" where there is none."""

    text: str
    range: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A row: its labels, its figures, and how many items they are of."""

    labels: tuple[str, ...]
    values: tuple[Value, ...]
    items: int


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        name: of the file and of the protocol.
        title, note: for people.
        labels, figures: keys of the columns: of text, and of figures.
        rows: in order.
    """

    name: str
    title: str
    note: str
    labels: tuple[str, ...]
    figures: tuple[str, ...]
    rows: tuple[Line, ...]

    @property
    def heads(self) -> tuple[str, ...]:
        """The figures' columns as people call them."""
        return tuple(map(head, self.figures))


def sheets(metrics: Mapping[str, Any]) -> list[Sheet]:
    """All tables that there are figures for, in the order of the page."""
    splits = metrics["splits"]
    found = [
        _sheet(
            "region_recognition",
            "Region recognition",
            "mAcc: mean over classes; top-1: mean over boxes.",
            ("split", "model", "reader"),
            _of_rows(splits, lambda row: row.get("region")),
        ),
        _sheet(
            "region_sizes",
            "Region recognition by size of the box",
            "Area in pixels of the original image, as COCO has it: small below 32², large from 96².",
            ("split", "model", "reader"),
            _of_rows(splits, lambda row: merged(row.get("region", {}).get("by_size", {}), order=SIZES)),
        ),
        _sheet(
            "region_retrieval",
            "Region-text retrieval",
            "",
            ("split", "model", "reader"),
            _of_rows(splits, lambda row: merged(row.get("region_retrieval", {}))),
        ),
        _sheet(
            "attributes",
            "Attributes, against hard negatives",
            "Accuracy: the own sentence is nearest; mean rank: of the own sentence, 1 is best.",
            ("split", "model", "reader"),
            _of_rows(splits, lambda row: merged(row.get("attributes", {}))),
        ),
        _sheet(
            "linear_probe",
            "Linear probe on frozen region features",
            "",
            ("split", "model", "reader"),
            _of_rows(splits, lambda row: row.get("probe")),
        ),
        _sheet(
            "retrieval",
            "Image-text retrieval",
            "",
            ("split", "model"),
            _of_models(splits, "retrieval", merged),
        ),
        _sheet(
            "grounding",
            "Grounding",
            "",
            ("split", "model"),
            _of_models(splits, "grounding"),
        ),
        _sheet(
            "coherence",
            "Coherence of spatial tokens",
            "Mean cosine with a box's tokens of those inside and of those outside of it; AUC: the probability that one "
            "inside is nearer.",
            ("split", "model"),
            _of_models(splits, "coherence"),
        ),
        _sheet(
            "classification",
            "Image classification",
            "",
            ("set", "model", "classes by"),
            _classifications(metrics),
        ),
        _differences(metrics),
    ]
    return [sheet for sheet in found if sheet.rows]


_WAYS = {"i2t": "image→text", "t2i": "text→image", "r2t": "region→text", "t2r": "text→region"}
_MEANS = {"plain": "plain names", "templates": "templates", "probe": "linear probe"}


def head(key: str) -> str:
    """A figure's column as people call it: "r2t/R@1" is "region→text R@1"."""
    return " ".join(_WAYS.get(part, NAMES.get(part, part.replace("_", " "))) for part in key.split("/"))


def merged(blocks: Mapping[str, Scores], *, order: Sequence[str] = ()) -> dict[str, Any] | None:
    """Blocks of scores as one whose figures are named "<block>/<figure>"; None without any.

    Args:
        blocks: by name.
        order: names that come first, in this order.
    """
    names = [*(name for name in order if name in blocks), *(name for name in blocks if name not in order)]
    found: dict[str, Any] = {"interval": {}}
    for name in names:
        for key, interval in blocks[name]["interval"].items():
            if blocks[name].get("n") != 0:
                found[f"{name}/{key}"], found["interval"][f"{name}/{key}"] = blocks[name].get(key), interval
    return found if len(found) > 1 else None


def _of_rows(
    splits: Mapping[str, Scores], part: Callable[[Scores], Scores | None]
) -> Iterator[tuple[tuple[str, ...], Scores]]:
    """(split, model, reader) and scores of what `part` finds in each row."""
    for split, scores in splits.items():
        for row in scores["rows"]:
            if block := part(row):
                yield (split, row["model"], reader_name(row["reader"])), block


def _of_models(
    splits: Mapping[str, Scores], protocol: str, part: Callable[[Scores], Scores | None] = lambda found: found
) -> Iterator[tuple[tuple[str, ...], Scores]]:
    for split, scores in splits.items():
        for model, found in scores.get(protocol, {}).items():
            if block := part(found):
                yield (split, model), block


def _classifications(metrics: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Scores]]:
    for name, found in metrics.get("classification", {}).items():
        for model, ways in found["models"].items():
            for way, block in ways.items():
                if way in _MEANS and block:
                    yield (name, model, _MEANS[way]), block


def _sheet(
    name: str,
    title: str,
    note: str,
    labels: tuple[str, ...],
    found: Iterable[tuple[tuple[str, ...], Scores]],
) -> Sheet:
    blocks = list(found)
    figures = tuple(dict.fromkeys(key for _, block in blocks for key in block["interval"]))
    rows = [Line(texts, tuple(value(block, key) for key in figures), int(block.get("n", 0))) for texts, block in blocks]
    return Sheet(name, title, note, labels, figures, tuple(rows))


def value(block: Scores, key: str) -> Value:
    """A figure of a block of scores as a table shows it."""
    if block.get(key) is None or block.get("n") == 0 or key not in block["interval"]:
        return Value(DASH)
    low, high = block["interval"][key]
    digits = _DECIMALS.get(key.rpartition("/")[2])

    def shown(number: float) -> str:
        return decimal(100 * number, 1) if digits is None else decimal(number, digits)

    span = f"{shown(low)}{DASH if low >= 0 else ' to '}{shown(high)}"
    return Value(shown(block[key]), span, float(block[key]), float(low), float(high))


def decimal(number: float, digits: int, *, sign: str = "") -> str:
    """A number with a true minus, and without one before a zero. `sign` is "+" for differences."""
    text = f"{number:{sign}.{digits}f}"
    return text.lstrip("+-") if not float(text) else text.replace("-", MINUS)


def _differences(metrics: Mapping[str, Any]) -> Sheet:
    """The candidate less each other model, on every figure."""
    rows = []
    for split, scores in (*metrics["splits"].items(), *metrics.get("classification", {}).items()):
        for item in scores.get("differences", ()):
            if not known(item):
                continue
            low, high = item["interval"]
            key = item["figure"].rpartition("/")[2]
            better = {"a": item["a"]["model"], "b": item["b"]["model"]}.get(item["better"], "not shown")
            texts = (split, item["figure"], _named(item["a"]), _named(item["b"]), better)
            rows.append(Line(texts, (_gap(key, item["value"], low, high),), 0))
    return Sheet(
        "differences",
        "Paired differences",
        "The candidate's best reader less each other model's; a model is better where the 95 % interval leaves zero "
        "out.",
        ("split", "figure", "candidate", "other", "better"),
        ("difference",),
        tuple(rows),
    )


def _named(side: Mapping[str, Any]) -> str:
    return f"{side['model']}, {reader_name(side['reader'])}" if side.get("reader") else str(side["model"])


def _gap(key: str, found: float, low: float, high: float) -> Value:
    digits = _DECIMALS.get(key)
    if digits is None:
        return Value(signed(found), f"{signed(low)} to {signed(high)}", found, low, high)
    shown, *ends = (decimal(number, digits, sign="+") for number in (found, low, high))
    return Value(shown, " to ".join(ends), found, low, high)


def brief(sheet: Sheet, split: str) -> Sheet:
    """A table of splits cut down to one split, and there to each model's best reader by the first figure."""
    chosen: dict[tuple[str, ...], Line] = {}
    for row in sheet.rows:
        if row.labels[0] == split:
            before = chosen.get(row.labels[:2])
            if before is None or (row.values[0].value or 0.0) > (before.values[0].value or 0.0):
                chosen[row.labels[:2]] = row
    return replace(sheet, rows=tuple(chosen.values()))


def markdown(found: Sequence[Sheet]) -> str:
    """The tables as Markdown."""
    lines: list[str] = []
    for sheet in found:
        heads = [*sheet.labels, *sheet.heads, *(["items"] if _counted(sheet) else [])]
        lines += [f"### {sheet.title}", ""]
        lines += ["| " + " | ".join(map(escape, heads)) + " |"]
        lines += ["|" + "---|" * len(sheet.labels) + "---:|" * (len(heads) - len(sheet.labels))]
        for row in sheet.rows:
            cells = [escape(text) for text in row.labels]
            cells += [f"{item.text} ({item.range})" if item.range else item.text for item in row.values]
            cells += [f"{row.items:,}"] if _counted(sheet) else []
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *([sheet.note, ""] if sheet.note else [])]
    return "\n".join(lines)


def _counted(sheet: Sheet) -> bool:
    return any(row.items for row in sheet.rows)


def records(sheet: Sheet) -> tuple[list[str], list[list[Any]]]:
    """A table as columns and rows for programs: shares, not percent; each figure with its interval's ends."""
    columns = list(sheet.labels)
    for key in sheet.figures:
        columns += [key, f"{key}_low", f"{key}_high"]
    rows = [
        [*row.labels, *(number for item in row.values for number in (item.value, item.low, item.high)), row.items]
        for row in sheet.rows
    ]
    return [*columns, "items"], rows


def as_csv(sheet: Sheet) -> str:
    """A table as CSV. Texts that a spreadsheet would run as a formula get a quote in front."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns, rows = records(sheet)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"'{item}" if isinstance(item, str) and item[:1] in "=+-@\t\r" else item for item in row])
    return stream.getvalue()


def as_json(sheet: Sheet) -> str:
    """A table as JSON: {"columns": [...], "data": [[...], ...]}, which is the form of MLflow's tables."""
    columns, rows = records(sheet)
    return json.dumps({"columns": columns, "data": rows}, indent=1, ensure_ascii=False) + "\n"
