"""From questions to token ids: the decoder's own chat template, labels on the answers alone.

All questions about an image share its tokens: they are packed behind it, each blind to the others, with positions as
if it followed the image directly. So the image is read once and asked many times, every question is trained as it is
asked later, and no answer can be copied from an earlier one.
Shapes: B images, L tokens of the longest pack, S side of the network input in pixels.
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
_SHARED, _PADDING = 0, -1  # segments; questions count from 1


@dataclass(frozen=True)
class Encoded:
    """An image's questions as token ids.

    Attributes:
        ids: the shared beginning with the image's tokens, then question after question.
        labels: the same ids on the answers and their ends, IGNORED elsewhere.
        segments: 0 on the shared beginning, then the question's number from 1.
        positions: position of each token in its own conversation.
    """

    ids: list[int]
    labels: list[int]
    segments: list[int]
    positions: list[int]


class ChatFormat:
    """How one decoder writes a question about an image and its answer.

    The template is rendered once, with marks for question and answer; what stands around them is constant. Question,
    answer and what stands around are tokenised apart, so that tokens are the same in training and in generation.

    Args:
        tokenizer: with a chat template and an image token.
        image_tokens: tokens that an image takes.
        context_length: longest conversation, tokens, image included.
        name: what to call the decoder in errors.

    Raises:
        ConfigError: there is no chat template or one that does not keep questions, or the image does not fit.
    """

    def __init__(self, tokenizer: Any, *, image_tokens: int, context_length: int, name: str) -> None:
        self.tokenizer, self.image_tokens = tokenizer, image_tokens
        self.context_length, self.name = context_length, name
        if image_tokens >= context_length:
            raise ConfigError(
                f"{name}: an image takes {image_tokens} tokens, the context has {context_length}; "
                "raise adapter.decoder.context_length or model.vision.patch_size"
            )
        self.image_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        before, between, after = self._render()
        self.before, self.between = self._expand(before), self._expand(between)
        self.end_id = self._end(after)

    def encode(self, turns: Sequence[Turn], *, key: str) -> Encoded:
        """The questions about the image `key`, packed, with their answers. Raises DataError when one is too long."""
        start = len(self.before)
        ids, labels, segments = list(self.before), [IGNORED] * start, [_SHARED] * start
        positions = list(range(start))
        for number, (question, answer) in enumerate(self._tokenize(turns), start=1):
            asked, said = question + self.between, [*answer, self.end_id]
            length = len(asked) + len(said)
            self._check(start + length, key=key)
            ids += asked + said
            labels += [IGNORED] * len(asked) + said
            segments += [number] * length
            positions += range(start, start + length)
        return Encoded(ids, labels, segments, positions)

    def prompt(self, turn: Turn, *, key: str) -> list[int]:
        """The ids up to the answer. Raises DataError when the conversation is longer than the context."""
        [(question, answer)] = self._tokenize([turn])
        ids = self.before + question + self.between
        self._check(len(ids) + len(answer) + 1, key=key)
        return ids

    def longest_answer(self, turns: Sequence[Turn]) -> int:
        """Tokens of the longest answer, its end included."""
        return max(len(answer) for _, answer in self._tokenize(turns)) + 1

    def answer(self, ids: Sequence[int]) -> str:
        """Generated ids -> text, up to the end of the answer."""
        ids = list(ids)
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _tokenize(self, turns: Sequence[Turn]) -> list[tuple[list[int], list[int]]]:
        texts = [turn.question for turn in turns] + [turn.answer for turn in turns]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return list(zip(ids[: len(turns)], ids[len(turns) :], strict=True))

    def _check(self, length: int, *, key: str) -> None:
        if length > self.context_length:
            raise DataError(
                f"image {key!r}: a question with its answer has {length} tokens ({self.image_tokens} of the image), "
                f"the context of {self.name} {self.context_length}; raise adapter.decoder.context_length or name a "
                "language model with a longer context"
            )

    def _render(self) -> tuple[str, str, str]:
        """What the template writes before the question, between it and the answer, and after the answer."""
        if not self.tokenizer.chat_template:
            raise ConfigError(
                f"adapter.language_model: the tokenizer of {self.name} has no chat template; name an instruction-tuned "
                "model"
            )
        question, answer = "~question~", "~answer~"
        asked = {"role": "user", "content": f"{IMAGE_TOKEN}\n{question}"}
        said = {"role": "assistant", "content": answer}
        whole = self.tokenizer.apply_chat_template([asked, said], tokenize=False)
        prompt = self.tokenizer.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
        before, found, rest = whole.partition(question)
        between, complete, after = rest.partition(answer)
        if not found or not complete or IMAGE_TOKEN not in before or prompt != f"{before}{question}{between}":
            raise ConfigError(
                f"adapter.language_model: the chat template of {self.name} does not record a question and its answer "
                "as it asks for one; name another model"
            )
        return before, between, after

    def _expand(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return [each for each in ids for _ in range(self.image_tokens if each == self.image_id else 1)]

    def _end(self, after: str) -> int:
        """The token that ends an answer: the first one after it in the template where that is special, else EOS."""
        ids = self._expand(after)
        if ids and ids[0] in self.tokenizer.all_special_ids:
            return ids[0]
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(f"adapter.language_model: the tokenizer of {self.name} has no end-of-text token")
        return int(self.tokenizer.eos_token_id)


@dataclass(frozen=True)
class ChatBatch:
    """A step's images and their questions, padded on the right.

    Attributes:
        pixels_BSS3: uint8.
        ids_BL: token ids.
        labels_BL: ids on the answers, IGNORED elsewhere.
        segments_BL: 0 on the shared beginning, the question's number from 1, -1 on padding.
        positions_BL: position of each token in its own conversation.
    """

    pixels_BSS3: Tensor
    ids_BL: Tensor
    labels_BL: Tensor
    segments_BL: Tensor
    positions_BL: Tensor


def collate(pixels: Sequence[Tensor], packs: Sequence[Encoded], *, pad_id: int) -> ChatBatch:
    """Stacks images (S, S, 3) and their questions."""
    length = max(len(pack.ids) for pack in packs)

    def stack(rows: Sequence[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in rows])

    return ChatBatch(
        pixels_BSS3=torch.stack(list(pixels)),
        ids_BL=stack([pack.ids for pack in packs], pad_id),
        labels_BL=stack([pack.labels for pack in packs], IGNORED),
        segments_BL=stack([pack.segments for pack in packs], _PADDING),
        positions_BL=stack([pack.positions for pack in packs], 0),
    )


def attention_mask(segments_BL: Tensor) -> Tensor:
    """What each token sees, added to attention logits: (B, 1, L, L), 0 or the lowest float.

    A token sees the shared beginning and its own question, up to itself.
    """
    length = segments_BL.shape[1]
    own_BLL = segments_BL[:, :, None] == segments_BL[:, None, :]
    seen_BLL = own_BLL | (segments_BL == _SHARED)[:, None, :]
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=segments_BL.device).tril()
    mask_BLL = torch.zeros(seen_BLL.shape, device=segments_BL.device)
    return mask_BLL.masked_fill(~(seen_BLL & causal_LL), torch.finfo(torch.float32).min)[:, None]


def collate_prompts(prompts: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts for generation, padded on the LEFT: ids and mask (1 on tokens), both (B, L)."""
    length = max(map(len, prompts))
    ids = [[pad_id] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)
