"""What is known of an image: its captions, and its regions in the frame in which they are asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloc.boxes import BoxesXYXY, Letterbox, as_boxes
from cloc.mllm.instructions.phrases import Phrase, may_fit, read_phrase, stands_in
from cloc.mllm.instructions.words import plain, without_special_tokens, words_of

_BEST_FIRST = ("human", "generated")  # kinds of captions; alt-texts describe an image where there is nothing better


@dataclass(frozen=True)
class Region:
    """A region of one image.

    Attributes:
        padded: xyxy in [0, 1] of the padded network input, shape (4,).
        text: what it is called, lower case, without an article.
        label: its class name, or "".
        unique: the text fits no other region of the image.
    """

    padded: BoxesXYXY
    text: str
    label: str
    unique: bool

    @property
    def phrase(self) -> Phrase:
        """Its text, read."""
        return read_phrase(self.text, plain(self.label))


@dataclass(frozen=True)
class Facts:
    """What is known of an image.

    Attributes:
        key: of the image.
        captions: texts that describe it, lower case, the best first.
        regions: those with a text.
        other_texts: further texts about it; what they name may be in the image.
    """

    key: str
    captions: tuple[str, ...]
    regions: list[Region]
    other_texts: tuple[str, ...] = ()

    def may_show(self, phrase: Phrase) -> bool:
        """Whether a phrase may fit a region, or something that a text about the image speaks of."""
        if any(may_fit(phrase, region.phrase) for region in self.regions):
            return True
        known = any(phrase.group == region.phrase.group for region in self.regions)
        return any(stands_in(phrase, text, known=known) for text in (*self.captions, *self.other_texts))


def facts_of(
    key: str,
    captions_rows: Sequence[Mapping[str, Any]],
    region_rows: Sequence[Mapping[str, Any]],
    *,
    frame: Letterbox,
) -> Facts:
    """The facts of one image, from its rows of the captions and the regions table.

    Captions of people come first, then generated ones; alt-texts describe the image only where there is neither.

    Args:
        key: of the image.
        captions_rows, region_rows: rows by the data contract.
        frame: map of the image to the padded network input.
    """
    written = [(str(row.get("kind", "")), _sentence(row["text"])) for row in captions_rows]
    written = [(kind, text) for kind, text in written if text]
    better = [text for wanted in _BEST_FIRST for kind, text in written if kind == wanted]
    others = [text for kind, text in written if kind not in _BEST_FIRST]
    if not better:
        better, others = others, []
    regions = regions_of(region_rows, frame=frame)
    return Facts(key=key, captions=tuple(dict.fromkeys(better)), regions=regions, other_texts=tuple(others))


def _sentence(text: str) -> str:
    """A caption in lower case, on one line, without a closing full stop; "" where it has no word."""
    text = without_special_tokens(text).rstrip(". ")
    return text if words_of(text) else ""


def regions_of(rows: Sequence[Mapping[str, Any]], *, frame: Letterbox) -> list[Region]:
    """The regions of one image, from its rows of the regions table; those without a text are left out.

    Args:
        rows: rows by the data contract.
        frame: map of the image to the padded network input.
    """
    rows = [row for row in rows if words_of(plain(row["text"]))]
    padded = frame.to_padded(as_boxes([[row["x1"], row["y1"], row["x2"], row["y2"]] for row in rows]))
    phrases = [read_phrase(plain(row["text"]), plain(row["label"])) for row in rows]
    return [
        Region(
            padded=padded[index],
            text=phrase.text,
            label=rows[index]["label"],
            unique=not any(may_fit(phrase, other) for place, other in enumerate(phrases) if place != index),
        )
        for index, phrase in enumerate(phrases)
    ]
