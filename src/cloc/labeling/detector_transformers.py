"""Boxes by an open-vocabulary detector of `transformers`: OWLv2 and OWL-ViT (METHOD, VESL step 3).

Images are prepared here and not by the checkpoint's processor, whose resizing is slow on a CPU and whose back end may
need torchvision; mean and deviation are the processor's. Shapes: B images, P patches (= boxes), Q queries, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer

from cloc.boxes import BoxesXYXY, Letterbox, as_boxes, nms
from cloc.config.schema import GroundingConfig
from cloc.errors import ClocError, ConfigError
from cloc.labeling.detectors import Queries, Region
from cloc.labeling.models import check_model, load, load_model, model_name, pick_device
from cloc.labeling.worker import Item

_KEY = "grounding.model"
_TEXTS_AT_ONCE = 512


class Frame(Protocol):
    """How an image lies in the square network input."""

    def from_padded(self, boxes: npt.ArrayLike) -> BoxesXYXY:
        """Boxes (N, 4) of the square -> boxes (N, 4) of the original image, clipped to it."""


class Stretched:
    """The image fills the square, whatever its shape: boxes are the same shares of both."""

    def from_padded(self, boxes: npt.ArrayLike) -> BoxesXYXY:
        """See `Frame`."""
        return np.clip(as_boxes(boxes), 0.0, 1.0)


@dataclass(frozen=True)
class Prepared:
    """A square network input (RGB, `size` x `size`) and how the image lies in it."""

    square: Image.Image
    frame: Frame


def letterbox(image: Image.Image, *, size: int) -> Prepared:
    """OWLv2: long-side resize, image on top left, the rest black (before normalisation, as it was trained)."""
    frame = Letterbox(image.width, image.height, size)
    square = Image.new("RGB", (size, size))
    square.paste(image.resize(frame.resized, Image.Resampling.BILINEAR), (0, 0))
    return Prepared(square, frame)


def stretch(image: Image.Image, *, size: int) -> Prepared:
    """OWL-ViT: resize to the square without regard to the image's shape."""
    return Prepared(image.resize((size, size), Image.Resampling.BICUBIC), Stretched())


PREPARATIONS: Mapping[str, Callable[..., Prepared]] = {"owlv2": letterbox, "owlvit": stretch}


@dataclass(frozen=True)
class Predictions:
    """What the network says of one image: boxes (P, 4) as centre x, centre y, width, height of the square, and
    scores (P, Q) in [0, 1] for each of its queries."""

    boxes_cxcywh: npt.NDArray[np.floating]
    scores: npt.NDArray[np.floating]


def to_regions(
    predictions: Predictions,
    frame: Frame,
    phrases: Sequence[str],
    *,
    threshold: float,
    nms_iou: float,
    source: str,
) -> list[Region]:
    """Regions of the original image: confident boxes, each with its most confident phrase, best first.

    Args:
        predictions: boxes of the square and scores; Q is the number of phrases.
        frame: how the image lies in the square.
        phrases: the queries.
        threshold: boxes must score more than this.
        nms_iou: class-agnostic suppression above this overlap; 1 keeps all.
        source: name of the model.
    """
    best = predictions.scores.argmax(axis=1)
    scores = predictions.scores.max(axis=1)
    kept = np.flatnonzero(scores > threshold)
    centre, half = predictions.boxes_cxcywh[kept, :2], predictions.boxes_cxcywh[kept, 2:] / 2
    boxes = frame.from_padded(np.concatenate([centre - half, centre + half], axis=1))
    regions = []
    for index in nms(boxes, scores[kept], threshold=nms_iou):
        x1, y1, x2, y2 = boxes[index].tolist()
        text = phrases[int(best[kept[index]])]
        regions.append(Region(box=(x1, y1, x2, y2), text=text, score=float(scores[kept[index]]), source=source))
    return regions


class TransformersDetector:
    """Asks a detector for the phrases, or n-grams, that an image's texts hold.

    Args:
        config: section `grounding`.
        queries: what to ask for in an image.

    Raises:
        ConfigError: the checkpoint cannot be loaded, is of another kind, or `image_size` does not suit its patches.
    """

    def __init__(self, config: GroundingConfig, queries: Queries) -> None:
        self._config = config
        self._queries = queries
        self._name = model_name(config.model)
        check_model(config.model, key=_KEY)
        self._device = pick_device(config.device, key="grounding.device")
        self._model = load_model(
            AutoModelForZeroShotObjectDetection.from_pretrained,
            config.model,
            key=_KEY,
            dtype=config.dtype,
            device=self._device,
        )
        kind = self._model.config.model_type
        if kind not in PREPARATIONS:
            raise ConfigError(f"{_KEY}: {config.model!r} is a {kind!r} model; use one of {', '.join(PREPARATIONS)}")
        self._prepare = PREPARATIONS[kind]
        vision = self._model.config.vision_config
        if config.image_size % vision.patch_size:
            raise ConfigError(
                f"grounding.image_size: {config.image_size} is not a multiple of {config.model!r}'s patches "
                f"of {vision.patch_size} pixels"
            )
        self._resized = config.image_size != vision.image_size
        self._tokenizer = load(AutoTokenizer.from_pretrained, config.model, key=_KEY)
        processor = load(AutoImageProcessor.from_pretrained, config.model, key=_KEY, backend="pil")
        self._mean = np.asarray(processor.image_mean, dtype=np.float32)
        self._std = np.asarray(processor.image_std, dtype=np.float32)

    def detect(self, batch: Sequence[Item]) -> list[list[Region]]:
        """See `detectors.Detector`; an image whose texts hold nothing to ask for has no regions."""
        phrases = [self._queries(item) for item in batch]
        asked = [index for index, queries in enumerate(phrases) if queries]
        found: list[list[Region]] = [[] for _ in batch]
        if not asked:
            return found
        prepared = [self._prepare(batch[index].image, size=self._config.image_size) for index in asked]
        predictions = self._predict([item.square for item in prepared], [phrases[index] for index in asked])
        for index, item, prediction in zip(asked, prepared, predictions, strict=True):
            found[index] = to_regions(
                prediction,
                item.frame,
                phrases[index],
                threshold=self._config.score_threshold,
                nms_iou=self._config.nms_iou,
                source=self._name,
            )
        return found

    @torch.inference_mode()
    def _predict(self, squares: Sequence[Image.Image], phrases: Sequence[Sequence[str]]) -> list[Predictions]:
        """Runs the network over images with different numbers of queries; a query of several images is encoded once."""
        distinct = list(dict.fromkeys(phrase for queries in phrases for phrase in queries))
        places = {phrase: place for place, phrase in enumerate(distinct)}
        texts_ND = self._encode(distinct)
        longest = max(len(queries) for queries in phrases)
        rows = [[places[phrase] for phrase in queries] + [0] * (longest - len(queries)) for queries in phrases]
        queries_BQ = torch.tensor(rows, device=self._device)
        mask_BQ = torch.tensor(
            [[1] * len(queries) + [0] * (longest - len(queries)) for queries in phrases], device=self._device
        )
        pixels_BCHW = torch.from_numpy(np.stack([self._normalise(square) for square in squares]))
        map_BHWD, _ = self._model.image_embedder(
            pixel_values=pixels_BCHW.to(self._device, self._model.dtype), interpolate_pos_encoding=self._resized
        )
        features_BPD = map_BHWD.flatten(1, 2)
        logits_BPQ, _ = self._model.class_predictor(features_BPD, texts_ND[queries_BQ], mask_BQ)
        boxes_BP4 = self._model.box_predictor(features_BPD, map_BHWD, self._resized)
        scores = logits_BPQ.float().sigmoid().cpu().numpy()
        boxes = boxes_BP4.float().cpu().numpy()
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            raise ClocError(
                f"{_KEY}: {self._name!r} gives values that are not finite (grounding.dtype is "
                f"{self._config.dtype}); use float32, or another checkpoint"
            )
        return [Predictions(boxes[index], scores[index, :, : len(queries)]) for index, queries in enumerate(phrases)]

    def _encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit embeddings of queries, (N, D)."""
        length = self._model.config.text_config.max_position_embeddings
        parts = []
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            tokens: Any = self._tokenizer(
                list(texts[first : first + _TEXTS_AT_ONCE]),
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            ).to(self._device)
            output = self._model.base_model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            parts.append(torch.nn.functional.normalize(output.pooler_output, dim=-1))
        return torch.cat(parts)

    def _normalise(self, square: Image.Image) -> npt.NDArray[np.float32]:
        """RGB picture -> (3, size, size) float32, normalised as the checkpoint was trained."""
        pixels = np.asarray(square, dtype=np.float32) / 255
        return ((pixels - self._mean) / self._std).transpose(2, 0, 1).astype(np.float32)
