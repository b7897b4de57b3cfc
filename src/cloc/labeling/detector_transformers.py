"""Boxes by an open-vocabulary detector of `transformers` (METHOD, VESL step 3): all that
`AutoModelForZeroShotObjectDetection` loads in this version, by families. Shapes: N candidates.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloc.boxes import nms
from cloc.config.schema import GroundingConfig
from cloc.errors import ConfigError
from cloc.labeling.detector_grounding_dino import GroundingDinoNetwork
from cloc.labeling.detector_network import KEY, Candidates, Frame, Network, Pixels
from cloc.labeling.detector_omdet import OmDetTurboNetwork
from cloc.labeling.detector_owl import OwlNetwork
from cloc.labeling.detectors import Queries, Region
from cloc.labeling.models import check_model, model_name
from cloc.labeling.worker import Item

NETWORKS: Mapping[str, Callable[[GroundingConfig], Network]] = {
    "grounding-dino": GroundingDinoNetwork,
    "mm-grounding-dino": GroundingDinoNetwork,
    "omdet-turbo": OmDetTurboNetwork,
    "owlv2": OwlNetwork,
    "owlvit": OwlNetwork,
}


@dataclass(frozen=True)
class Prepared:
    """An image and what it is asked for.

    Attributes:
        phrases: distinct; none for an image whose texts hold nothing to ask for.
        pixels: the network's input; None without phrases, since the network then has nothing to do.
    """

    phrases: tuple[str, ...] = ()
    pixels: Pixels | None = None


def to_regions(
    candidates: Candidates, frame: Frame, phrases: Sequence[str], *, nms_iou: float, source: str
) -> list[Region]:
    """Regions of the original image, best first.

    Args:
        candidates: boxes with their most confident phrases.
        frame: how the image lies in what the boxes are shares of.
        phrases: the queries.
        nms_iou: class-agnostic suppression above this overlap; 1 keeps all.
        source: name of the model.
    """
    centre, half = candidates.boxes_cxcywh[:, :2], candidates.boxes_cxcywh[:, 2:] / 2
    boxes = frame.from_padded(np.concatenate([centre - half, centre + half], axis=1))
    regions = []
    for index in nms(boxes, candidates.scores, threshold=nms_iou):
        x1, y1, x2, y2 = boxes[index].tolist()
        text, score = phrases[int(candidates.queries[index])], float(candidates.scores[index])
        regions.append(Region(box=(x1, y1, x2, y2), text=text, score=score, source=source))
    return regions


class TransformersDetector:
    """Asks a detector for the phrases, or n-grams, that an image's texts hold.

    Args:
        config: section `grounding`.
        queries: what to ask for in an image.

    Raises:
        ConfigError: the checkpoint cannot be loaded, is of another kind, or `image_size` does not suit it.
    """

    in_flight = 1

    def __init__(self, config: GroundingConfig, queries: Queries) -> None:
        self._config = config
        self._queries = queries
        self._name = model_name(config.model)
        kind = check_model(config.model, key=KEY).model_type
        if kind not in NETWORKS:
            raise ConfigError(
                f"{KEY}: {config.model!r} is a {kind!r} model, which finds no boxes for texts; use one of the types "
                f"{', '.join(NETWORKS)}"
            )
        self._network = NETWORKS[kind](config)

    def prepare(self, item: Item) -> Prepared:
        """See `detectors.Detector`."""
        phrases = tuple(self._queries(item))
        return Prepared(phrases, self._network.prepare(item.image)) if phrases else Prepared()

    def bucket(self, prepared: Prepared) -> Hashable:
        """The size of the network's input; None for images that it need not see."""
        return prepared.pixels and prepared.pixels.bytes_HWC.shape[:2]

    def detect(self, batch: Sequence[Prepared]) -> list[list[Region]]:
        """See `detectors.Detector`; an image whose texts hold nothing to ask for has no regions."""
        asked = [(index, image.pixels, image.phrases) for index, image in enumerate(batch) if image.pixels]
        found: list[list[Region]] = [[] for _ in batch]
        if not asked:
            return found
        candidates = self._network.predict(
            [pixels for _, pixels, _ in asked],
            [phrases for _, _, phrases in asked],
            threshold=self._config.score_threshold,
        )
        for (index, pixels, phrases), some in zip(asked, candidates, strict=True):
            found[index] = to_regions(some, pixels.frame, phrases, nms_iou=self._config.nms_iou, source=self._name)
        return found
