"""What is said about one image: conversations of questions and answers, which may point at regions.

A box stands in a text as `boxtext` writes it. Where a model has a region sampler, `REGION_TOKEN` stands behind the box
of a question, and the sampler's embedding of that region takes its place.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from cloc.boxes import BoxesXYXY

IMAGE_TOKEN = "<image>"  # noqa: S105 (a token of LLaVA's, no password)
REGION_TOKEN = "<region>"  # noqa: S105 (a token of the vocabulary, no password)

NONE = "there is none"
"""What is answered where the box of something is asked for that is not there."""


class Task(StrEnum):
    """What a conversation asks for."""

    DESCRIBE = "describe"
    """The image in a caption."""
    REFER = "refer"
    """What a region shows."""
    ATTRIBUTE = "attribute"
    """How a region's object looks."""
    RELATION = "relation"
    """Where a region lies as seen from another one."""
    COUNT = "count"
    """How many of a kind there are, in the image or in a region."""
    GROUND = "ground"
    """The box of a phrase."""
    GROUND_ALL = "ground_all"
    """The boxes of all that a phrase fits."""
    ABSENT = "absent"
    """The box of a phrase that fits nothing: there is none."""
    GROUNDED_CAPTION = "grounded_caption"
    """The image in a caption, with the boxes of what it names."""
    VERIFY = "verify"
    """Yes or no, about the image or a region."""
    OTHER = "other"
    """Anything else: conversations that were read from files."""


@dataclass(frozen=True)
class Turn:
    """A question and its answer; boxes stand in them as text."""

    question: str
    answer: str


def no_boxes() -> BoxesXYXY:
    """Boxes (0, 4)."""
    return np.zeros((0, 4))


@dataclass(frozen=True)
class Conversation:
    """Turns about one image.

    Attributes:
        task: what is asked for.
        turns: in their order; a later one may build on earlier ones.
        regions: boxes (R, 4) of the padded network input, one a REGION_TOKEN of the turns, in their order.
        truth: boxes (T, 4) of the padded network input that the last answer names; what grounding is measured by.
        label: class name of the region in question, or ""; what referring is measured by besides the answer.
    """

    task: Task
    turns: tuple[Turn, ...]
    regions: BoxesXYXY = field(default_factory=no_boxes)
    truth: BoxesXYXY = field(default_factory=no_boxes)
    label: str = ""
