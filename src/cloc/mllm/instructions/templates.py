"""The wordings of questions: several for each form, of which some are held back from training.

Fields: `{box}` and `{other}` are regions, `{phrase}` and `{plural}` texts, `{a}` a text with its indefinite article
where it takes one, `{than}` the text of another region, `{be}` "is" or "are". Answers have no variants: one format
each. An absent object is asked for in the wordings of those that are there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from string import Formatter


class Form(StrEnum):
    """A kind of question that has its own wordings."""

    DESCRIBE = "describe"
    REFER = "refer"
    ATTRIBUTE = "attribute"
    RELATION_BOXES = "relation_boxes"
    RELATION_PHRASES = "relation_phrases"
    COUNT_IMAGE = "count_image"
    COUNT_REGION = "count_region"
    GROUND = "ground"
    GROUND_ALL = "ground_all"
    GROUNDED_CAPTION = "grounded_caption"
    LIST = "list"
    VERIFY_IMAGE = "verify_image"
    VERIFY_REGION = "verify_region"


@dataclass(frozen=True)
class Wordings:
    """How a form is asked.

    Attributes:
        trained: in training and, unless asked otherwise, in the evaluation.
        held: never in training: they show whether a model understands more than the wordings that it knows.
    """

    trained: tuple[str, ...]
    held: tuple[str, ...]


WORDINGS: dict[Form, Wordings] = {
    Form.DESCRIBE: Wordings(
        trained=(
            "describe the image.",
            "what does the image show?",
            "write a caption of the image.",
            "what can be seen here?",
            "say in a sentence what is shown.",
        ),
        held=("give a short description of the picture.",),
    ),
    Form.REFER: Wordings(
        trained=(
            "what is in {box}?",
            "what does {box} show?",
            "name the object in {box}.",
            "what can be seen at {box}?",
            "describe {box} in a few words.",
        ),
        held=("tell me what {box} contains.",),
    ),
    Form.ATTRIBUTE: Wordings(
        trained=(
            "which words describe the {phrase} in {box}?",
            "what kind of {phrase} is in {box}?",
            "describe the {phrase} in {box}, without its name.",
            "how can the {phrase} in {box} be told from others?",
            "what is special about the {phrase} in {box}?",
        ),
        held=("give the attributes of the {phrase} in {box}.",),
    ),
    Form.RELATION_BOXES: Wordings(
        trained=(
            "where is {box} as seen from {other}?",
            "how does {box} lie with respect to {other}?",
            "what is the position of {box} relative to {other}?",
            "seen from {other}, where is {box}?",
            "compare the places: where does {box} lie, given {other}?",
        ),
        held=("if you start at {other}, where do you find {box}?",),
    ),
    Form.RELATION_PHRASES: Wordings(
        trained=(
            "where {be} the {phrase} as seen from the {than}?",
            "where in the image {be} the {phrase} with respect to the {than}?",
            "what is the position of the {phrase} relative to the {than}?",
            "seen from the {than}, where {be} the {phrase}?",
            "compare the places: where {be} the {phrase}, given the {than}?",
        ),
        held=("if you start at the {than}, where do you find the {phrase}?",),
    ),
    Form.COUNT_IMAGE: Wordings(
        trained=(
            "how many {plural} are there?",
            "how many {plural} does the image show?",
            "count the {plural}.",
            "what is the number of {plural} in the image?",
            "how many {plural} can be seen?",
        ),
        held=("give the count of {plural} in the picture.",),
    ),
    Form.COUNT_REGION: Wordings(
        trained=(
            "how many {plural} are in {box}?",
            "how many {plural} does {box} show?",
            "count the {plural} in {box}.",
            "what is the number of {plural} in {box}?",
            "in {box}, how many {plural} can be seen?",
        ),
        held=("give the count of {plural} within {box}.",),
    ),
    Form.GROUND: Wordings(
        trained=(
            "where {be} the {phrase}?",
            "find the {phrase}.",
            "locate the {phrase} in the image.",
            "give the box of the {phrase}.",
            "which region shows the {phrase}?",
        ),
        held=("point out the {phrase}.",),
    ),
    Form.GROUND_ALL: Wordings(
        trained=(
            "find all {plural}.",
            "where are all the {plural}?",
            "give the boxes of all {plural}.",
            "locate each of the {plural} in the image.",
            "which regions show {plural}?",
        ),
        held=("point out every one of the {plural}.",),
    ),
    Form.GROUNDED_CAPTION: Wordings(
        trained=(
            "describe the image with boxes.",
            "write a caption with the boxes of what it names.",
            "what does the image show, and where?",
            "describe the image and say where things are.",
            "say in a sentence what is shown, with boxes.",
        ),
        held=("give a short description of the picture with the places of what you name.",),
    ),
    Form.LIST: Wordings(
        trained=(
            "list the objects with their boxes.",
            "name the objects in the image and their boxes.",
            "which objects are there, and where?",
            "list what can be seen, with boxes.",
            "give names and boxes of the objects.",
        ),
        held=("enumerate the things in the picture with their places.",),
    ),
    Form.VERIFY_IMAGE: Wordings(
        trained=(
            "can {a} be seen in the image?",
            "does the image show {a}?",
            "{be} there {a} in the image?",
            "say yes or no: the image shows {a}.",
            "is it true that there {be} {a}?",
        ),
        held=("would you find {a} in this picture?",),
    ),
    Form.VERIFY_REGION: Wordings(
        trained=(
            "does {box} show {a}?",
            "can {a} be seen in {box}?",
            "{be} there {a} in {box}?",
            "say yes or no: {box} shows {a}.",
            "is it true that {box} shows {a}?",
        ),
        held=("would you find {a} at {box}?",),
    ),
}

_FIELDS = ("box", "other", "phrase", "than", "plural", "a", "be")


def fields_of(wording: str) -> list[str]:
    """The fields of a wording in the order in which they stand in it."""
    return [name for _, name, _, _ in Formatter().parse(wording) if name]


def bare_wordings() -> Iterator[str]:
    """All wordings, held ones too, with nothing in their fields: for the vocabulary of a decoder made from scratch."""
    blank = dict.fromkeys(_FIELDS, "") | {"be": "is are"}
    for wordings in WORDINGS.values():
        for wording in (*wordings.trained, *wordings.held):
            yield wording.format_map(blank)
