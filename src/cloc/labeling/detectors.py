"""Grounding backends behind one interface: a batch of images and their phrases in, regions out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cloc.config.schema import GroundingConfig
from cloc.labeling.phrases import PhraseExtractor
from cloc.labeling.worker import Item


@dataclass(frozen=True)
class Region:
    """One found region.

    Attributes:
        box: xyxy in [0, 1] of the original image.
        text: what it is described by.
        score: confidence in [0, 1].
        source: "human" or the name of the model.
        label: its class name where the source has one.
    """

    box: tuple[float, float, float, float]
    text: str
    score: float
    source: str
    label: str = ""


class Detector(Protocol):
    """A grounding backend."""

    def detect(self, batch: Sequence[Item]) -> Sequence[Sequence[Region]]:
        """The regions of each image, in order, none to many; boxes need not be usable yet.

        Args:
            batch: images (RGB) with their caption rows and the region rows that the data has.
        """


class AnnotationsDetector:
    """Takes the human regions in the data set's own regions table."""

    def detect(self, batch: Sequence[Item]) -> list[list[Region]]:
        """The rows of the regions table with source `human`, score and label kept."""
        return [
            [
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
            for item in batch
        ]


def captions_to_ground(item: Item) -> list[str]:
    """Texts of the captions that phrases are taken from: generated and human ones, not the alt-text."""
    return [row["text"] for row in item.sample.captions if row["kind"] != "alt_text"]


def _annotations(config: GroundingConfig) -> Detector:
    return AnnotationsDetector()


def _transformers(config: GroundingConfig) -> Detector:
    from cloc.labeling.detector_transformers import TransformersDetector

    return TransformersDetector(config, PhraseExtractor(tagger=config.tagger, max_phrases=config.max_phrases))


DETECTORS: Mapping[str, Callable[[GroundingConfig], Detector]] = {
    "annotations": _annotations,
    "transformers": _transformers,
}
