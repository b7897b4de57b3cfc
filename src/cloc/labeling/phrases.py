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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cloc.labeling.taggers import BREAK, BREAKS, COMMA, TaggerData, make_tagger

MAX_CHARACTERS = 20_000
MAX_WORDS = 1_000
MAX_WORD_LENGTH = 40

GRAMMAR = "NP: {<DT>?<JJ.*>*<NN.*>+}"
# The grammar over a string with one letter a tag (`_kind`). A match is tried where a run of adjectives begins and
# nowhere inside it, and no run is read twice: time is linear. Equal to NLTK's RegexpParser, which is 10 times slower.
_NOUN_PHRASE = re.compile(r"(?:D|(?<![DJ]))J*+N++")

# Words of the web and not of the picture: the list of OWLv2, appendix A.2.
WEB_WORDS = frozenset(
    """
    alibaba aliexpress amazon available background blog buy co com description diy download facebook free gif hd ideas
    illustration illustrations image images img instagram jpg online org original page pdf photo photography photos
    picclick picture pictures png porn premium resolution royalty sale sex shutterstock stock svg thumbnail tumblr
    tumgir twitter uk uploaded vector vectors video videos wallpaper wallpapers wholesale www xxx youtube
    """.split()  # noqa: SIM905 (a list of words reads best as words)
)

# Decided beside it: more words that name a picture, or its file, and nothing that is seen in it.
PICTURE_WORDS = frozenset(
    """
    backgrounds clipart close-up closeup copyright copyrighted downloadable downloads editorial file footage format
    graphic graphics hq imagery jpeg licence license licensed mockup photograph photographs pic pics pixel pixels
    preview printable product screenshot snapshot template usage view views watermark webp website x
    """.split()  # noqa: SIM905 (a list of words reads best as words)
)

GENERIC_WORDS = WEB_WORDS | PICTURE_WORDS

# Function words, those of OWLv2's list among them: a phrase of nothing else says nothing about the picture.
STOP_WORDS = frozenset(
    """
    a about above after again against all also am an and another any anything are as at be because been before behind
    being below beside between both but by can close could did do does doing don down during each either else ever
    every everything few first for from front further had has have having he her here hers herself him himself his how
    i if in inside into is it its itself just kind last left less like lot lots many me middle more most much my myself
    near next no none nor not nothing now of off on once one ones only onto or other others our ours ourselves out
    outside over own part piece right s same several she should side so some someone something sort such t than that
    the their theirs them themselves then there these they thing things this those through to together too top toward
    towards two type under until up upon us various very was we were what when where which while who whom whose why
    will with within without would you your yours yourself yourselves
    """.split()  # noqa: SIM905 (a list of words reads best as words)
)

_TAG = re.compile(r"<(script|style)\b.{0,2000}?</\1\s*>|<[a-zA-Z/!?][^<>]{0,2000}>", re.DOTALL | re.IGNORECASE)
# Repetitions are bounded: hostile text must not make matching quadratic.
_FILE_ENDING = r"\.(?:jpe?g|png|gif|webp|svg|html?|com|net|org)\b"
_ADDRESS = re.compile(rf"(?:https?://|www\.)\S+|[^\s@]{{1,64}}@\S+|\S{{1,64}}{_FILE_ENDING}")
# No address is without one of these, and captions seldom have one: they are sought first, at a fifth of the time.
_ADDRESS_SIGN = re.compile(rf"://|www\.|@|{_FILE_ENDING}")
# A word with inner hyphens or apostrophes, or any other visible character, which ends a phrase.
_TOKEN = re.compile(r"[^\W_]+(?:['\u2019\-][^\W_]+)*|[^\w\s]")
_POSSESSIVE = ("'s", "\u2019s")


@dataclass(frozen=True, slots=True)
class Reading:
    """A text, read.

    Attributes:
        words: in lower case, without generic words; `"."` and `","` stand where a phrase ends.
        gaps: places in `words` before which generic words were dropped.
    """

    words: list[str]
    gaps: set[int]


def words(text: str) -> list[str]:
    """Lower-case words of untrusted text in order; `"."` and `","` stand where a phrase ends. See `read`."""
    return read(text).words


def read(text: str) -> Reading:
    """Words of untrusted text. Time is linear in the text's length, of which `MAX_CHARACTERS` are read at most."""
    text = html.unescape(text[:MAX_CHARACTERS])
    if "<" in text:
        text = _TAG.sub(" . ", text)
    text = text.lower()
    if _ADDRESS_SIGN.search(text):
        text = _ADDRESS.sub(" . ", text)
    found: list[str] = []
    gaps: set[int] = set()
    for token in _TOKEN.findall(text):
        if len(found) >= MAX_WORDS:
            break
        if token in GENERIC_WORDS:
            gaps.add(len(found))
        elif token == COMMA:
            found.append(COMMA)
        elif not token[0].isalnum() or len(token) > MAX_WORD_LENGTH:
            found.append(BREAK)
        elif token.endswith(_POSSESSIVE):
            owner = token[:-2]
            found += [BREAK] if owner in GENERIC_WORDS else [owner, BREAK]
        else:
            found.append(token)
    return Reading(found, gaps)


@lru_cache(maxsize=1024)
def _kind(tag: str) -> str:
    """What the grammar sees of a tag, in one letter: determiner, adjective, noun, or other."""
    if tag == "DT":
        return "D"
    return {"JJ": "J", "NN": "N"}.get(tag[:2], "o")


def noun_phrases(tags: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where the noun phrases by `GRAMMAR` begin and end (exclusive), from left to right."""
    return (match.span() for match in _NOUN_PHRASE.finditer("".join(map(_kind, tags))))


def _restore(tags: list[str], gap: int) -> None:
    """Takes back, in place, uncertain nouns beside a generic word that was dropped, which was the noun instead.

    So are the adjective before it ("on a plain background") and the verb after it ("the image shows").
    """
    if gap and "|J" in tags[gap - 1]:
        tags[gap - 1] = "JJ"
    if gap < len(tags) and "|V" in tags[gap]:
        tags[gap] = "VB"


class PhraseExtractor:
    """Turns captions into phrases. Several threads may call it at once.

    Args:
        tagger: name of a part-of-speech tagger in `taggers.TAGGERS`.
        max_phrases: phrases at most, over all captions of an image.
        nltk_data: folder with NLTK's data (tagger nltk); empty looks where NLTK does.
        spacy_model: name or folder of a spaCy pipeline (tagger spacy).

    Raises:
        ConfigError: the tagger is unknown, or its library or data is missing.
    """

    def __init__(self, *, tagger: str, max_phrases: int, nltk_data: str = "", spacy_model: str = "") -> None:
        self._tag = make_tagger(tagger, TaggerData(nltk_data=nltk_data, spacy_model=spacy_model))
        self._max_phrases = max_phrases

    def __call__(self, captions: Iterable[str]) -> list[str]:
        """Distinct phrases of an image's captions, in the order they appear."""
        found: dict[str, None] = {}
        for caption in captions:
            for phrase in self._phrases(caption):
                found.setdefault(phrase)
                if len(found) == self._max_phrases:
                    return list(found)
        return list(found)

    def _phrases(self, caption: str) -> Iterator[str]:
        reading = read(caption)
        tags = self._tag(reading.words)
        for place in reading.gaps:
            _restore(tags, place)
        for start, stop in noun_phrases(tags):
            kept = reading.words[start + (tags[start] == "DT") : stop]
            if not STOP_WORDS.issuperset(kept):
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

    def _ngrams(self, tokens: Sequence[str]) -> Iterator[str]:
        for start in range(len(tokens)):
            for stop in range(start + 1, min(start + self._max_words, len(tokens)) + 1):
                if tokens[stop - 1] in BREAKS:
                    break
                if not STOP_WORDS.issuperset(tokens[start:stop]):
                    yield " ".join(tokens[start:stop])
