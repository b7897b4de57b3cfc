"""Questions about regions, made from the regions table: referring (box -> text) and grounding (text -> box).

    refer   "what is in [12 40 55 90]?"  -> "red key"
    ground  "where is the red key?"      -> "[12 40 55 90]"

A phrase is grounded only where it is unambiguous in its image. Labels of the regions serve evaluation alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from cloc.boxes import BoxesXYXY, Letterbox, as_boxes
from cloc.mllm.boxtext import box_to_text


class Task(StrEnum):
    """What a question asks for."""

    REFER = "refer"
    GROUND = "ground"


TEMPLATES: dict[Task, tuple[str, ...]] = {
    Task.REFER: (
        "what is in {box}?",
        "what does {box} show?",
        "name the object in {box}.",
        "what can be seen at {box}?",
        "describe {box} in a few words.",
    ),
    Task.GROUND: (
        "where is the {phrase}?",
        "find the {phrase}.",
        "locate the {phrase} in the image.",
        "give the box of the {phrase}.",
        "which region shows the {phrase}?",
    ),
}
_ARTICLES = ("a ", "an ", "the ")


@dataclass(frozen=True)
class Region:
    """A region of one image.

    Attributes:
        box: xyxy in [0, 1] of the original image, shape (4,).
        padded: the same in the padded network input.
        text: what it is called, lower case, without an article.
        label: its class name, or "".
        unique: the text fits no other region of the image.
    """

    box: BoxesXYXY
    padded: BoxesXYXY
    text: str
    label: str
    unique: bool


@dataclass(frozen=True)
class Turn:
    """A question about a region, and its answer."""

    task: Task
    question: str
    answer: str
    region: Region


def regions_of(rows: Sequence[dict[str, Any]], *, frame: Letterbox) -> list[Region]:
    """The regions of one image, from its rows of the regions table; those without a text are left out.

    Args:
        rows: rows by the data contract.
        frame: map of the image to the padded network input.
    """
    rows = [row for row in rows if plain(row["text"])]
    boxes = as_boxes([[row["x1"], row["y1"], row["x2"], row["y2"]] for row in rows])
    padded, texts = frame.to_padded(boxes), [plain(row["text"]) for row in rows]
    return [
        Region(
            box=boxes[index],
            padded=padded[index],
            text=text,
            label=row["label"],
            unique=not any(_may_be_same(text, other) for place, other in enumerate(texts) if place != index),
        )
        for index, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]


def plain(text: str) -> str:
    """A region's text in lower case, without surplus blanks and leading article."""
    text = " ".join(text.lower().split())
    for article in _ARTICLES:
        text = text.removeprefix(article)
    return text


def _may_be_same(first: str, second: str) -> bool:
    """Whether one text may describe what the other does: "key" and "red key", but not "red key" and "blue key"."""
    one, two = set(first.split()), set(second.split())
    return one <= two or two <= one


def ask(region: Region, task: Task, *, rng: np.random.Generator) -> Turn:
    """A question about the region in one of the task's wordings."""
    wording = TEMPLATES[task][int(rng.integers(len(TEMPLATES[task])))]
    box = box_to_text(region.padded)
    if task is Task.REFER:
        return Turn(task, wording.format(box=box), region.text, region)
    return Turn(task, wording.format(phrase=region.text), box, region)


def sampled_questions(regions: Sequence[Region], *, limit: int, rng: np.random.Generator) -> list[Turn]:
    """At most `limit` of an image's questions, in random order."""
    turns = questions(regions, rng=rng)
    return [turns[index] for index in rng.permutation(len(turns))[:limit]]


def questions(regions: Sequence[Region], *, rng: np.random.Generator) -> list[Turn]:
    """All that is asked about an image: every region by its box, and every unambiguous one by its text."""
    tasks = [(region, task) for region in regions for task in Task if task is Task.REFER or region.unique]
    return [ask(region, task, rng=rng) for region, task in tasks]
