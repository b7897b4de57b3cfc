"""What the detectors of `transformers` share: loading, inputs and where an image lies in them, candidates, queries.

Images are prepared here and not by the checkpoint's processor, whose resizing is slow on a CPU and whose back end may
need torchvision; what it does to colours is read from it. An input travels to the device as bytes and is normalised
there. Shapes: B images, H x W pixels of the input, P boxes, N candidates, Q queries, D width.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer

from cloc.boxes import BoxesXYXY, Letterbox, as_boxes
from cloc.config.schema import GroundingConfig
from cloc.errors import ClocError
from cloc.labeling.models import load, load_model, model_name, pick_device

KEY = "grounding.model"
_TEXTS_AT_ONCE = {"cuda": 64, "cpu": 16}  # a few more than asked for cost a GPU nothing
_REMEMBERED = 16_384  # queries; 50 MB at a width of 768


class Frame(Protocol):
    """How an image lies in a network's input, in shares of which the network's boxes are."""

    def from_padded(self, boxes: npt.ArrayLike) -> BoxesXYXY:
        """Boxes (N, 4) of the network -> boxes (N, 4) of the original image, clipped to it."""


class Stretched:
    """The image fills what the boxes are shares of, whatever its shape: they are the same shares of both."""

    def from_padded(self, boxes: npt.ArrayLike) -> BoxesXYXY:
        """See `Frame`."""
        return np.clip(as_boxes(boxes), 0.0, 1.0)


@dataclass(frozen=True)
class Pixels:
    """A network's input of one image, before normalisation.

    Attributes:
        bytes_HWC: RGB, H x W; black where the image does not reach.
        rows, columns: the image itself, in the top-left corner.
        frame: how the image lies in it.
    """

    bytes_HWC: npt.NDArray[np.uint8]
    rows: int
    columns: int
    frame: Frame


def letterbox(image: Image.Image, *, size: int) -> Pixels:
    """Long-side resize, image on top left, the rest of the square black before normalisation: as OWLv2 was trained."""
    frame = Letterbox(image.width, image.height, size)
    columns, rows = frame.resized
    return paste(image.resize((columns, rows), Image.Resampling.BILINEAR), height=size, width=size, frame=frame)


def stretch(image: Image.Image, *, size: int, resample: Image.Resampling) -> Pixels:
    """Resize to the square without regard to the image's shape."""
    return paste(image.resize((size, size), resample), height=size, width=size, frame=Stretched())


def paste(image: Image.Image, *, height: int, width: int, frame: Frame) -> Pixels:
    """An image in the top-left corner of an input of `height` x `width`."""
    bytes_HWC = np.zeros((height, width, 3), dtype=np.uint8)
    bytes_HWC[: image.height, : image.width] = np.asarray(image)
    return Pixels(bytes_HWC, image.height, image.width, frame)


@dataclass(frozen=True)
class Candidates:
    """What a network says of one image: boxes above the threshold, each with its most confident query.

    Attributes:
        boxes_cxcywh: (N, 4) centre x, centre y, width, height, in shares of what the image's frame says.
        scores: (N,) in [0, 1].
        queries: (N,) places of the queries among those of the image.
    """

    boxes_cxcywh: npt.NDArray[np.floating]
    scores: npt.NDArray[np.floating]
    queries: npt.NDArray[np.intp]


class Network(Protocol):
    """One family of detectors."""

    def prepare(self, image: Image.Image) -> Pixels:
        """The input of an RGB image; called in threads."""

    def predict(
        self, batch: Sequence[Pixels], queries: Sequence[Sequence[str]], *, threshold: float
    ) -> list[Candidates]:
        """Candidates of images of one input size, each asked for its own queries (one at least), in order."""


class Checkpoint:
    """A detector as it was saved: weights on their device, tokenizer, and what is done to an image's colours.

    Raises:
        ConfigError: it cannot be loaded.
    """

    def __init__(self, config: GroundingConfig) -> None:
        self.name = model_name(config.model)
        self.device = pick_device(config.device, key="grounding.device")
        self.model: Any = load_model(
            AutoModelForZeroShotObjectDetection.from_pretrained,
            config.model,
            key=KEY,
            dtype=config.dtype,
            device=self.device,
        )
        self.tokenizer: Any = load(AutoTokenizer.from_pretrained, config.model, key=KEY)
        # The PIL back end, by name: the default one needs torchvision.
        self.processor: Any = load(AutoImageProcessor.from_pretrained, config.model, key=KEY, backend="pil")
        self._scale = self.processor.rescale_factor if self.processor.do_rescale else 1.0
        self._mean_C11 = self._colours(self.processor.image_mean, otherwise=0.0)
        self._std_C11 = self._colours(self.processor.image_std, otherwise=1.0)

    def _colours(self, values: Sequence[float] | None, *, otherwise: float) -> torch.Tensor:
        kept = values if self.processor.do_normalize and values is not None else [otherwise] * 3
        return torch.tensor(kept, dtype=torch.float32, device=self.device)[:, None, None]

    @property
    def texts_at_once(self) -> int:
        """How many queries are best encoded at once."""
        return _TEXTS_AT_ONCE[self.device.type]

    def normalised(self, batch: Sequence[Pixels]) -> torch.Tensor:
        """Inputs as the network takes them, (B, 3, H, W) in the model's precision."""
        bytes_BHWC = torch.from_numpy(np.stack([pixels.bytes_HWC for pixels in batch])).to(self.device)
        colours_BCHW = (bytes_BHWC.permute(0, 3, 1, 2).float() * self._scale - self._mean_C11) / self._std_C11
        return colours_BCHW.to(self.model.dtype).contiguous()

    def candidates(
        self, boxes_BP4: torch.Tensor, scores_BP: torch.Tensor, queries_BP: torch.Tensor, *, threshold: float
    ) -> list[Candidates]:
        """The boxes that score more than the threshold; only those leave the device.

        Args:
            boxes_BP4: centre x, centre y, width, height.
            scores_BP: confidence of the most confident query, float32.
            queries_BP: which query that is.

        Raises:
            ClocError: a value is not finite.
        """
        if not (boxes_BP4.isfinite().all() & scores_BP.isfinite().all()).item():
            raise ClocError(
                f"{KEY}: {self.name!r} gives values that are not finite (grounding.dtype is "
                f"{str(self.model.dtype).removeprefix('torch.')}); use float32, or another checkpoint"
            )
        image_N, box_N = (scores_BP > threshold).nonzero(as_tuple=True)
        boxes = boxes_BP4[image_N, box_N].float().cpu().numpy()
        scores = scores_BP[image_N, box_N].cpu().numpy()
        queries = queries_BP[image_N, box_N].cpu().numpy()
        ends = np.searchsorted(image_N.cpu().numpy(), np.arange(len(scores_BP) + 1))
        return [
            Candidates(boxes[first:last], scores[first:last], queries[first:last]) for first, last in pairwise(ends)
        ]


@dataclass(frozen=True)
class Asked:
    """The queries of a batch's images, each distinct one once.

    Attributes:
        embeddings_ND: the distinct queries.
        places_BQ: where each image's queries stand among them; its own first query where it has fewer than others.
        mask_BQ: True for an image's own queries.
    """

    embeddings_ND: torch.Tensor
    places_BQ: torch.Tensor
    mask_BQ: torch.Tensor


class QueryEncoder:
    """Embeddings of queries, of which it remembers the latest used ones.

    Always encodes the same number of texts at once, filled up with copies: a product of matrices rounds differently
    for another number of rows, and what is remembered, of other batches or shards, must not show in the results.

    Args:
        encode: texts -> embeddings (N, D).
        at_once: N, always.
        remembered: queries at most.
    """

    def __init__(
        self, encode: Callable[[list[str]], torch.Tensor], *, at_once: int, remembered: int = _REMEMBERED
    ) -> None:
        self._encode, self._at_once, self._remembered = encode, at_once, remembered
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()

    def ask(self, queries: Sequence[Sequence[str]]) -> Asked:
        """Encodes the queries of a batch's images; every image has one at least."""
        places = {query: place for place, query in enumerate(dict.fromkeys(q for asked in queries for q in asked))}
        embeddings_ND = self._embeddings(list(places))
        longest = max(len(asked) for asked in queries)
        filled = [[*asked, *[asked[0]] * (longest - len(asked))] for asked in queries]
        mask = [[number < len(asked) for number in range(longest)] for asked in queries]
        return Asked(
            embeddings_ND,
            places_BQ=torch.tensor([[places[q] for q in row] for row in filled], device=embeddings_ND.device),
            mask_BQ=torch.tensor(mask, device=embeddings_ND.device),
        )

    def _embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        new = [text for text in texts if text not in self._known]
        for text in texts:
            if text in self._known:
                self._known.move_to_end(text)
        for first in range(0, len(new), self._at_once):
            part = new[first : first + self._at_once]
            embeddings_ND = self._encode([*part, *[part[0]] * (self._at_once - len(part))])
            # Copies, since a view would keep the whole batch of embeddings in memory.
            self._known |= {text: embeddings_ND[row].clone() for row, text in enumerate(part)}
        found_ND = torch.stack([self._known[text] for text in texts])
        while len(self._known) > self._remembered:
            self._known.popitem(last=False)
        return found_ND
