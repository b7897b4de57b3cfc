"""Grounding backends behind one interface: a batch of images and their phrases in, regions out."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from cloc.config.schema import GroundingConfig
from cloc.labeling.phrases import NgramExtractor, PhraseExtractor, words
from cloc.labeling.worker import Item

T = TypeVar("T")


@dataclass(frozen=True)
class Region:
    """One found region.

    Attributes:
        box: xyxy in [0, 1] of the original image.
        text: what it is described by.
        score: confidence in [0, 1].
        source: "human" or the name of the model.
        label: its class name where the source has one.
        left_out: why the backend itself leaves it out, which is counted; "" for a region to keep.
    """

    box: tuple[float, float, float, float]
    text: str
    score: float
    source: str
    label: str = ""
    left_out: str = ""


# What a detector is asked for in an image: distinct texts in order.
Queries = Callable[[Item], list[str]]


class Detector(Protocol[T]):
    """A grounding backend: prepares images one by one, ahead and in threads, and finds regions in batches of them.

    Attributes:
        in_flight: batches that may be asked for at once.
    """

    in_flight: int

    def prepare(self, item: Item) -> T:
        """What the backend needs of an image (RGB) with its caption rows and the region rows that the data has."""

    def bucket(self, prepared: T) -> Hashable:
        """What images must have in common to share a batch."""

    def detect(self, batch: Sequence[T]) -> Sequence[Sequence[Region]]:
        """The regions of each image, in order, none to many; boxes need not be usable yet."""


class AnnotationsDetector:
    """Takes the human regions in the data set's own regions table: rows with source `human`, score and label kept."""

    in_flight = 1

    def prepare(self, item: Item) -> list[Region]:
        """See `Detector`."""
        return [
            Region(
                box=(row["x1"], row["y1"], row["x2"], row["y2"]),
                text=row["text"],
                score=row["score"],
                source="human",
                label=row["label"],
            )
            for row in item.sample.regions
            if row["source"] == "human"
        ]

    def bucket(self, prepared: list[Region]) -> Hashable:
        """All fit together."""
        return None

    def detect(self, batch: Sequence[list[Region]]) -> Sequence[list[Region]]:
        """See `Detector`."""
        return batch


class AltTextAnnotationsDetector(AnnotationsDetector):
    """The human regions that the image's alt-text names, called what the alt-text calls them; the others are left out.

    What a detector that sees every box would find when asked for the n-grams: a box is named by the longest n-gram
    that is part of its text and holds its class name ("large red key" by "red key" or "key", not by "red"). Words must
    be equal: "keys" does not name a key.

    Args:
        ngrams: the n-grams of an item's alt-texts.
    """

    def __init__(self, ngrams: Queries) -> None:
        self._ngrams = ngrams

    def prepare(self, item: Item) -> list[Region]:
        """See `Detector`."""
        ngrams = [ngram.split() for ngram in self._ngrams(item)]
        return [_named(region, ngrams) for region in super().prepare(item)]


def _named(region: Region, ngrams: Sequence[list[str]]) -> Region:
    text, label = words(region.text), words(region.label)
    inner = label if label and _contains(text, label) else text
    names = [ngram for ngram in ngrams if ngram == label or (_contains(text, ngram) and _contains(ngram, inner))]
    if not names:
        return replace(region, left_out="not named in the alt-text")
    longest = max(names, key=len)
    return replace(region, text=" ".join(longest))


def _contains(whole: Sequence[str], part: Sequence[str]) -> bool:
    return any(whole[first : first + len(part)] == part for first in range(len(whole) - len(part) + 1))


def caption_queries(config: GroundingConfig) -> Queries:
    """Noun phrases of an item's captions, generated and human ones and not the alt-text (METHOD, VESL step 2)."""
    extract = _phrase_extractor(config)
    return lambda item: extract(_captions(item))


def caption_and_alt_text_queries(config: GroundingConfig) -> Queries:
    """Noun phrases of an item's captions, then of its alt-texts: names that a weak captioner misses, to be checked."""
    extract = _phrase_extractor(config)
    return lambda item: extract([*_captions(item), *item.alt_texts])


def _phrase_extractor(config: GroundingConfig) -> PhraseExtractor:
    return PhraseExtractor(
        tagger=config.tagger,
        max_phrases=config.max_phrases,
        nltk_data=config.nltk_data,
        spacy_model=config.spacy_model,
    )


def _captions(item: Item) -> list[str]:
    return [row["text"] for row in item.sample.captions if row["kind"] != "alt_text"]


def alt_text_queries(config: GroundingConfig) -> Queries:
    """Word n-grams of an item's alt-text (METHOD, the labels without VESL)."""
    extract = NgramExtractor(max_words=config.max_ngram_words, max_ngrams=config.max_ngrams)
    return lambda item: extract(item.alt_texts)


QUERIES: Mapping[str, Callable[[GroundingConfig], Queries]] = {
    "captions": caption_queries,
    "captions_and_alt_text": caption_and_alt_text_queries,
    "alt_text_ngrams": alt_text_queries,
}


def _annotations(config: GroundingConfig) -> Detector[Any]:
    if config.phrases == "alt_text_ngrams":
        return AltTextAnnotationsDetector(alt_text_queries(config))
    return AnnotationsDetector()


def _transformers(config: GroundingConfig) -> Detector[Any]:
    from cloc.labeling.detector_transformers import TransformersDetector

    return TransformersDetector(config, QUERIES[config.phrases](config))


DETECTORS: Mapping[str, Callable[[GroundingConfig], Detector[Any]]] = {
    "annotations": _annotations,
    "transformers": _transformers,
}
