"""Phrases of a caption: what the detector is asked for (METHOD, VESL step 2).

lower-case -> words -> generic web words dropped -> part-of-speech tags -> noun phrases by the grammar
`NP: {<DT>?<JJ.*>*<NN.*>+}` -> phrases of only stop words dropped -> exact duplicates dropped, order kept -> at most
`max_phrases`.

Decided here: the determiner takes part in the matching but is stripped from the phrase ("the red key" -> "red key"),
so that "a key" and "the key" are one query. Captions come from the web: markup, addresses and file names are removed,
absurdly long words are skipped, and only the first `MAX_WORDS` words of a caption are read.

Labels without VESL ask for the n-grams of the alt-text instead: no tags, no grammar, the same words.
"""

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

MAX_CHARACTERS = 20_000
MAX_WORDS = 1_000
MAX_WORD_LENGTH = 40

GRAMMAR = "NP: {<DT>?<JJ.*>*<NN.*>+}"

# Words of the web page and not of the picture, in the spirit of OWLv2, appendix A.2.
GENERIC_WORDS = frozenset(
    """
    artwork background backgrounds banner clip clipart close-up closeup copyright copyrighted cover download
    downloadable downloads editorial file footage format free gallery graphic graphics hd hq illustration
    illustrations image imagery images jpeg jpg licence license licensed logo mockup online original photo
    photograph photographer photographs photography photos pic pics picture pictures pixel pixels png poster premium
    preview print printable product resolution royalty screenshot shutterstock snapshot stock svg template thumbnail
    usage vector vectors video videos view views wallpaper wallpapers watermark web webp website x
    """.split()  # noqa: SIM905 (a list of words reads best as words)
)

# Function words: a phrase of nothing else says nothing about the picture.
STOP_WORDS = frozenset(
    """
    a about above after again all also am an and another any anything are as at be because been before behind being
    below beside between both but by can close could did do does doing down during each either else ever every
    everything few first for from front further had has have having he her here hers him his how i if in inside into
    is it its itself just kind last left less like lot lots many me middle more most much my near next no none nor
    not nothing now of off on once one ones only onto or other others our out outside over own part piece right same
    several she should side so some someone something sort such than that the their them themselves then there these
    they thing things this those through to together too top toward towards two type under until up upon us various
    very was we were what when where which while who whom whose why will with within without would you your
    """.split()  # noqa: SIM905 (a list of words reads best as words)
)

_TAG = re.compile(r"<(script|style)\b.{0,2000}?</\1\s*>|<[a-zA-Z/!?][^<>]{0,2000}>", re.DOTALL | re.IGNORECASE)
# Repetitions are bounded: hostile text must not make matching quadratic.
_ADDRESS = re.compile(
    r"(?:https?://|www\.)\S+|[^\s@]{1,64}@\S+|\S{1,64}\.(?:jpe?g|png|gif|webp|svg|html?|com|net|org)\b"
)
# A word with inner hyphens or apostrophes, or any other visible character, which ends a phrase.
_TOKEN = re.compile(r"[^\W_]+(?:['\u2019\-][^\W_]+)*|[^\w\s]")
_POSSESSIVE = re.compile(r"['\u2019]s$")
_BREAK, _COMMA = ".", ","
_BREAKS = (_BREAK, _COMMA)

Tagger = Callable[[Sequence[str]], list[tuple[str, str]]]


def words(text: str) -> list[str]:
    """Lower-case words of untrusted text in order; `"."` and `","` stand where a phrase ends."""
    text = html.unescape(text[:MAX_CHARACTERS])
    text = _ADDRESS.sub(" . ", _TAG.sub(" . ", text).lower())
    found: list[str] = []
    for token in _TOKEN.findall(text):
        if len(found) >= MAX_WORDS:
            break
        if token == _COMMA:
            found.append(_COMMA)
        elif not token[0].isalnum() or len(token) > MAX_WORD_LENGTH:
            found.append(_BREAK)
        elif _POSSESSIVE.search(token):
            found += [_POSSESSIVE.sub("", token), _BREAK]
        elif token not in GENERIC_WORDS:
            found.append(token)
    return found


def tag_lexicon(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Penn tags by the lexicon and rules that TextBlob bundles: nothing to download.

    The lexicon gives a word its most frequent tag, so that "key" is an adjective and "bear" a verb. One rule is added:
    a determiner needs a noun, so in `DT JJ*` without one, a base verb that follows, else the last adjective, is it.
    """
    from textblob.en import parser

    tagged = [(word, word if word in _BREAKS else tag) for word, tag in parser.find_tags(list(tokens))]
    wanting = False  # a determiner stands before, and since then only adjectives
    for index, (word, tag) in enumerate([*tagged, (_BREAK, _BREAK)]):
        adjective_before = index > 0 and tagged[index - 1][1].startswith("JJ")
        if wanting and tag in ("VB", "VBP"):
            tagged[index] = (word, "NN")
        elif wanting and adjective_before and not tag.startswith(("JJ", "NN", "CC", "CD", "RB", _COMMA)):
            tagged[index - 1] = (tagged[index - 1][0], "NN")
        wanting = tag in ("DT", "PRP$") or (wanting and tag.startswith(("JJ", "RB", _COMMA)))
    return tagged


TAGGERS: Mapping[str, Tagger] = {"lexicon": tag_lexicon}


class PhraseExtractor:
    """Turns captions into phrases.

    Args:
        tagger: name of a part-of-speech tagger in `TAGGERS`.
        max_phrases: phrases at most, over all captions of an image.
    """

    def __init__(self, *, tagger: str, max_phrases: int) -> None:
        self._tag = TAGGERS[tagger]
        self._max_phrases = max_phrases

    @cached_property
    def _chunker(self) -> Any:
        from nltk import RegexpParser

        return RegexpParser(GRAMMAR)

    def __call__(self, captions: Iterable[str]) -> list[str]:
        """Distinct phrases of an image's captions, in the order they appear."""
        found: dict[str, None] = {}
        for caption in captions:
            for phrase in self._phrases(caption):
                found.setdefault(phrase)
                if len(found) == self._max_phrases:
                    return list(found)
        return list(found)

    def _phrases(self, caption: str) -> Iterable[str]:
        tokens = words(caption)
        if not tokens:
            return
        for chunk in self._chunker.parse(self._tag(tokens)).subtrees(lambda tree: tree.label() == "NP"):
            leaves: list[tuple[str, str]] = chunk.leaves()
            kept = [word for place, (word, tag) in enumerate(leaves) if place or tag != "DT"]
            if any(word not in STOP_WORDS for word in kept):
                yield " ".join(kept)


class NgramExtractor:
    """Turns alt-texts into their word n-grams: the queries of the labels without VESL (METHOD; OWLv2, appendix A.2).

    Words are those of the phrase step, generic web words dropped; an n-gram ends where a phrase ends. N-grams of only
    stop words and exact duplicates are dropped.

    Args:
        max_words: length of an n-gram at most.
        max_ngrams: n-grams at most, over all alt-texts of an image; the first in reading order are kept.
    """

    def __init__(self, *, max_words: int, max_ngrams: int) -> None:
        self._max_words = max_words
        self._max_ngrams = max_ngrams

    def __call__(self, alt_texts: Iterable[str]) -> list[str]:
        """Distinct n-grams of an image's alt-texts, by where they begin, then from short to long."""
        found: dict[str, None] = {}
        for alt_text in alt_texts:
            for ngram in self._ngrams(words(alt_text)):
                found.setdefault(ngram)
                if len(found) == self._max_ngrams:
                    return list(found)
        return list(found)

    def _ngrams(self, tokens: Sequence[str]) -> Iterable[str]:
        for start in range(len(tokens)):
            for stop in range(start + 1, min(start + self._max_words, len(tokens)) + 1):
                if tokens[stop - 1] in _BREAKS:
                    break
                if any(word not in STOP_WORDS for word in tokens[start:stop]):
                    yield " ".join(tokens[start:stop])
