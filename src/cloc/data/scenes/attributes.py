"""Questions about the attributes of what a region's text names: the text against others that are wrong for its box.

The object stays and one or two of the attributes that the text states, its tint and its size word, become others of
the vocabulary, as FG-OVD does with photographs (arXiv 2311.17518): "large red key" against "large blue key" and "small
red key" at the level `1_attributes`, against "small blue key" at `2_attributes`. A text that states none asks nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from cloc.data.scenes.vocabulary import TINTS, Size

# Part of what tables of attributes are compared by: raise it whenever the same regions give other questions.
VERSION = 1
LEVELS = ("1_attributes", "2_attributes")
SOURCE = "cloc scenes"

# The words for each attribute, in the order in which a text has them.
_WORDS: tuple[tuple[str, ...], ...] = (tuple(Size), tuple(tint.name for tint in TINTS))


def hard_negatives(text: str, kind: str) -> dict[str, list[str]]:
    """Texts that differ from a region's in one or two attributes, by level; levels without any are left out.

    Args:
        text: of the region, as "large red key".
        kind: name of its kind of object, with which the text ends.
    """
    stated = text.removesuffix(kind).split()
    choices = [next(words for words in _WORDS if word in words) for word in stated]
    found: dict[str, list[str]] = {level: [] for level in LEVELS}
    for others in product(*choices):
        changed = sum(other != word for other, word in zip(others, stated, strict=True))
        if changed:
            found[LEVELS[changed - 1]].append(" ".join((*others, kind)))
    return {level: texts for level, texts in found.items() if texts}


def questions(regions: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of the table of attributes for rows of the regions table, in their order."""
    for region in regions:
        for level, texts in hard_negatives(region["text"], region["label"]).items():
            yield _row(region, level, texts)


def _row(region: Mapping[str, Any], level: str, negatives: Sequence[str]) -> dict[str, Any]:
    place = {name: region[name] for name in ("key", "x1", "y1", "x2", "y2", "text")}
    return {**place, "level": level, "negatives": list(negatives), "source": SOURCE}
