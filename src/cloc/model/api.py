"""CLOC for people who have an image, some boxes and some words.

    from cloc import CLOC

    model = CLOC.from_pretrained("runs/demo/model")
    photo = model.encode("photo.jpg")                                          # encoded once
    photo.classify([[0.1, 0.2, 0.5, 0.9]], ["a red apple", "a blue key"])[0]   # Label(text="a red apple", score=0.93)
    photo.find("the blue key")                                                 # array([x1, y1, x2, y2])

Boxes are xyxy, points (x, y), both in [0, 1] of the image as it is given; masks cover it. Embeddings are unit vectors
in numpy. Shapes: R regions, T texts, E embedding width. For batches and training take `CLOCModel` and `CLOCProcessor`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from cloc.boxes import BoxesXYXY, Letterbox
from cloc.model import checks, factory
from cloc.model.factory import AnyCLOCModel
from cloc.model.modeling import tight_boxes
from cloc.model.processing import CLOCProcessor
from cloc.tracking import local_model

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Label:
    """What a region is called.

    Attributes:
        text: the label.
        score: its probability among the labels that were offered.
    """

    text: str
    score: float


class CLOC:
    """A trained model with its processor.

    Attributes:
        model: `CLOCModel`, or `CLOCSiglipModel`.
        processor: `CLOCProcessor`.
    """

    def __init__(self, model: AnyCLOCModel, processor: CLOCProcessor) -> None:
        self.model, self.processor = model.eval(), processor

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str = "cpu") -> "CLOC":
        """Loads a folder that training wrote, a hub id, or a registered model: "models:/cloc@champion".

        A registered model comes from MLFLOW_TRACKING_URI, or from mlflow.db in the working directory.

        Raises:
            ConfigError: it cannot be loaded.
        """
        return cls(*factory.load(local_model(source), device=device))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Embeddings of texts: (T, E)."""
        return _unit(self._texts(texts)).cpu().numpy()

    @torch.no_grad()
    def encode(self, image: Image.Image | str | Path) -> "EncodedImage":
        """Encodes an image (or the file of one); the result answers any number of prompts."""
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        upright = ImageOps.exif_transpose(opened).convert("RGB")
        pixels_SS3, frame = self.processor.letterbox(upright)
        pixels = self.processor.normalize(torch.from_numpy(pixels_SS3.copy())[None].to(self.model.device))
        encoded = self.model.encode_image(pixels)
        return EncodedImage(self, encoded.tokens_BND, _unit(encoded.embeds_BE)[0].cpu().numpy(), frame)

    def _texts(self, texts: Sequence[str]) -> Tensor:
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"texts: expected a list of at least one text, got {texts!r}")
        return self.model.encode_text(self.processor.tokenize(list(texts)).to(self.model.device))


class EncodedImage:
    """An image that was encoded once.

    Attributes:
        embedding: of the whole image, (E,).
        frame: how boxes of the image map to the network's input.
    """

    def __init__(self, cloc: CLOC, tokens_1ND: Tensor, embedding: Floats, frame: Letterbox) -> None:
        self._cloc, self._tokens_1ND, self.embedding, self.frame = cloc, tokens_1ND, embedding, frame

    @torch.no_grad()
    def embed(
        self,
        boxes: npt.ArrayLike | None = None,
        *,
        points: npt.ArrayLike | None = None,
        masks: npt.ArrayLike | None = None,
    ) -> Floats:
        """Embeddings of regions: (R, E).

        Args:
            boxes: (R, 4).
            points: (R, 2), instead of boxes.
            masks: (R, height, width) over the image, instead of boxes: prompted by their tight boxes.

        Raises:
            ValueError: not exactly one kind of prompt, or one that cannot be used; the message names it.
        """
        given = {"boxes": _tensor(boxes), "points": _tensor(points), "masks": _tensor(masks)}
        checks.one_of(**given)
        if given["masks"] is not None:
            given["boxes"] = tight_boxes(given["masks"])
        device, model = self._tokens_1ND.device, self._cloc.model
        if (corners := given["boxes"]) is not None:
            checks.boxes(corners)
            padded = torch.from_numpy(self.frame.to_padded(corners[0].numpy())).float()
            return _unit(model.embed_boxes(self._tokens_1ND, padded[None].to(device)))[0].cpu().numpy()
        places = given["points"]
        assert places is not None
        checks.points(places)
        twice = torch.cat([places, places], dim=-1)[0].numpy()
        padded = torch.from_numpy(self.frame.to_padded(twice)[:, :2]).float()
        return _unit(model.embed_points(self._tokens_1ND, padded[None].to(device)))[0].cpu().numpy()

    @torch.no_grad()
    def classify(
        self,
        boxes: npt.ArrayLike | None = None,
        labels: Sequence[str] = (),
        *,
        points: npt.ArrayLike | None = None,
        masks: npt.ArrayLike | None = None,
    ) -> list[Label]:
        """The best of the labels for each region; prompts as in `embed`."""
        regions_RE = self.embed(boxes, points=points, masks=masks)
        texts_TE = self._cloc.embed_texts(labels)
        scale = float(self._cloc.model.region_logit_scale.detach().exp())
        scores_RT = torch.from_numpy(scale * regions_RE @ texts_TE.T).softmax(dim=-1)
        best, index = scores_RT.max(dim=-1)
        return [Label(labels[i], score) for i, score in zip(index.tolist(), best.tolist(), strict=True)]

    @torch.no_grad()
    def find(self, text: str) -> BoxesXYXY:
        """The box of what a text describes: (4,).

        Raises:
            ValueError: the model has no Prompter.
        """
        return self._ground(self._cloc._texts([text]))[0]

    @torch.no_grad()
    def find_all(self, texts_TE: Floats) -> BoxesXYXY:
        """The boxes of what texts describe, by their embeddings (`CLOC.embed_texts`): (T, 4).

        Raises:
            ValueError: the model has no Prompter.
        """
        return self._ground(torch.from_numpy(texts_TE).to(self._tokens_1ND.device))

    def _ground(self, texts_TE: Tensor) -> BoxesXYXY:
        padded_1T4 = self._cloc.model.ground_texts(self._tokens_1ND, texts_TE[None])
        return self.frame.from_padded(padded_1T4[0].cpu().numpy())


def _tensor(value: npt.ArrayLike | None) -> Tensor | None:
    return None if value is None else torch.from_numpy(np.asarray(value, dtype=np.float64))[None]


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)
