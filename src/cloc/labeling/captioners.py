"""Captioning backends behind one interface: prepared images in, captions out.

A backend prepares images one by one, ahead and in threads (resize, tokenise, encode), and says something of a batch of
prepared ones. What it is asked, the fusion with the alt-text included, is the same for every backend: `Prompts`.
"""

import html
import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from cloc.config.schema import CaptioningConfig
from cloc.labeling.text import clean
from cloc.labeling.worker import Item

# What a chat model is asked when `captioning.prompt` is empty: long and detailed (METHOD, VESL step 1).
QUESTION = (
    "Describe this image in detail in one short paragraph: the objects and people, their colours and parts, where they "
    "are, what happens, and any text that can be read. Say only what can be seen."
)
MAX_ALT_TEXT = 400  # characters of an alt-text in a prompt
_MARK = "{alt_text}"
_JOINERS = "\u200c\u200d"  # invisible, and needed by Persian, Hindi and emoji
T = TypeVar("T")


@dataclass(frozen=True)
class Said:
    """What a backend says of one image.

    Attributes:
        texts: its captions, none to many, as the model gave them: neither cleaned nor guarded.
        refused: why the image has none; "" when it has.
        prompt: what the guards compare captions with (`Prompt.question`); "" where that would be wrong.
    """

    texts: tuple[str, ...] = ()
    refused: str = ""
    prompt: str = ""


class Captioner(Protocol[T]):
    """A captioning backend.

    Attributes:
        kind: what its captions are, in the captions table.
        model: name of the model, in the captions table; "" for people.
        in_flight: batches that may be captioned at once, each in a thread of its own.
    """

    kind: Literal["human", "generated"]
    model: str
    in_flight: int

    def prepare(self, item: Item) -> T:
        """What the backend needs of an image; may be called by several threads at once.

        Args:
            item: the image (RGB) with the caption rows and the metadata (alt-text) that the data has.
        """

    def bucket(self, prepared: T) -> Hashable:
        """What prepared images must have in common to share a batch; None when all may."""

    def caption(self, batch: Sequence[T]) -> Sequence[Said]:
        """What is said of each, in order.

        Raises:
            ClocError: the backend itself fails, and not at one image.
        """


@dataclass(frozen=True)
class Prompt:
    """What a captioner is given besides the image.

    Attributes:
        text: the prompt; "" for none.
        question: the longest part of it that is not the image's alt-text: a caption that repeats this has copied it.
        fused: whether the alt-text is part of it.
    """

    text: str
    question: str
    fused: bool = False


class Prompts:
    """The prompt of each image (VeCap's fusion: the alt-text is given, so that names and facts survive).

    An alt-text is untrusted: it is cleaned, cut to `MAX_ALT_TEXT` characters, never a template itself, and what the
    model would take for a command of its own (`forbidden`) is taken out.

    Args:
        config: section `captioning`.
        default: the prompt where the setting is empty.
        forbidden: a tokenizer's special tokens.
    """

    def __init__(self, config: CaptioningConfig, *, default: str = "", forbidden: Sequence[str] = ()) -> None:
        text = config.prompt or default
        self.plain = Prompt(text, text)
        self._fusion = config.alt_text_prompt
        self._question = max(self._fusion.split(_MARK), key=len).strip()
        self._forbidden = sorted(filter(str.strip, forbidden), key=len, reverse=True)

    def __call__(self, item: Item) -> Prompt:
        """The fused prompt for an image with an alt-text where fusion is set, else the plain one."""
        if self._fusion:
            for alt_text in item.alt_texts:
                if cleaned := self._clean(alt_text):
                    return Prompt(self._fusion.replace(_MARK, cleaned), self._question, fused=True)
        return self.plain

    def _clean(self, alt_text: str) -> str:
        text = clean(html.unescape(alt_text[: 20 * MAX_ALT_TEXT]))
        text = "".join(char for char in text if unicodedata.category(char) != "Cf" or char in _JOINERS)
        # A replacement may join two halves to a new token: again until none is left.
        while any(token in text for token in self._forbidden):
            for token in self._forbidden:
                text = text.replace(token, " ")
        return _shorten(" ".join(text.split())) if text.strip(f" {_JOINERS}") else ""


def _shorten(text: str) -> str:
    """At most `MAX_ALT_TEXT` characters, whole words where they are not absurdly long."""
    if len(text) <= MAX_ALT_TEXT:
        return text
    whole, space, _ = text[: MAX_ALT_TEXT + 1].rpartition(" ")
    return whole if space else text[:MAX_ALT_TEXT]


class AnnotationsCaptioner:
    """Takes the human captions in the data set's own captions table, all of them."""

    kind: Literal["human", "generated"] = "human"
    model = ""
    in_flight = 1

    def prepare(self, item: Item) -> tuple[str, ...]:
        """The texts of the rows of kind `human`."""
        return tuple(row["text"] for row in item.sample.captions if row["kind"] == "human")

    def bucket(self, prepared: tuple[str, ...]) -> None:
        """All fit together."""

    def caption(self, batch: Sequence[tuple[str, ...]]) -> list[Said]:
        """See `Captioner`."""
        return [Said(texts=texts, refused="" if texts else "no human caption") for texts in batch]


def _annotations(config: CaptioningConfig) -> Captioner[Any]:
    return AnnotationsCaptioner()


def _transformers(config: CaptioningConfig) -> Captioner[Any]:
    from cloc.labeling.captioner_transformers import TransformersCaptioner

    return TransformersCaptioner(config)


def _openai(config: CaptioningConfig) -> Captioner[Any]:
    from cloc.labeling.captioner_openai import OpenAICaptioner

    return OpenAICaptioner(config)


CAPTIONERS: Mapping[str, Callable[[CaptioningConfig], Captioner[Any]]] = {
    "annotations": _annotations,
    "transformers": _transformers,
    "openai": _openai,
}
