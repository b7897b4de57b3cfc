"""Captioning backends behind one interface: a batch of images in, captions out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from cloc.config.schema import CaptioningConfig
from cloc.labeling.worker import Item


class Captioner(Protocol):
    """A captioning backend.

    Attributes:
        kind: what its captions are, in the captions table.
        model: name of the model, in the captions table; "" for people.
        nothing: why an image is quarantined when the backend has no caption for it.
    """

    kind: Literal["human", "generated"]
    model: str
    nothing: str

    def caption(self, batch: Sequence[Item]) -> Sequence[Sequence[str]]:
        """The captions of each image, in order, none to many.

        Args:
            batch: images (RGB) with the caption rows and the metadata (alt-text) that the data has.
        """


class AnnotationsCaptioner:
    """Takes the human captions in the data set's own captions table, all of them."""

    kind: Literal["human", "generated"] = "human"
    model = ""
    nothing = "no human caption"

    def caption(self, batch: Sequence[Item]) -> list[list[str]]:
        """The texts of the rows of kind `human`."""
        return [[row["text"] for row in item.sample.captions if row["kind"] == "human"] for item in batch]


def _annotations(config: CaptioningConfig) -> Captioner:
    return AnnotationsCaptioner()


def _transformers(config: CaptioningConfig) -> Captioner:
    from cloc.labeling.captioner_transformers import TransformersCaptioner

    return TransformersCaptioner(config)


CAPTIONERS: Mapping[str, Callable[[CaptioningConfig], Captioner]] = {
    "annotations": _annotations,
    "transformers": _transformers,
}
