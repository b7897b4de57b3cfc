"""What an answer is worth, by its task's rule.

    refer, attribute, relation, count, verify, other   right where the answer is the truth, word for word
    refer                                              also by noun: it ends with the class name (without one: the
                                                       truth's last word)
    ground                                             one box with IoU >= 0.5; what is no box is wrong, and counted
    ground_all                                         F1 of the boxes, matched at IoU >= 0.5
    absent                                             right where it says that there is none: the rest is
                                                       hallucination (POPE)
    describe, grounded_caption                         F1 of the words (as SQuAD counts them), boxes left out

No torch.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from cloc import boxes
from cloc.boxes import BoxesXYXY, Letterbox
from cloc.errors import DataError
from cloc.mllm.boxtext import text_to_box, texts_to_boxes
from cloc.mllm.conversation import NONE, Conversation, Task
from cloc.mllm.instructions import plain

MIN_IOU = 0.5
_BOXES = re.compile(r"\[[\d\s]*\]")
_WORDS = re.compile(r"[^\W_]+(?:'\w+)?")

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Prediction:
    """One answer, judged.

    Attributes:
        source: where the question comes from: "" for the test split, else the file's name.
        key: of the image.
        task: name of a `Task`.
        question, answer, truth: texts; boxes in them are bins of the padded network input.
        value: what the task's figure is the mean of, 0 to 1.
        noun: refer: whether the answer names the class; others None.
        iou: ground: with the right box, 0 where the answer is no box; others None.
        parsed: ground, ground_all, absent: whether the answer is in the format; others None.
        asked, right, said: boxes of the question, of the truth and of the answer, in [0, 1] of the original image.
    """

    source: str
    key: str
    task: str
    question: str
    answer: str
    truth: str
    value: float
    noun: bool | None = None
    iou: float | None = None
    parsed: bool | None = None
    asked: list[Corners] = field(default_factory=list)
    right: list[Corners] = field(default_factory=list)
    said: list[Corners] = field(default_factory=list)

    @property
    def correct(self) -> bool:
        """Whether the answer is right, or shares half of its words or boxes with the truth."""
        return self.value >= 0.5


def judge(conversation: Conversation, answer: str, *, key: str, frame: Letterbox, source: str = "") -> Prediction:
    """Judges the answer to a conversation's last question.

    Args:
        conversation: with the truth.
        answer: of the model.
        key: of the image.
        frame: map between the image and the padded network input.
        source: see `Prediction`.
    """
    last, task = conversation.turns[-1], conversation.task
    said_B4, well_formed = texts_to_boxes(answer)
    value, noun, iou, parsed = 0.0, None, None, None
    if task is Task.GROUND:
        box = text_to_box(answer)
        parsed = box is not None or says_none(answer)
        iou = 0.0 if box is None else float(boxes.iou(box[None], conversation.truth[:1])[0, 0])
        value = float(iou >= MIN_IOU)
    elif task is Task.GROUND_ALL:
        parsed, value = well_formed or says_none(answer), _box_f1(said_B4, conversation.truth)
    elif task is Task.ABSENT:
        value, parsed = float(says_none(answer)), well_formed or says_none(answer)
    elif task in (Task.DESCRIBE, Task.GROUNDED_CAPTION):
        value = word_f1(answer, last.answer)
    else:
        value = float(_same(answer, last.answer))
        if task is Task.REFER:
            noun = _names(answer, label=conversation.label, text=last.answer)
    return Prediction(
        source=source,
        key=key,
        task=task.value,
        question=last.question,
        answer=answer,
        truth=last.answer,
        value=value,
        noun=noun,
        iou=iou,
        parsed=parsed,
        asked=_original(texts_to_boxes(last.question)[0], frame),
        right=_original(conversation.truth, frame),
        said=_original(said_B4, frame),
    )


def word_f1(answer: str, truth: str) -> float:
    """F1 of the words of two texts, case and boxes left out; two empty ones are equal."""
    said, right = (Counter(_WORDS.findall(_BOXES.sub(" ", text).lower())) for text in (answer, truth))
    if not said or not right:
        return float(said == right)
    shared = sum((said & right).values())
    return 2 * shared / (said.total() + right.total())


def _original(padded_B4: BoxesXYXY, frame: Letterbox) -> list[Corners]:
    rows = frame.from_padded(padded_B4) if len(padded_B4) else padded_B4
    return [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in rows]


def says_none(answer: str) -> bool:
    return plain(answer).rstrip(".") == NONE


def _same(answer: str, truth: str) -> bool:
    return plain(answer).rstrip(".") == plain(truth).rstrip(".")


def _names(answer: str, *, label: str, text: str) -> bool:
    """Whether the answer ends with the class name; without one, with the last word of the region's text."""
    noun = plain(label).split() or plain(text).split()[-1:]
    return plain(answer).rstrip(".").split()[-len(noun) :] == noun


def _box_f1(said_A4: BoxesXYXY, right_B4: BoxesXYXY) -> float:
    """F1 of boxes, each matched once, the best pairs first."""
    if not len(said_A4) or not len(right_B4):
        return float(len(said_A4) == len(right_B4))
    overlap_AB, hits = boxes.iou(said_A4, right_B4), 0
    while overlap_AB.max() >= MIN_IOU:
        row, column = np.unravel_index(overlap_AB.argmax(), overlap_AB.shape)
        overlap_AB[row], overlap_AB[:, column], hits = 0, 0, hits + 1
    return 2 * hits / (len(said_A4) + len(right_B4))


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        for item in predictions:
            stream.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")


def read_predictions(path: Path) -> list[Prediction]:
    """Reads what `write_predictions` wrote. Raises DataError when there is none, or it is of another release."""
    try:
        return [Prediction(**json.loads(line)) for line in path.read_text().splitlines()]
    except OSError as error:
        raise DataError(f"no answers in {path.parent} ({error.strerror}: {path.name}); run `cloc tune` first") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: not answers of this release ({error}); run `cloc tune` again") from None
