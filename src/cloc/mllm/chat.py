"""From conversations to token ids: the decoder's own chat template, labels on the answers alone.

Shapes: B conversations, L tokens of the longest, S side of the network input in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cloc.errors import ConfigError, DataError
from cloc.mllm.instructions import Turn

IMAGE_TOKEN = "<image>"  # noqa: S105 (LLaVA's placeholder)
IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids; `labels` are the same ids on answers and their end, IGNORED elsewhere."""

    ids: list[int]
    labels: list[int]


class ChatFormat:
    """How one decoder writes conversations.

    The template is rendered once for each number of turns, with markers for the questions and answers; what stands
    between them is constant. Questions, answers and what stands between are tokenised apart, so that an answer's
    tokens are the same in training and in generation.

    Args:
        tokenizer: with a chat template and an image token.
        image_tokens: tokens that an image takes.
        context_length: longest conversation, tokens, image included.
        name: what to call the decoder in errors.

    Raises:
        ConfigError: no chat template, one that does not write the turns in order, or images that do not fit.
    """

    def __init__(self, tokenizer: Any, *, image_tokens: int, context_length: int, name: str) -> None:
        self.tokenizer, self.image_tokens, self.context_length, self.name = (
            tokenizer,
            image_tokens,
            context_length,
            name,
        )
        if not tokenizer.chat_template:
            raise ConfigError(
                f"adapter.language_model: the tokenizer of {name} has no chat template; name an instruction-tuned model"
            )
        if image_tokens >= context_length:
            raise ConfigError(
                f"{name}: an image takes {image_tokens} tokens, the context has {context_length}; "
                "raise adapter.decoder.context_length or the encoder's patch size"
            )
        self.image_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        self._between: dict[int, list[list[int]]] = {}
        self.end_id = self._end()

    def encode(self, turns: Sequence[Turn], *, key: str) -> Encoded:
        """A conversation about the image `key`, for training.

        Raises:
            DataError: it is longer than the context.
        """
        between, (questions, answers) = self._parts(len(turns)), self._tokenize(turns)
        ids, labels = list(between[0]), [IGNORED] * len(between[0])
        for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            asked = question + between[2 * index + 1]
            after = between[2 * index + 2]
            # The end of the turn is part of what is learned: generation stops there.
            rest = after[1:] if after[:1] == [self.end_id] else after
            ids += [*asked, *answer, self.end_id, *rest]
            labels += [*[IGNORED] * len(asked), *answer, self.end_id, *[IGNORED] * len(rest)]
        self._check(len(ids), key=key)
        return Encoded(ids, labels)

    def prompt(self, turn: Turn, *, key: str) -> list[int]:
        """The ids before the answer of a single question about the image `key`. Raises DataError when too long."""
        between, (questions, answers) = self._parts(1), self._tokenize([turn])
        ids = between[0] + questions[0] + between[1]
        self._check(len(ids) + len(answers[0]) + 1, key=key)
        return ids

    def longest_answer(self, turns: Sequence[Turn]) -> int:
        """Tokens of the longest answer, its end included."""
        return max(map(len, self._tokenize(turns)[1])) + 1

    def answer(self, ids: Sequence[int]) -> str:
        """Generated ids -> text: up to the end of the turn."""
        ids = list(ids)
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _tokenize(self, turns: Sequence[Turn]) -> tuple[list[list[int]], list[list[int]]]:
        texts = [turn.question for turn in turns] + [turn.answer for turn in turns]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids[: len(turns)], ids[len(turns) :]

    def _check(self, length: int, *, key: str) -> None:
        if length > self.context_length:
            raise DataError(
                f"image {key!r}: its conversation has {length} tokens ({self.image_tokens} of the image), the context "
                f"of {self.name} {self.context_length}; lower adapter.turns or raise adapter.decoder.context_length"
            )

    def _parts(self, turns: int) -> list[list[int]]:
        """What stands before, between and after the questions and answers of so many turns, as ids."""
        if turns not in self._between:
            self._between[turns] = [self._expand(text) for text in self._render(turns)]
        return self._between[turns]

    def _render(self, turns: int) -> list[str]:
        marks = [f"~{kind}{index}~" for index in range(turns) for kind in ("Q", "A")]
        messages = [
            {"role": "assistant" if place % 2 else "user", "content": f"{IMAGE_TOKEN}\n{mark}" if not place else mark}
            for place, mark in enumerate(marks)
        ]
        rest = self.tokenizer.apply_chat_template(messages, tokenize=False)
        asked = self.tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        parts = []
        for mark in marks:
            part, found, rest = rest.partition(mark)
            parts.append(part)
            if not found or mark in rest:
                raise ConfigError(f"adapter.language_model: the chat template of {self.name} does not keep the turns")
        if asked != f"{parts[0]}{marks[0]}{parts[1]}":
            raise ConfigError(
                f"adapter.language_model: the chat template of {self.name} asks for an answer in other words than it "
                "records one; name another model"
            )
        return [*parts, rest]

    def _expand(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return [id for each in ids for id in [each] * (self.image_tokens if each == self.image_id else 1)]

    def _end(self) -> int:
        """The token that ends an answer: the first one after it in the template, when that is special; else EOS."""
        after = self._parts(1)[2]
        if after and after[0] in self.tokenizer.all_special_ids:
            return after[0]
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(f"adapter.language_model: the tokenizer of {self.name} has no end-of-text token")
        return int(self.tokenizer.eos_token_id)


@dataclass(frozen=True)
class ChatBatch:
    """A step's conversations.

    Attributes:
        pixels_BSS3: uint8.
        ids_BL: token ids, padded on the right.
        labels_BL: ids on the answers, IGNORED elsewhere.
        mask_BL: 1 on tokens, 0 on padding.
    """

    pixels_BSS3: Tensor
    ids_BL: Tensor
    labels_BL: Tensor
    mask_BL: Tensor


def collate(pixels: Sequence[Tensor], conversations: Sequence[Encoded], *, pad_id: int) -> ChatBatch:
    """Stacks images (S, S, 3) and conversations, padded on the right to the longest."""
    shape = (len(conversations), max(len(item.ids) for item in conversations))
    ids_BL, labels_BL = torch.full(shape, pad_id), torch.full(shape, IGNORED)
    mask_BL = torch.zeros(shape, dtype=torch.long)
    for row, item in enumerate(conversations):
        ids_BL[row, : len(item.ids)] = torch.tensor(item.ids)
        labels_BL[row, : len(item.ids)] = torch.tensor(item.labels)
        mask_BL[row, : len(item.ids)] = 1
    return ChatBatch(torch.stack(list(pixels)), ids_BL, labels_BL, mask_BL)


def collate_prompts(prompts: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts for generation, padded on the LEFT: ids and mask, both (B, L)."""
    shape = (len(prompts), max(map(len, prompts)))
    ids_BL, mask_BL = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_BL[row, shape[1] - len(prompt) :] = torch.tensor(list(prompt))
        mask_BL[row, shape[1] - len(prompt) :] = 1
    return ids_BL, mask_BL
