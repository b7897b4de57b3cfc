"""How well an adapter refers and grounds on images it was not tuned on: greedy answers, compared with the truth."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cloc import boxes
from cloc.boxes import Letterbox
from cloc.mllm.boxtext import text_to_box
from cloc.mllm.chat import ChatFormat, collate_prompts
from cloc.mllm.instructions import Task, Turn, plain, questions
from cloc.mllm.model import Adapter
from cloc.mllm.stream import Picture
from cloc.model.factory import autocast
from cloc.model.processing import normalize

_SILENCE = 5.0
_MOST_TOKENS = 64  # of an answer; a limit for models that do not stop


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        key: of the image.
        task: "refer" or "ground".
        question, answer, truth: texts; boxes in them are bins of the padded network input.
        correct: refer: the answer is the region's text; ground: IoU with the region >= 0.5.
        noun: refer: the answer names the region's class (the last words of its text); ground: None.
        parsed: ground: the answer is a box; refer: None.
        iou: ground: with the region; 0 where the answer is no box; refer: None.
        box: the region, xyxy in [0, 1] of the original image.
        answered: ground: the answered box in the same frame, or None.
    """

    key: str
    task: str
    question: str
    answer: str
    truth: str
    correct: bool
    noun: bool | None = None
    parsed: bool | None = None
    iou: float | None = None
    box: tuple[float, ...] = ()
    answered: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Scores:
    """Shares over all questions of a kind; nan where there is none.

    Attributes:
        refer_accuracy: answers that are exactly the region's text.
        refer_noun_accuracy: answers that name the region's class.
        ground_accuracy: boxes with IoU >= 0.5; answers that are no box count as wrong.
        ground_iou: mean IoU, 0 for answers that are no box.
        parse_failures: share of grounding answers that are no box.
        n_refer, n_ground, n_images: how many.
    """

    refer_accuracy: float
    refer_noun_accuracy: float
    ground_accuracy: float
    ground_iou: float
    parse_failures: float
    n_refer: int
    n_ground: int
    n_images: int


@dataclass(frozen=True)
class _Question:
    picture: Picture
    turn: Turn
    prompt: list[int]


def evaluate(
    adapter: Adapter, chat: ChatFormat, pictures: Iterable[Picture], *, seed: int, batch_size: int, precision: str
) -> Iterator[Prediction]:
    """Answers every question about the pictures, a batch of questions at a time.

    Args:
        adapter: the tuned model.
        chat: its format.
        pictures: of the test split.
        seed: of the questions' wordings.
        batch_size: questions a batch.
        precision: as in section `adapter`.
    """
    started = said = time.monotonic()
    done, held = 0, list[_Question]()
    for question in _ask(chat, pictures, seed=seed):
        held.append(question)
        if len(held) < batch_size:
            continue
        yield from _answer(adapter, chat, held, precision=precision)
        done, held = done + len(held), []
        if time.monotonic() - said > _SILENCE:
            said = time.monotonic()
            print(f"adapter: {done} questions answered, {done / (said - started):.0f} a second", flush=True)
    if held:
        yield from _answer(adapter, chat, held, precision=precision)


def _ask(chat: ChatFormat, pictures: Iterable[Picture], *, seed: int) -> Iterator[_Question]:
    for number, picture in enumerate(pictures):
        rng = np.random.default_rng((seed, number))
        for turn in questions(picture.regions, rng=rng):
            yield _Question(picture, turn, chat.prompt(turn, key=picture.key))


@torch.no_grad()
def _answer(adapter: Adapter, chat: ChatFormat, asked: list[_Question], *, precision: str) -> Iterator[Prediction]:
    device = adapter.model.device
    ids_BL, mask_BL = collate_prompts([item.prompt for item in asked], pad_id=chat.tokenizer.pad_token_id)
    pixels = normalize(torch.stack([item.picture.pixels_SS3 for item in asked]).to(device))
    longest = min(_MOST_TOKENS, chat.context_length - ids_BL.shape[1])
    with autocast(precision, device):
        output: Tensor = adapter.model.generate(
            input_ids=ids_BL.to(device),
            attention_mask=mask_BL.to(device),
            pixel_values=pixels,
            max_new_tokens=min(longest, chat.longest_answer([item.turn for item in asked]) + 4),
            do_sample=False,
            num_beams=1,
            eos_token_id=chat.end_id,
            pad_token_id=chat.tokenizer.pad_token_id,
        )
    for item, ids in zip(asked, output[:, ids_BL.shape[1] :].tolist(), strict=True):
        yield judge(item.turn, chat.answer(ids), key=item.picture.key, frame=item.picture.frame)


def judge(turn: Turn, answer: str, *, key: str, frame: Letterbox) -> Prediction:
    """Compares an answer with the truth."""
    region = turn.region
    base = Prediction(
        key=key,
        task=turn.task.value,
        question=turn.question,
        answer=answer,
        truth=turn.answer,
        correct=plain(answer) == plain(turn.answer),
        box=tuple(float(value) for value in region.box),
    )
    if turn.task is Task.REFER:
        return replace(base, noun=_names(answer, label=region.label, text=region.text))
    box = text_to_box(answer)
    if box is None:
        return replace(base, correct=False, parsed=False, iou=0.0)
    answered = frame.from_padded(box[None])
    overlap = float(boxes.iou(answered, region.box[None])[0, 0])
    corners = tuple(float(value) for value in answered[0])
    return replace(base, correct=overlap >= 0.5, parsed=True, iou=overlap, answered=corners)


def _names(answer: str, *, label: str, text: str) -> bool:
    """Whether the answer ends with the class name; without one, with the last word of the region's text."""
    noun = plain(label).split() or plain(text).split()[-1:]
    return plain(answer).split()[-len(noun) :] == noun


def score(predictions: Iterable[Prediction]) -> Scores:
    """Shares over predictions."""
    items = list(predictions)
    refer = [item for item in items if item.task == Task.REFER.value]
    ground = [item for item in items if item.task == Task.GROUND.value]
    return Scores(
        refer_accuracy=_mean([item.correct for item in refer]),
        refer_noun_accuracy=_mean([bool(item.noun) for item in refer]),
        ground_accuracy=_mean([item.correct for item in ground]),
        ground_iou=_mean([item.iou or 0.0 for item in ground]),
        parse_failures=_mean([not item.parsed for item in ground]),
        n_refer=len(refer),
        n_ground=len(ground),
        n_images=len({item.key for item in items}),
    )


def _mean(values: list[float] | list[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        for item in predictions:
            stream.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
