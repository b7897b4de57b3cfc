"""Phrases of the corpus, from which comes what an image does not show: other things, and the same ones in other looks.

Three kinds, the hardest first: the attribute swapped and the noun kept ("blue key" for "red key"), the noun swapped and
the attributes kept ("red apple"), and any other phrase. None of them may fit a region or stand in a text of the image.
"""

from collections.abc import Callable, Iterable

import numpy as np

from cloc.mllm.instructions import words as english
from cloc.mllm.instructions.facts import Facts, Region
from cloc.mllm.instructions.phrases import Phrase, contrast, read_phrase

MOST_PHRASES = 20_000
_MOST_WORDS = 8  # of a phrase: a sentence is no name to look for
_TRIES = 8  # draws of each kind of negative


class PhrasePool:
    """Phrases of the corpus, plain and different. Equal phrases in equal order give equal draws.

    Args:
        phrases: plain (`words.plain`), without repetition.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        self.phrases = tuple(phrases)
        self._by_head: dict[str, list[str]] = {}
        self._by_look: dict[str, list[str]] = {}
        looks = set()
        for text in self.phrases:
            phrase = read_phrase(text)
            self._by_head.setdefault(phrase.head, []).append(text)
            if phrase.whole:
                self._by_look.setdefault(phrase.described, []).append(text)
            looks |= {word for word in phrase.attributes if english.family_of(word)}
        self._looks = sorted(looks)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "PhrasePool":
        """The pool of some texts; reading ends when it is full."""
        found: dict[str, None] = {}
        for text in texts:
            phrase = english.plain(text)
            if 0 < len(english.words_of(phrase)) <= _MOST_WORDS and read_phrase(phrase).head not in english.GENERIC:
                found[phrase] = None
            if len(found) == MOST_PHRASES:
                break
        return cls(found)

    def absent(self, facts: Facts, *, rng: np.random.Generator, region: Region | None = None) -> Phrase | None:
        """A phrase that fits nothing in an image, or None where none was found.

        Args:
            facts: of the image.
            rng: draws the kind and the phrase.
            region: of the image, which hard negatives are like.
        """
        kinds: list[Callable[[], str]] = [lambda: self._draw(self.phrases, rng)]
        if region is not None:
            like = region.phrase
            kinds += [lambda: self._other_look(like, rng), lambda: self._other_noun(like, rng)]
        for index in rng.permutation(len(kinds)):
            for _ in range(_TRIES):
                text = kinds[index]()
                if text and not facts.may_show(read_phrase(text)):
                    return read_phrase(text)
        return None

    def absent_noun(self, facts: Facts, *, rng: np.random.Generator) -> str:
        """A noun that can be counted and names nothing in an image, or ""."""
        for _ in range(_TRIES):
            text = self._draw(self.phrases, rng)
            noun = read_phrase(text).noun if text else ""
            if noun and english.is_countable(noun) and not facts.may_show(read_phrase(noun)):
                return noun
        return ""

    def _draw(self, texts: "list[str] | tuple[str, ...]", rng: np.random.Generator) -> str:
        return texts[int(rng.integers(len(texts)))] if texts else ""

    def _other_look(self, like: Phrase, rng: np.random.Generator) -> str:
        """The same noun with an attribute that excludes one of the region's, or ""."""
        known = self._draw(self._by_head.get(like.head, []), rng)
        if known and contrast(read_phrase(known).attributes, like.attributes):
            return known
        words = like.described.split()
        places = [place for place, word in enumerate(words) if english.family_of(word)]
        if not places or not self._looks:
            return ""
        place, look = places[int(rng.integers(len(places)))], self._draw(self._looks, rng)
        if not contrast(frozenset((look,)), frozenset((words[place],))):
            return ""
        return " ".join([*words[:place], look, *words[place + 1 :], like.noun])

    def _other_noun(self, like: Phrase, rng: np.random.Generator) -> str:
        """Another noun with the same attributes, or "" where the region's text has a preposition."""
        return self._draw(self._by_look.get(like.described, []), rng) if like.whole else ""
