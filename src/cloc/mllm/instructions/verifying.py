"""Yes or no: as often the one as the other, and a no is always about something that could well be there."""

from collections.abc import Iterator

from cloc.mllm.conversation import Conversation, Task
from cloc.mllm.instructions.asking import Asker
from cloc.mllm.instructions.facts import Region
from cloc.mllm.instructions.phrases import Phrase, may_fit
from cloc.mllm.instructions.relations import share_inside
from cloc.mllm.instructions.templates import Form

_APART = 0.05  # share of the smaller of two regions up to which neither shows what the other one does


def verify(asker: Asker) -> Iterator[Conversation]:
    """One question a region, about it or about the image, with yes or no by the toss of a coin."""
    regions = asker.facts.regions
    for index in asker.order(len(regions)):
        pair = asked_both_ways(asker, regions[index], about_region=asker.coin())
        if pair is not None:
            yield pair[int(asker.coin())]


def asked_both_ways(asker: Asker, region: Region, *, about_region: bool) -> tuple[Conversation, Conversation] | None:
    """A question with the answer yes and one with no, or None where nothing was found that is not there."""
    wrong = _elsewhere(asker, region) if about_region and asker.coin() else None
    wrong = wrong or asker.pool.absent(asker.facts, rng=asker.rng, region=region)
    if wrong is None:
        return None
    shown = region if about_region else None
    return _ask(asker, region.phrase, shown, yes=True), _ask(asker, wrong, shown, yes=False)


def _elsewhere(asker: Asker, region: Region) -> Phrase | None:
    """What other regions of the image show, and neither this one nor what overlaps with it."""
    regions = asker.facts.regions
    near = [other.phrase for other in regions if _overlap(other, region) > _APART]
    far = [other.phrase for other in regions if _overlap(other, region) <= _APART]
    others = [phrase for phrase in far if not any(may_fit(phrase, other) for other in near)]
    return others[int(asker.rng.integers(len(others)))] if others else None


def _overlap(first: Region, second: Region) -> float:
    """The share of the smaller one that lies in the other; 1 for a region with itself."""
    return max(share_inside(first.padded, second.padded), share_inside(second.padded, first.padded))


def _ask(asker: Asker, phrase: Phrase, region: Region | None, *, yes: bool) -> Conversation:
    texts = {"a": phrase.indefinite, "be": phrase.be}
    answer = "yes" if yes else "no"
    if region is None:
        return asker.ask(Task.VERIFY, Form.VERIFY_IMAGE, answer, texts=texts)
    return asker.ask(Task.VERIFY, Form.VERIFY_REGION, answer, texts=texts, places={"box": region.padded})
