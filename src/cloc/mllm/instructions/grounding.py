"""Questions that are answered with boxes, or that there is none."""

from collections.abc import Iterator

import numpy as np

from cloc import boxes
from cloc.mllm.boxtext import box_to_text, boxes_to_text
from cloc.mllm.conversation import NONE, Conversation, Task
from cloc.mllm.instructions.asking import MOST_BOXES, Asker, in_order
from cloc.mllm.instructions.facts import Facts, Region
from cloc.mllm.instructions.phrases import Phrase, may_fit, read_phrase, surely_fits
from cloc.mllm.instructions.templates import Form
from cloc.mllm.instructions.words import is_countable, plural

_SAME_PLACE = 0.8  # IoU from which two regions are taken for one object


def ground(asker: Asker) -> Iterator[Conversation]:
    """The box of every text that is unambiguous in the image."""
    for index in asker.order(len(asker.facts.regions)):
        region = asker.facts.regions[index]
        if region.unique:
            yield asker.ask(
                Task.GROUND,
                Form.GROUND,
                box_to_text(region.padded),
                texts={"phrase": region.text, "be": region.phrase.be},
                truth=[region.padded],
                label=region.label,
            )


def ground_all(asker: Asker) -> Iterator[Conversation]:
    """The boxes of all that a text or a noun fits, 2 to `MOST_BOXES`, from left to right."""
    phrases = sorted({name for region in asker.facts.regions for name in (region.text, region.phrase.noun)})
    for index in asker.order(len(phrases)):
        phrase = read_phrase(phrases[index])
        found = fitting(asker.facts, phrase)
        if found is None or len(found) < 2 or not phrase.whole or not is_countable(phrase.text):
            continue
        truth = in_order([region.padded for region in found])
        texts = {"plural": plural(phrase.text)}
        yield asker.ask(Task.GROUND_ALL, Form.GROUND_ALL, boxes_to_text(truth), texts=texts, truth=truth)


def fitting(facts: Facts, phrase: Phrase) -> list[Region] | None:
    """The regions that a phrase fits, at most `MOST_BOXES`; None where one may fit or not, or two may be one object."""
    found = [region for region in facts.regions if surely_fits(phrase, region.phrase)]
    rest = [region for region in facts.regions if not surely_fits(phrase, region.phrase)]
    if len(found) > MOST_BOXES or any(may_fit(phrase, region.phrase) for region in rest):
        return None
    if len(found) > 1:
        padded = np.stack([region.padded for region in found])
        if np.triu(boxes.iou(padded, padded), k=1).max() > _SAME_PLACE:
            return None
    return found


def absent(asker: Asker) -> Iterator[Conversation]:
    """There is none: other looks and other names than the regions', and other things, in the wordings of both tasks."""
    said: set[str] = set()
    regions: list[Region | None] = [*asker.facts.regions] or [None]
    for index in asker.order(len(regions)):
        phrase = asker.pool.absent(asker.facts, rng=asker.rng, region=regions[index])
        if phrase is None or phrase.text in said:
            continue
        said.add(phrase.text)
        if phrase.whole and is_countable(phrase.text) and asker.coin(0.25):
            yield asker.ask(Task.ABSENT, Form.GROUND_ALL, NONE, texts={"plural": plural(phrase.text)})
        else:
            yield asker.ask(Task.ABSENT, Form.GROUND, NONE, texts={"phrase": phrase.text, "be": phrase.be})
