"""Where a model sees a phrase: the cosine of its text with small windows all over an image, painted over the image.

A window stands around the centre of every patch of the padded input, and is read by a region reader like any box; the
image is encoded once. The values then leave the padded frame: padding and resize are undone, so that what is painted
lies over the pixels that were read. Shapes: Y, X cells of the grid that lie on the image; H, W pixels of a picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from cloc.boxes import BoxesXYXY, Letterbox
from cloc.data.transforms import letterbox
from cloc.evaluation.encoding import crop
from cloc.evaluation.models import EncodedBatch, EvaluatedModel, Reader

COLOR_MAP = "inferno"  # perceptually even, and lighter where more, for colour-blind eyes and in print, too
_CELLS, _CROP_CELLS = 24, 10  # most cells a side; every cell of the crop reader is an image to encode
_WINDOW, _CROP_WINDOW = 1 / 6, 0.3  # least side of a window, share of the input
_PATCHES = 2  # and in cells
_QUIET = 0.5  # share of the picture, the least similar one, that is left unpainted
_OPAQUE = 0.8
_GREY = 0.6  # how much of the picture's own colour goes, so that the map's stand out

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Heat:
    """Cosines of a phrase over an image.

    Attributes:
        values_YX: of the cells that lie on the image.
        frame: how the image lies in the padded input.
        cells: cells a side of the padded input.
    """

    values_YX: Floats
    frame: Letterbox
    cells: int

    @property
    def peak(self) -> tuple[float, float]:
        """The centre of what the most similar cell shows of the image, (x, y) in [0, 1] of the original image."""
        row, column = np.unravel_index(int(self.values_YX.argmax()), self.values_YX.shape)
        cell = np.array([[column, row, column + 1, row + 1]]) / self.cells
        x1, y1, x2, y2 = (float(side) for side in self.frame.from_padded(cell)[0])
        return (x1 + x2) / 2, (y1 + y2) / 2


def cells_on(frame: Letterbox, *, cells: int) -> tuple[int, int]:
    """(rows, columns) of the cells of the padded square that lie on the image, in part at least."""
    width, height = frame.resized
    return math.ceil(height * cells / frame.size - 1e-9), math.ceil(width * cells / frame.size - 1e-9)


def windows(frame: Letterbox, *, cells: int, side: float) -> BoxesXYXY:
    """Windows around the centres of those cells, row by row: (Y * X, 4), xyxy in [0, 1] of the original image.

    Args:
        frame: how the image lies in the padded input.
        cells: cells a side of the padded input.
        side: of a window, share of the padded input, at least 1 / cells; it ends where the image does.
    """
    rows, columns = cells_on(frame, cells=cells)
    y_YX, x_YX = np.meshgrid((np.arange(rows) + 0.5) / cells, (np.arange(columns) + 0.5) / cells, indexing="ij")
    centres = np.stack([x_YX.ravel(), y_YX.ravel()], axis=1)
    return frame.from_padded(np.concatenate([centres - side / 2, centres + side / 2], axis=1))


def spread(heat: Heat, *, width: int, height: int, smooth: bool = True) -> Floats:
    """The values over a picture of the original image, padding and resize undone: (H, W).

    Args:
        heat: the values.
        width, height: of the picture, pixels.
        smooth: between the cells' centres linearly; else each cell is even.
    """
    right, bottom = (side * heat.cells / heat.frame.size for side in heat.frame.resized)
    resample = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    values = Image.fromarray(heat.values_YX.astype(np.float32))
    return np.asarray(values.resize((width, height), resample, box=(0, 0, right, bottom)), dtype=np.float64)


def paint(picture: Image.Image, heat: Heat) -> Image.Image:
    """An RGB picture of the image with the values over it: nothing where they are low, lightest where highest."""
    from matplotlib import colormaps

    values_HW = spread(heat, width=picture.width, height=picture.height)
    low, high = float(np.quantile(heat.values_YX, _QUIET)), float(heat.values_YX.max())
    share_HW = np.clip((values_HW - low) / (high - low), 0, 1) if high > low else np.zeros_like(values_HW)
    colors_HW3 = np.asarray(colormaps[COLOR_MAP](share_HW))[..., :3] * 255
    own_HW3 = np.asarray(picture, dtype=np.float64)
    grey_HW3 = np.asarray(picture.convert("L"), dtype=np.float64)[..., None]
    quiet_HW3 = own_HW3 + _GREY * (grey_HW3 - own_HW3)
    opacity_HW1 = (_OPAQUE * np.minimum(1, 2 * share_HW))[..., None]
    mixed_HW3 = quiet_HW3 + opacity_HW1 * (colors_HW3 - quiet_HW3)
    return Image.fromarray(mixed_HW3.round().astype(np.uint8))


def legend(steps: int = 9) -> list[str]:
    """The colour map from low to high as CSS has it, for a page's key."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps[COLOR_MAP](number / (steps - 1))) for number in range(steps)]


def similarity(
    model: EvaluatedModel,
    reader: Reader,
    image: Image.Image,
    texts: Sequence[str],
    *,
    batch_size: int,
    encoded: EncodedBatch | None = None,
) -> list[Heat]:
    """Where a model sees texts in an RGB image, by one of its readers.

    Args:
        batch_size: images a call, for a reader that encodes every window.
        encoded: what the model made of this very image, where that is at hand.
    """
    import torch

    pixels_SS3, frame = letterbox(image, size=model.size)
    cut = reader == "crop"
    cells = min(int(model.model.grid), _CROP_CELLS if cut else _CELLS)
    side = max(_CROP_WINDOW if cut else _WINDOW, _PATCHES / cells)
    boxes = windows(frame, cells=cells, side=side)
    with torch.inference_mode():
        texts_TE = model.embed_texts(texts, batch_size=batch_size)
        if cut:
            crops = [letterbox(crop(image, box), size=model.size)[0] for box in boxes]
            regions_RE = model.embed_images(np.stack(crops), batch_size=batch_size)
        else:
            encoded = encoded or model.encode_images(pixels_SS3[None], batch_size=1)
            regions_RE = model.read_regions(encoded, [frame.to_padded(boxes)], reader)
    shape = cells_on(frame, cells=cells)
    return [Heat(values.reshape(shape).astype(np.float64), frame, cells) for values in texts_TE @ regions_RE.T]
