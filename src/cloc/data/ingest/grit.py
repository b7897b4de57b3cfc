"""Reader: GRIT (Kosmos-2, https://arxiv.org/abs/2306.14824), texts from the web with boxes that a model drew.

A row has `caption` and two lists, `noun_chunks` and `ref_exps`, of `[start, end, x1, y1, x2, y2, score]`: the text of
the region is `caption[start:end]`, the box is in shares of the image.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cloc.data.ingest.records import LabeledBox

SOURCE = "grit"
_LISTS = ("noun_chunks", "ref_exps")


@dataclass(frozen=True)
class SampleLabels:
    """What a row of GRIT says of its image.

    Attributes:
        alt_text: its text from the web, or ().
        boxes: its regions, those that stand twice once.
        problems: what could not be read, as reasons for the quarantine table.
    """

    alt_text: tuple[str, ...] = ()
    boxes: tuple[LabeledBox, ...] = ()
    problems: tuple[str, ...] = ()


def labels_of_json(meta: Mapping[str, Any]) -> SampleLabels:
    """The labels in a row of GRIT, or in the JSON of a sample that img2dataset made with its columns.

    A row without these columns gives its caption alone, one without a caption nothing.
    """
    caption = meta.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        return SampleLabels()
    boxes: dict[tuple[Any, ...], LabeledBox] = {}
    problems = []
    for name in _LISTS:
        for index, entry in enumerate(_entries(meta.get(name))):
            box = _box(entry, caption)
            if isinstance(box, str):
                problems.append(f"box: {name}[{index}]: {box}")
                continue
            known = boxes.get((box.xyxy, box.text))
            # A chunk that an expression does not widen stands in both lists.
            boxes[box.xyxy, box.text] = box if known is None or box.score > known.score else known
    return SampleLabels(alt_text=(caption,), boxes=tuple(boxes.values()), problems=tuple(problems))


def _entries(value: Any) -> Iterator[Any]:
    """The entries of a list, which CSV and some writers of JSON have as text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):  # text that is no JSON is told below as no list
            value = json.loads(value)
    if isinstance(value, list | tuple):
        yield from value
    elif value is not None:
        yield value  # told as a problem of its own


def _box(entry: Any, caption: str) -> LabeledBox | str:
    """A region, or why the entry is none."""
    if not isinstance(entry, list | tuple) or len(entry) != 7 or not all(map(_is_number, entry)):
        return f"expected [start, end, x1, y1, x2, y2, score], got {str(entry)[:80]}"
    start, end, x1, y1, x2, y2, score = (float(value) for value in entry)
    if not 0 <= start < end <= len(caption):
        return f"[{start:g}, {end:g}] is no part of its caption of {len(caption)} letters"
    return LabeledBox(xyxy=(x1, y1, x2, y2), text=caption[int(start) : int(end)], score=score, source=SOURCE)


def _is_number(value: Any) -> bool:
    """Whether a value can be a position, a share or a score; no such number is large."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)
