"""What an adapter answers to questions about images that it was not tuned on: greedily, and judged.

An image's features are computed once for all its questions. Questions with short answers are not kept waiting by
captions: those are answered in batches of their own.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from cloc.mllm.answering import generate
from cloc.mllm.chat import ChatFormat, Prompt
from cloc.mllm.conversation import Conversation, Task
from cloc.mllm.judging import Prediction, judge
from cloc.mllm.model import Adapter
from cloc.mllm.stream import Picture, stacked
from cloc.model.factory import autocast

_SILENCE = 5.0  # seconds between lines of progress
_PICTURES = 32  # images that the vision tower sees at once
_MARGIN = 8  # tokens that an answer may have beyond the longest right one of its batch
_LONG = (Task.DESCRIBE, Task.GROUNDED_CAPTION, Task.OTHER)


@dataclass(frozen=True)
class Questions:
    """What is asked about an image.

    Attributes:
        picture: the image.
        conversations: each ends with a question and its right answer.
        source: where they come from; see `Prediction`.
    """

    picture: Picture
    conversations: Sequence[Conversation]
    source: str = ""


@dataclass(frozen=True)
class _Asked:
    """A question on its way: its number among all, and the features (N, D) of its image."""

    number: int
    about: Questions
    conversation: Conversation
    prompt: Prompt
    features_ND: Tensor


def evaluate(
    adapter: Adapter,
    chat: ChatFormat,
    questions: Iterable[Questions],
    *,
    batch_size: int,
    precision: str,
    quiet: bool = False,
) -> list[Prediction]:
    """Answers all questions.

    Args:
        adapter: the tuned model.
        chat: its format.
        questions: of each image.
        batch_size: questions answered together.
        precision: as in section `adapter`.
        quiet: whether nothing is said of the progress.

    Returns:
        A prediction a question, in their order.
    """
    found, held = dict[int, Prediction](), {True: list[_Asked](), False: list[_Asked]()}
    started = said = time.monotonic()
    for asked in _asked(adapter, chat, questions, precision=precision):
        batch = held[asked.conversation.task in _LONG]
        batch.append(asked)
        if len(batch) < batch_size:
            continue
        found |= _answered(adapter, chat, batch, precision=precision)
        batch.clear()
        if not quiet and time.monotonic() - said > _SILENCE:
            said = time.monotonic()
            print(f"adapter: {len(found)} questions answered, {len(found) / (said - started):.0f} a second", flush=True)
    for batch in held.values():
        if batch:
            found |= _answered(adapter, chat, batch, precision=precision)
    return [found[number] for number in sorted(found)]


def _asked(adapter: Adapter, chat: ChatFormat, questions: Iterable[Questions], *, precision: str) -> Iterator[_Asked]:
    number, rest = 0, iter(questions)
    while part := list(islice(rest, _PICTURES)):
        with torch.no_grad(), autocast(precision, adapter.model.device):
            features_BND = adapter.features(stacked([item.picture for item in part]))
        for item, features_ND in zip(part, features_BND, strict=True):
            for conversation in item.conversations:
                prompt = chat.prompt(conversation, key=item.picture.key)
                yield _Asked(number, item, conversation, prompt, features_ND)
                number += 1


def _answered(adapter: Adapter, chat: ChatFormat, batch: Sequence[_Asked], *, precision: str) -> dict[int, Prediction]:
    images = {id(item.about): item.features_ND for item in batch}
    rows = {about: row for row, about in enumerate(images)}
    answers = generate(
        adapter,
        chat,
        [item.prompt for item in batch],
        torch.stack(list(images.values())),
        images=[rows[id(item.about)] for item in batch],
        max_tokens=chat.longest_answer([item.conversation for item in batch]) + _MARGIN,
        precision=precision,
    )
    return {
        item.number: judge(
            item.conversation,
            answer,
            key=item.about.picture.key,
            frame=item.about.picture.frame,
            source=item.about.source,
        )
        for item, answer in zip(batch, answers, strict=True)
    }
