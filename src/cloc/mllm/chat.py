"""From conversations to token ids: the decoder's own chat template, labels on the answers alone.

All conversations about an image share its tokens: they are packed behind it, each blind to the others, with positions
as if it followed the image directly. So the image is read once and asked many times, every conversation is trained as
it is held later, and no answer can be copied from another one. Inside a conversation later turns see earlier ones.
Shapes: B images, L tokens of the longest pack, S side of the network input in pixels, R regions of an image, K of a
batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import torch
from torch import Tensor

from cloc.boxes import BoxesXYXY
from cloc.errors import ConfigError, DataError
from cloc.mllm.conversation import IMAGE_TOKEN, REGION_TOKEN, Conversation, no_boxes

IGNORED = -100
_SHARED, _PADDING = 0, -1  # segments; conversations count from 1
# What templates read besides the messages: answers follow without a train of thought (Qwen 3, SmolLM 3), and the date
# that some write into the system prompt does not change from day to day (Llama 3.2, whose own default this is).
_TEMPLATE_OPTIONS: Mapping[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}


@dataclass(frozen=True)
class Encoded:
    """An image's conversations as token ids.

    Attributes:
        ids: the shared beginning with the image's tokens, then conversation after conversation.
        labels: the same ids on the answers and their ends, IGNORED elsewhere.
        segments: 0 on the shared beginning, then the conversation's number from 1.
        positions: position of each token in its own conversation.
        regions_R4: boxes of the padded network input, one a region token of `ids`, in their order.
    """

    ids: list[int]
    labels: list[int]
    segments: list[int]
    positions: list[int]
    regions_R4: BoxesXYXY


@dataclass(frozen=True)
class Prompt:
    """A conversation up to its last answer.

    Attributes:
        ids: token ids, the image's included.
        regions_R4: as in `Encoded`.
    """

    ids: list[int]
    regions_R4: BoxesXYXY


@dataclass(frozen=True)
class _Frame:
    """What the template writes around conversations of so many turns, as token ids.

    Attributes:
        before: up to the first question, image tokens included.
        turns: of each turn what stands between question and answer, and what follows the answer's end.
    """

    before: list[int]
    turns: list[tuple[list[int], list[int]]]


class ChatFormat:
    """How one decoder writes a conversation about an image.

    The template is rendered once for each number of turns, with marks for questions and answers; what stands around
    them is constant. Questions, answers and what stands around are tokenised apart, so that tokens are the same in
    training and in generation. Questions and answers are text: special tokens that they spell are read as letters.

    Args:
        tokenizer: with a chat template and an image token; with a region token where the model has a region sampler.
        image_tokens: tokens that an image takes.
        context_length: longest conversation, tokens, image included.
        name: what to call the decoder in errors.

    Attributes:
        before: ids that every conversation begins with, image tokens included.
        end_id: the token that ends an answer.
        region_id: the region token; None where the model has no region sampler.

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
        self.region_id = tokenizer.get_vocab().get(REGION_TOKEN)
        if not tokenizer.chat_template:
            raise ConfigError(
                f"adapter.language_model: the tokenizer of {name} has no chat template; name an "
                "instruction-tuned model, or put a chat_template.jinja into its folder"
            )
        before, *_, after = self._render(1)
        self.before, self.end_id = self._expand(before), self._end(after)
        self._frames: dict[int, _Frame] = {}

    def encode(self, conversations: Sequence[Conversation], *, key: str) -> Encoded:
        """The conversations about the image `key`, packed, with their answers.

        Raises:
            DataError: a conversation is longer than the context, or its region tokens do not fit its boxes.
        """
        start = len(self.before)
        ids, labels, segments = list(self.before), [IGNORED] * start, [_SHARED] * start
        positions = list(range(start))
        for number, texts in enumerate(self._tokenize(conversations, key=key), start=1):
            frame, length = self._frame(len(texts)), len(ids)
            for (between, after), (question, answer) in zip(frame.turns, texts, strict=True):
                asked, said = question + between, [*answer, self.end_id]
                ids += asked + said + after
                labels += [IGNORED] * len(asked) + said + [IGNORED] * len(after)
            length = len(ids) - length
            self._check(start + length, key=key)
            segments += [number] * length
            positions += range(start, start + length)
        regions = [conversation.regions for conversation in conversations] or [no_boxes()]
        return Encoded(ids, labels, segments, positions, np.concatenate(regions))

    def prompt(self, conversation: Conversation, *, key: str) -> Prompt:
        """The ids up to the last answer. Raises DataError as `encode` does."""
        [texts] = self._tokenize([conversation], key=key)
        frame, ids = self._frame(len(texts)), list(self.before)
        for (between, after), (question, answer) in zip(frame.turns[:-1], texts[:-1], strict=True):
            ids += [*question, *between, *answer, self.end_id, *after]
        question, answer = texts[-1]
        ids += question + frame.turns[-1][0]
        self._check(len(ids) + len(answer) + 1, key=key)
        return Prompt(ids, conversation.regions)

    def longest_answer(self, conversations: Sequence[Conversation]) -> int:
        """Tokens of the longest last answer, its end included."""
        return (
            max(
                len(answer) for answer in self._texts([conversation.turns[-1].answer for conversation in conversations])
            )
            + 1
        )

    def answer(self, ids: Sequence[int]) -> str:
        """Generated ids -> text, up to the end of the answer."""
        ids = list(ids)
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _tokenize(
        self, conversations: Sequence[Conversation], *, key: str
    ) -> Iterator[list[tuple[list[int], list[int]]]]:
        """The ids of each conversation's questions and answers, tokenised in one go."""
        for conversation in conversations:
            self._check_regions(conversation, key=key)
        turns = [turn for conversation in conversations for turn in conversation.turns]
        answers = iter(self._texts([turn.answer for turn in turns]))
        questions = iter(self._questions([turn.question for turn in turns]))
        for conversation in conversations:
            yield [(next(questions), next(answers)) for _ in conversation.turns]

    def _texts(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = []
        if texts:
            ids = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def _questions(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Ids of texts in which REGION_TOKEN is a token."""
        parts = [text.split(REGION_TOKEN) for text in texts]
        ids = iter(self._texts([part for listed in parts for part in listed]))
        for listed in parts:
            joined = next(ids)
            for _ in listed[1:]:
                joined = [*joined, self.region_id, *next(ids)]
            yield joined

    def _check_regions(self, conversation: Conversation, *, key: str) -> None:
        if not conversation.turns:
            raise DataError(f"image {key!r}: a conversation without a question; leave it out")
        tokens = sum(turn.question.count(REGION_TOKEN) for turn in conversation.turns)
        if tokens and self.region_id is None:
            raise DataError(
                f"image {key!r}: a question holds {REGION_TOKEN}, but the model has no region sampler; set "
                "adapter.region_sampler, or write the box as text"
            )
        if tokens != len(conversation.regions):
            raise DataError(
                f"image {key!r}: a conversation has {tokens} {REGION_TOKEN} and {len(conversation.regions)} boxes; "
                "give one box for each"
            )

    def _check(self, length: int, *, key: str) -> None:
        if length > self.context_length:
            raise DataError(
                f"image {key!r}: a conversation has {length} tokens ({self.image_tokens} of the image), the context of "
                f"{self.name} {self.context_length}; raise adapter.decoder.context_length or name a language model "
                "with a longer context"
            )

    def _frame(self, turns: int) -> _Frame:
        if turns not in self._frames:
            before, *pieces = self._render(turns)
            if self._expand(before) != self.before:
                raise self._unusable("writes another beginning before longer conversations")
            rest = [self._after_end(self._expand(piece)) for piece in pieces[1::2]]
            between = [self._expand(piece) for piece in pieces[::2]]
            # What follows the last answer's end is never read.
            self._frames[turns] = _Frame(self.before, list(zip(between, [*rest[:-1], []], strict=True)))
        return self._frames[turns]

    def _render(self, turns: int) -> list[str]:
        """What the template writes before the first question, between it and its answer, after that, and so on."""
        messages, marks = [], []
        for number in range(turns):
            question, answer = f"~question{number}~", f"~answer{number}~"
            image = f"{IMAGE_TOKEN}\n" if number == 0 else ""
            messages.append({"role": "user", "content": image + question})
            messages.append({"role": "assistant", "content": answer})
            marks += [question, answer]
        whole, prompt = self._apply(messages, prompt=False), self._apply(messages[:-1], prompt=True)
        pieces, rest = [], whole
        for mark in marks:
            piece, found, rest = rest.partition(mark)
            if not found:
                raise self._unusable("does not keep questions and answers in their order")
            pieces.append(piece)
        # Some write a blank before a recorded answer that they do not ask with (Llama 2, Mistral).
        recorded = whole[: len(whole) - len(marks[-1] + rest)]
        blank = recorded.removeprefix(prompt)
        if IMAGE_TOKEN not in pieces[0] or not recorded.startswith(prompt) or blank.strip():
            raise self._unusable("does not record a question and its answer as it asks for one")
        pieces[1::2] = [piece.removesuffix(blank) for piece in pieces[1::2]]
        return [*pieces, rest]

    def _apply(self, messages: Sequence[Mapping[str, str]], *, prompt: bool) -> str:
        options = {**_TEMPLATE_OPTIONS, "tokenize": False, "add_generation_prompt": prompt}
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), **options))
        except jinja2.TemplateError as error:
            raise self._unusable(f"fails ({' '.join(str(error).split())[:120]})") from None

    def _unusable(self, reason: str) -> ConfigError:
        return ConfigError(
            f"adapter.language_model: the chat template of {self.name} {reason}; name another model, or give its "
            "tokenizer another template"
        )

    def _expand(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return [each for each in ids for _ in range(self.image_tokens if each == self.image_id else 1)]

    def _after_end(self, ids: list[int]) -> list[int]:
        """What follows an answer without the answer's end, which stands right behind the answer in any case."""
        return ids[ids.index(self.end_id) + 1 :] if self.end_id in ids else ids

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
    """A step's images and their conversations, padded on the right.

    Attributes:
        pixels_BSS3: uint8; None where the images' features are known.
        ids_BL: token ids.
        labels_BL: ids on the answers, IGNORED elsewhere.
        segments_BL: 0 on the shared beginning, the conversation's number from 1, -1 on padding.
        positions_BL: position of each token in its own conversation.
        regions_K4: boxes of all region tokens, in their order row by row, of the padded network input.
        region_rows_K: the row of each.
    """

    pixels_BSS3: Tensor | None
    ids_BL: Tensor
    labels_BL: Tensor
    segments_BL: Tensor
    positions_BL: Tensor
    regions_K4: Tensor
    region_rows_K: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "ChatBatch":
        """The batch on another device."""
        moved: dict[str, Any] = {
            name: None if value is None else value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
        }
        return ChatBatch(**moved)


def collate(pixels: Sequence[Tensor] | None, packs: Sequence[Encoded], *, pad_id: int) -> ChatBatch:
    """Stacks images (S, S, 3) and their conversations; without `pixels` the conversations alone."""
    length = max(len(pack.ids) for pack in packs)

    def stack(rows: Sequence[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in rows])

    regions_K4, rows_K = stack_regions([pack.regions_R4 for pack in packs])
    return ChatBatch(
        pixels_BSS3=None if pixels is None else torch.stack(list(pixels)),
        ids_BL=stack([pack.ids for pack in packs], pad_id),
        labels_BL=stack([pack.labels for pack in packs], IGNORED),
        segments_BL=stack([pack.segments for pack in packs], _PADDING),
        positions_BL=stack([pack.positions for pack in packs], 0),
        regions_K4=regions_K4,
        region_rows_K=rows_K,
    )


def stack_regions(regions: Sequence[BoxesXYXY]) -> tuple[Tensor, Tensor]:
    """Boxes of several rows, one after the other: (K, 4) float32, and the row of each (K,)."""
    boxes = np.concatenate(list(regions)).astype(np.float32)
    rows = np.repeat(np.arange(len(regions)), [len(each) for each in regions])
    return torch.from_numpy(boxes), torch.from_numpy(rows)


def attention_mask(segments_BL: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """What each token sees, added to attention logits: (B, 1, L, L), 0 or the lowest number of the type.

    A token sees the shared beginning and its own conversation, up to itself.
    """
    length = segments_BL.shape[1]
    own_BLL = segments_BL[:, :, None] == segments_BL[:, None, :]
    seen_BLL = own_BLL | (segments_BL == _SHARED)[:, None, :]
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=segments_BL.device).tril()
    mask_BLL = torch.zeros(seen_BLL.shape, device=segments_BL.device, dtype=dtype)
    return mask_BLL.masked_fill(~(seen_BLL & causal_LL), torch.finfo(dtype).min)[:, None]


def left_padded(rows: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids for generation, padded on the LEFT: ids and mask (1 on tokens), both (B, L)."""
    length = max(map(len, rows))
    ids = [[pad_id] * (length - len(row)) + list(row) for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
