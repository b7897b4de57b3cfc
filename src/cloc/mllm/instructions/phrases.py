"""What a text says of what it names: its head, its attributes, and whether it may fit what another text names."""

import re
from dataclasses import dataclass
from functools import lru_cache

from cloc.mllm.instructions import words as english

_COMMA = re.compile(r"[,;.(]")
_WINDOW = 3  # words before a noun, in a caption, that may be its attributes
_NUMBERS = frozenset(("one", "two", "three", "four", "five", "six", "several", "many", "some", "few"))


@dataclass(frozen=True)
class Phrase:
    """A text about one thing, read.

    Attributes:
        text: plain.
        noun: what it names: the label where the text ends with it, else the last word before a preposition.
        whole: the text is the noun and what stands before it: no "with", no "made of".
        described: the words before the noun where they are attributes and the text is `whole`, else "".
        head: the last word of the noun.
        attributes: the words before the noun, also of texts with a preposition.
        groups: groups (`words.group_of`) of all its words and of the label's.
    """

    text: str
    noun: str
    whole: bool
    described: str
    head: str
    attributes: frozenset[str]
    groups: frozenset[str]

    @property
    def group(self) -> str:
        """Of the head."""
        return english.group_of(self.head)

    @property
    def indefinite(self) -> str:
        """With an indefinite article, where it takes one."""
        return english.indefinite(self.text, head=self.head)

    @property
    def be(self) -> str:
        """ "is" or "are"."""
        return "are" if english.is_plural(self.head) else "is"


@lru_cache(maxsize=1 << 15)
def read_phrase(text: str, label: str = "") -> Phrase:
    """Reads a plain text that is not empty, with the plain class name of what it names, or ""."""
    words = english.words_of(text) or (text,)
    own = english.words_of(label)
    named = bool(own) and words[-len(own) :] == own
    front = words if named else english.before_head(english.words_of(_COMMA.split(text)[0]) or words)
    noun = own if named else front[-1:]
    before = front[: -len(noun)]
    whole = len(front) == len(words) and all(map(_is_attribute, before))
    return Phrase(
        text=text,
        noun=" ".join(noun),
        whole=whole,
        described=" ".join(before) if whole else "",
        head=noun[-1],
        attributes=frozenset(before),
        groups=frozenset(map(english.group_of, (*words, *own))),
    )


def _is_attribute(word: str) -> bool:
    """Whether a word before a noun may describe it; such a word may still be a part of its name ("tennis racket")."""
    return not word.endswith("'s") and word not in _NUMBERS and word not in english.PREPOSITIONS - {"and"}


def contrast(first: frozenset[str], second: frozenset[str]) -> bool:
    """Whether attributes exclude each other: red and blue, small and large; but not old and red."""
    one, two = _values(first), _values(second)
    return any(one[family].isdisjoint(two[family]) for family in one.keys() & two.keys())


def _values(attributes: frozenset[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for word in attributes:
        value = english.family_of(word)
        if value:
            found.setdefault(value[0], set()).add(value[1])
    return found


def may_fit(phrase: Phrase, other: Phrase) -> bool:
    """Whether a phrase may fit something that the other one names, or shows.

    "key" may fit what is called "red key", "old key", or "man with a key"; "blue key" may not fit "red key".
    """
    if phrase.text == other.text or other.group in english.GENERIC or phrase.group in english.GENERIC:
        return True
    if phrase.group not in other.groups:
        return False
    return phrase.group != other.group or not contrast(phrase.attributes, other.attributes)


def surely_fits(phrase: Phrase, other: Phrase) -> bool:
    """Whether a phrase fits what the other one names: "red key" and "key" fit a "large red key"."""
    if phrase.text in (other.text, other.noun):
        return True
    words, its = english.words_of(phrase.text), english.words_of(other.text)
    return other.whole and its[-len(words) :] == words and len(words) >= len(english.words_of(other.noun))


def stands_in(phrase: Phrase, caption: str, *, known: bool) -> bool:
    """Whether a caption may speak of what a phrase names.

    Args:
        phrase: to look for.
        caption: any text about the image.
        known: the image has regions with this head, all of which the phrase is known not to fit.
    """
    words = english.words_of(caption)
    for place, word in enumerate(words):
        if english.group_of(word) != phrase.group:
            continue
        near = frozenset(words[max(0, place - _WINDOW) : place])
        if phrase.attributes <= near:
            return True
        if not known and not contrast(phrase.attributes, near):
            return True
    return False
