"""Questions that point at regions, and counting: what it is, how it looks, where it lies, how many there are."""

from collections.abc import Iterator

import numpy as np

from cloc import boxes
from cloc.boxes import BoxesXYXY
from cloc.mllm.conversation import Conversation, Task
from cloc.mllm.instructions.asking import MOST_BOXES, Asker
from cloc.mllm.instructions.facts import Facts, Region
from cloc.mllm.instructions.phrases import may_fit, read_phrase
from cloc.mllm.instructions.relations import relation, share_inside
from cloc.mllm.instructions.templates import Form
from cloc.mllm.instructions.words import NUMBERS, is_countable, plural, words_of

_NONE_OF_IT = 0.2  # chance that what is not there is counted
_SAME_PLACE = 0.6  # IoU from which two regions may be one object
_IN, _OUT = 0.9, 0.1  # shares of an object that lie in a region in which it counts, and in which it does not


def refer(asker: Asker) -> Iterator[Conversation]:
    """What every region shows."""
    for index in asker.order(len(asker.facts.regions)):
        region = asker.facts.regions[index]
        yield asker.ask(Task.REFER, Form.REFER, region.text, places={"box": region.padded}, label=region.label)


def attribute(asker: Asker) -> Iterator[Conversation]:
    """How the object of every region looks whose text says so."""
    for index in asker.order(len(asker.facts.regions)):
        region = asker.facts.regions[index]
        phrase = region.phrase
        if phrase.described:
            yield asker.ask(
                Task.ATTRIBUTE,
                Form.ATTRIBUTE,
                phrase.described,
                texts={"phrase": phrase.noun},
                places={"box": region.padded},
                label=region.label,
            )


def relate(asker: Asker) -> Iterator[Conversation]:
    """Where one region lies as seen from another one, where that is clear: by boxes, or by unambiguous texts."""
    regions = asker.facts.regions
    for index in asker.order(len(regions) ** 2):
        first, second = regions[index // len(regions)], regions[index % len(regions)]
        answer = relation(first.padded, second.padded) if first is not second else None
        if answer is None:
            continue
        if first.unique and second.unique and asker.coin():
            texts = {"phrase": first.text, "be": first.phrase.be, "than": second.text}
            yield asker.ask(Task.RELATION, Form.RELATION_PHRASES, answer.value, texts=texts)
        else:
            places = {"box": first.padded, "other": second.padded}
            yield asker.ask(Task.RELATION, Form.RELATION_BOXES, answer.value, places=places)


def count(asker: Asker) -> Iterator[Conversation]:
    """How many of a noun there are: in the image or in a region, also none; only where all of them are known."""
    nouns = sorted({region.phrase.noun for region in asker.facts.regions})
    for index in asker.order(len(nouns)):
        found = counted(asker.facts, nouns[index])
        if asker.coin(_NONE_OF_IT):
            yield from _count_absent(asker)
        if found is None:
            continue
        inside = _count_inside(asker, nouns[index], found) if asker.coin() else None
        if inside is not None:
            yield inside
        else:
            texts = {"plural": plural(nouns[index])}
            yield asker.ask(Task.COUNT, Form.COUNT_IMAGE, str(len(found)), texts=texts)


def counted(facts: Facts, noun: str) -> list[Region] | None:
    """The regions that a noun names, 1 to `MOST_BOXES`; None where their number is in doubt.

    It is where a region may or may not be named so, where two regions may be one object, and where a text says another
    number.
    """
    if not is_countable(noun):
        return None
    found = [region for region in facts.regions if region.phrase.noun == noun]
    phrase = read_phrase(noun)
    others = [region for region in facts.regions if region.phrase.noun != noun]
    if not 1 <= len(found) <= MOST_BOXES or any(may_fit(phrase, region.phrase) for region in others):
        return None
    padded = np.stack([region.padded for region in found])
    if np.triu(boxes.iou(padded, padded), k=1).max() > _SAME_PLACE:
        return None
    return None if any(_says_other(text, noun, len(found)) for text in facts.captions) else found


def _says_other(text: str, noun: str, number: int) -> bool:
    """Whether a text has the noun's plural behind another number."""
    words, many = words_of(text), words_of(plural(noun))
    for place in range(len(words) - len(many) + 1):
        if words[place : place + len(many)] == many:
            said = [NUMBERS.index(word) for word in words[max(0, place - 3) : place] if word in NUMBERS]
            if said and said[-1] != number:
                return True
    return False


def _count_absent(asker: Asker) -> Iterator[Conversation]:
    noun = asker.pool.absent_noun(asker.facts, rng=asker.rng)
    if noun:
        yield asker.ask(Task.COUNT, Form.COUNT_IMAGE, "0", texts={"plural": plural(noun)})


def _count_inside(asker: Asker, noun: str, found: list[Region]) -> Conversation | None:
    """The number in the smallest box around two regions, if each of the noun lies in it or out of it clearly."""
    regions = asker.facts.regions
    if len(regions) < 3:
        return None
    one, two = (regions[index].padded for index in asker.order(len(regions))[:2])
    around: BoxesXYXY = np.concatenate([np.minimum(one[:2], two[:2]), np.maximum(one[2:], two[2:])])
    shares = [share_inside(region.padded, around) for region in found]
    if any(_OUT < share < _IN for share in shares):
        return None
    number = sum(share >= _IN for share in shares)
    return asker.ask(Task.COUNT, Form.COUNT_REGION, str(number), texts={"plural": plural(noun)}, places={"box": around})
