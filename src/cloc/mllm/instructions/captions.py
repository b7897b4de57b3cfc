"""The image in words: captions, and captions with the boxes of what they name."""

from collections.abc import Iterator
from dataclasses import dataclass

from cloc.boxes import BoxesXYXY
from cloc.mllm.boxtext import box_to_text, boxes_to_text
from cloc.mllm.conversation import Conversation, Task
from cloc.mllm.instructions.asking import MOST_BOXES, Asker, in_order
from cloc.mllm.instructions.facts import Facts, Region
from cloc.mllm.instructions.grounding import fitting
from cloc.mllm.instructions.phrases import contrast, read_phrase
from cloc.mllm.instructions.templates import Form
from cloc.mllm.instructions.words import NUMBERS, may_follow_noun, plural, words_of

_MOST_WORDS = 60  # of a caption
_MOST_GROUNDED_WORDS = 40  # of one with boxes, which are long


@dataclass(frozen=True)
class Grounded:
    """A text with boxes in it, and these, padded, in their order."""

    text: str
    boxes: list[BoxesXYXY]


@dataclass(frozen=True)
class _Name:
    """What regions may be called in a caption."""

    words: tuple[str, ...]
    regions: list[Region]


def describe(asker: Asker) -> Iterator[Conversation]:
    """The image by each of its captions, very long ones left out."""
    captions = [text for text in asker.facts.captions if len(words_of(text)) <= _MOST_WORDS]
    for index in asker.order(len(captions)):
        yield asker.ask(Task.DESCRIBE, Form.DESCRIBE, captions[index])


def grounded_caption(asker: Asker) -> Iterator[Conversation]:
    """Captions with boxes behind what they name; where none of them names a region, a list of the regions."""
    found = [
        grounded(asker.facts, text) for text in asker.facts.captions if len(words_of(text)) <= _MOST_GROUNDED_WORDS
    ]
    usable = [item for item in found if item.boxes]
    for index in asker.order(len(usable)):
        item = usable[index]
        yield asker.ask(Task.GROUNDED_CAPTION, Form.GROUNDED_CAPTION, item.text, truth=item.boxes)
    if not usable and asker.facts.regions:
        item = listed(asker.facts)
        yield asker.ask(Task.GROUNDED_CAPTION, Form.LIST, item.text, truth=item.boxes)


def listed(facts: Facts) -> Grounded:
    """The regions, each with its box, from left to right; the largest `MOST_BOXES` where there are more."""
    largest = sorted(facts.regions, key=lambda region: -_area(region.padded))[:MOST_BOXES]
    shown = sorted(largest, key=lambda region: tuple(float(value) for value in region.padded))
    text = ", ".join(f"{region.text} {box_to_text(region.padded)}" for region in shown)
    return Grounded(text, [region.padded for region in shown])


def _area(box: BoxesXYXY) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def grounded(facts: Facts, caption: str) -> Grounded:
    """A caption with boxes behind the phrases that surely name certain regions: each region once, the longest first.

    A plural names all that it fits, unless the number before it is another.
    """
    tokens = caption.split()
    ends: dict[int, list[BoxesXYXY]] = {}
    taken: set[int] = set()
    used: set[int] = set()
    for name in _names(facts):
        own = {id(region) for region in name.regions}
        if own & used or len(used | own) > MOST_BOXES:
            continue
        place = next((start for start in range(len(tokens)) if _stands_at(name, tokens, start)), None)
        if place is None or taken & (span := set(range(place, place + len(name.words)))):
            continue
        taken, used = taken | span, used | own
        ends[max(span)] = in_order([region.padded for region in name.regions])
    shown = [box for place in sorted(ends) for box in ends[place]]
    return Grounded(" ".join(_with_boxes(token, ends.get(place, [])) for place, token in enumerate(tokens)), shown)


def _names(facts: Facts) -> list[_Name]:
    """All names that fit one region or several without doubt, the longest first."""
    texts: set[str] = set()
    for region in facts.regions:
        phrase = region.phrase
        before = phrase.described.split()
        texts |= {phrase.text, *(" ".join([*before[place:], phrase.noun]) for place in range(len(before) + 1))}
    names = {}
    for text in texts:
        found = fitting(facts, read_phrase(text))
        if found:
            words = words_of(text if len(found) == 1 else plural(text))
            names[words] = _Name(words, found)
    return [names[words] for words in sorted(names, key=lambda words: (-len(words), words))]


def _stands_at(name: _Name, tokens: list[str], start: int) -> bool:
    """Whether a name stands at a place of a caption, and speaks of its regions there."""
    end = start + len(name.words)
    if [words_of(token) for token in tokens[start:end]] != [(word,) for word in name.words]:
        return False
    if any(not token[-1].isalnum() for token in tokens[start : end - 1]):
        return False
    near = [word for token in tokens[max(0, start - 3) : start] for word in words_of(token)]
    if any(contrast(frozenset(near), region.phrase.attributes) for region in name.regions):
        return False
    said = [word for word in near if word in NUMBERS]
    if len(name.regions) > 1 and said and said[-1] != NUMBERS[len(name.regions)]:
        return False
    following = words_of(tokens[end])[:1] if end < len(tokens) and tokens[end - 1][-1].isalnum() else ()
    return not following or may_follow_noun(following[0])


def _with_boxes(token: str, boxes: list[BoxesXYXY]) -> str:
    """A token with boxes behind its word, before what punctuation it ends with."""
    if not boxes:
        return token
    word = token.rstrip(".,;:!?)\"'")
    return f"{word} {boxes_to_text(boxes)}{token[len(word) :]}"
