"""Part-of-speech taggers of the phrase step: words in, Penn Treebank tags out (METHOD, VESL step 2).

- `lexicon`: the lexicon that TextBlob bundles; nothing to download.
- `nltk`: NLTK's averaged perceptron, which `python -m nltk.downloader averaged_perceptron_tagger_eng` fetches.
- `spacy`: the tagger of a spaCy pipeline; needs the extra `spacy` and a pipeline, `python -m spacy download NAME`.

Which one runs is said in the settings and never guessed: where its data or its library is missing, that is an error.
Everything is loaded when a tagger is made. Then it may be called from several threads at once, and what it says of a
text depends on that text alone.
"""

import json
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from cloc.errors import ConfigError

# Stand between the words where a phrase ends; their tags are themselves.
BREAK, COMMA = ".", ","
BREAKS = frozenset((BREAK, COMMA))


class Tagger(Protocol):
    """A part-of-speech tagger."""

    def __call__(self, words: Sequence[str]) -> list[str]:
        """The Penn Treebank tag of each word; those of `BREAKS` are tagged by themselves.

        Args:
            words: lower-case words of one text in order, none empty.
        """


@dataclass(frozen=True)
class TaggerData:
    """Where the taggers' data lies.

    Attributes:
        nltk_data: folder with NLTK's data; empty looks where NLTK does.
        spacy_model: name or folder of a spaCy pipeline.
    """

    nltk_data: str = ""
    spacy_model: str = ""


# TextBlob fills its lexicon at the first look-up, and a second thread would find it half full.
_LOADING = threading.Lock()
_KNOWN_WORDS = 1 << 16


class LexiconTagger:
    """Tags by the lexicon that TextBlob bundles, and unknown words by how they end.

    The lexicon gives a word its most frequent tag, so that "key" is an adjective, "bear" a verb and "leaves" another.
    Two rules are added: "left" and "right" before "of" are places and no things ("a key right of a cup"), and a
    determiner needs a noun and a number a plural (`_find_nouns`).

    Raises:
        ConfigError: TextBlob is not installed.
    """

    def __init__(self) -> None:
        try:
            from textblob.en import lexicon, parser
        except ImportError as error:
            raise _missing("lexicon", "textblob", extra="label", error=error) from None
        with _LOADING:
            len(lexicon)

        # No rule of TextBlob's tagger looks at neighbours, so that a word's tag can be kept.
        @lru_cache(maxsize=_KNOWN_WORDS)
        def tag(word: str) -> str:
            return word if word in BREAKS else str(parser.find_tags([word])[0][1])

        self._tag = tag

    def __call__(self, words: Sequence[str]) -> list[str]:
        """See `Tagger`."""
        tags = list(map(self._tag, words))
        for place, (word, following) in enumerate(pairwise(words)):
            if following == "of" and word in ("left", "right"):
                tags[place] = "IN"
        _find_nouns(words, tags)
        return tags


_NUMBERS = frozenset(("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"))
_DETERMINERS = ("DT", "PRP$")
_MODIFIERS = ("JJ", "RB", COMMA)


def _find_nouns(words: Sequence[str], tags: list[str]) -> None:
    """Tags the noun that a determiner or a number needs, where none is tagged; in place.

    The tag that the word had stays behind a bar, as the Penn Treebank writes what is uncertain: `NN|JJ`, `NNS|VBZ`.

    - `DT JJ*` and a base verb: the verb is it ("the large bear").
    - `DT JJ*` and an end: the last adjective is it ("a red key"). Neither the comma of "a large, old key" nor the "and"
      of "a black and white cat" is an end; "a red key, and a cat" and "a red key and a cat" have one.
    - "two" and the like, `JJ*` and a verb in -s: that is it ("two red leaves"); after "the" and possessives only with
      nothing between ("the leaves", but "the key hangs").
    """
    wanting = plural = False  # a determiner (a number) stands before, and since then only modifiers
    for index, tag in enumerate(tuple(tags)):
        if plural and tag == "VBZ":
            tags[index] = f"NNS|{tag}"
        elif wanting and tag in ("VB", "VBP"):
            tags[index] = f"NN|{tag}"
        elif wanting and _ends(tags, index):
            _take_as_noun(tags, index)
        modifier = tag.startswith(_MODIFIERS)
        noun_next = words[index] in _NUMBERS or words[index] == "the" or tag == "PRP$"
        plural = noun_next or (plural and modifier and not wanting)
        wanting = tag in _DETERMINERS or (wanting and modifier)
    if wanting:
        _take_as_noun(tags, len(tags))


def _ends(tags: Sequence[str], index: int) -> bool:
    """Whether the tag at `index` ends what a determiner before it began."""
    tag = tags[index]
    if tag.startswith(("NN", *_MODIFIERS)):
        return False
    after_comma = tags[index - 1] == COMMA
    if tag == "CC":
        return after_comma or (index + 1 < len(tags) and tags[index + 1] in (*_DETERMINERS, "CD"))
    return after_comma or tag != "CD"


def _take_as_noun(tags: list[str], end: int) -> None:
    """The last word before `end`, if it is tagged as an adjective."""
    last = end - 1
    while tags[last] == COMMA:
        last -= 1
    if tags[last].startswith("JJ"):
        tags[last] = f"NN|{tags[last]}"


_PERCEPTRON = "averaged_perceptron_tagger_eng"


class PerceptronTagger:
    """Tags by NLTK's averaged perceptron for English.

    Its three JSON files are read here, from the folder or the zip that `nltk.download` leaves: NLTK itself reads only
    below its own search path, and not where others of a group may write, as they may on a cluster's shared disks.

    Args:
        folder: holds NLTK's data, with `taggers/` in it; empty searches `nltk.data.path`, which NLTK_DATA extends.

    Raises:
        ConfigError: NLTK is not installed; or the data is not there or cannot be read.
    """

    def __init__(self, *, folder: str) -> None:
        try:
            from nltk.data import path as search_path
            from nltk.tag.perceptron import PerceptronTagger as Perceptron
        except ImportError as error:
            raise _missing("nltk", "nltk", extra="label", error=error) from None
        home = _perceptron_home([folder] if folder else search_path)
        if home is None:
            target = f"-d {folder} " if folder else ""
            where = f"in {folder!r}" if folder else "where NLTK looks for its data (grounding.nltk_data is empty)"
            raise ConfigError(
                f"grounding.nltk_data: {_PERCEPTRON} is not {where}; "
                f"python -m nltk.downloader {target}{_PERCEPTRON}, or set grounding.tagger=lexicon"
            )
        data = {part: _read_json(home, part) for part in ("weights", "tagdict", "classes")}
        if not (isinstance(data["weights"], dict) and isinstance(data["tagdict"], dict) and "NN" in data["classes"]):
            raise ConfigError(f"grounding.nltk_data: {home} holds no tagger of Penn Treebank tags; download it anew")
        tagger = Perceptron(load=False)
        tagger.model.weights, tagger.tagdict = data["weights"], data["tagdict"]
        tagger.classes = tagger.model.classes = set(data["classes"])
        self._tagger = tagger

    def __call__(self, words: Sequence[str]) -> list[str]:
        """See `Tagger`."""
        return [word if word in BREAKS else tag for word, tag in self._tagger.tag(list(words))]


def _perceptron_home(roots: Sequence[str]) -> Path | None:
    """The first folder, or else zip, of the perceptron's data below the roots."""
    places: Iterator[Path] = (
        Path(root) / "taggers" / name for root in roots for name in (_PERCEPTRON, f"{_PERCEPTRON}.zip")
    )
    return next((place for place in places if place.exists()), None)


def _read_json(home: Path, part: str) -> Any:
    """One of the data's files, from a folder or a zip. Raises ConfigError naming it."""
    name = f"{_PERCEPTRON}.{part}.json"
    try:
        if home.is_dir():
            return json.loads((home / name).read_text(encoding="utf-8"))
        with zipfile.ZipFile(home) as archive:
            return json.loads(archive.read(f"{_PERCEPTRON}/{name}"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"grounding.nltk_data: cannot read {name} in {home} ({error}); "
            f"download it anew: python -m nltk.downloader {_PERCEPTRON}"
        ) from error


class SpacyTagger:
    """Tags by a spaCy pipeline, of which only the tagger and what it reads are kept.

    One text at a time: a pipeline's vocabulary grows with every new word, so that it is cut back after each text, and
    that must not happen under another thread.

    Args:
        pipeline: name of an installed pipeline, or its folder.

    Raises:
        ConfigError: spaCy or the pipeline is not installed, or the pipeline has no tagger of Penn Treebank tags.
    """

    def __init__(self, *, pipeline: str) -> None:
        try:
            import spacy
        except ImportError as error:
            raise _missing("spacy", "spacy", extra="spacy", error=error) from None
        try:
            self._nlp = spacy.load(pipeline)
        except (OSError, ValueError, ImportError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ConfigError(
                f"grounding.spacy_model: cannot load {pipeline!r} ({reason}); "
                "name the folder of a spaCy pipeline, or one that is installed: python -m spacy download en_core_web_sm"
            ) from error
        for name in self._nlp.component_names:
            if not _serves_tags(self._nlp.get_pipe_meta(name)):
                self._nlp.remove_pipe(name)
        if not any("NN" in labels for labels in self._nlp.pipe_labels.values()):
            raise ConfigError(
                f"grounding.spacy_model: {pipeline!r} has no tagger of Penn Treebank tags; name an English pipeline "
                "such as en_core_web_sm"
            )
        self._make_doc = spacy.tokens.Doc
        self._lock = threading.Lock()

    def __call__(self, words: Sequence[str]) -> list[str]:
        """See `Tagger`."""
        with self._lock, self._nlp.memory_zone():
            doc = self._nlp(self._make_doc(self._nlp.vocab, words=list(words)))
            return [word if word in BREAKS else token.tag_ for word, token in zip(words, doc, strict=True)]


def _serves_tags(meta: Any) -> bool:
    """Whether a component of a spaCy pipeline sets tags, or the features (by a small network or a transformer)."""
    return any(attribute in ("token.tag", "doc.tensor", "doc._.trf_data") for attribute in meta.assigns)


def _missing(tagger: str, package: str, *, extra: str, error: ImportError) -> ConfigError:
    return ConfigError(f"grounding.tagger: {tagger!r} needs {package} ({error}); pip install 'cloc[{extra}]'")


TAGGERS: Mapping[str, Callable[[TaggerData], Tagger]] = {
    "lexicon": lambda data: LexiconTagger(),
    "nltk": lambda data: PerceptronTagger(folder=data.nltk_data),
    "spacy": lambda data: SpacyTagger(pipeline=data.spacy_model),
}


def make_tagger(name: str, data: TaggerData) -> Tagger:
    """The tagger of that name, loaded. Raises ConfigError naming what is missing."""
    if name not in TAGGERS:
        raise ConfigError(f"grounding.tagger: {name!r} is unknown; use one of {', '.join(TAGGERS)}")
    return TAGGERS[name](data)
