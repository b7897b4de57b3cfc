"""Pixels: decoding and letterboxing an image for the network, with boxes that stay on what they frame."""

import functools
import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from cloc.boxes import Letterbox
from cloc.data.images import as_seen, orientation

# CLIP's normalisation (OpenAI), RGB in [0, 1].
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
# Padding in uint8, close to the mean, so that padded pixels are close to 0 after normalisation.
PADDING = tuple(round(255 * value) for value in PIXEL_MEAN)
_DRAFTS = (8, 4, 2)  # by which libjpeg divides the sides while it decodes
_LYING = 5  # EXIF's orientations from here on swap width and height
_REDUCING_GAP = (
    2.0  # what is far larger than the target is first averaged to twice its size, as Pillow's thumbnails are
)

Pixels = npt.NDArray[np.uint8]
PixelBox = tuple[int, int, int, int]


class Picture:
    """An encoded image whose header has been read. Its pixels are decoded once, at the scale that their use needs.

    Args:
        body: the encoded file.

    Attributes:
        width, height, size: of the original as seen, pixels; `size` is both.

    Raises:
        OSError: not an image.
    """

    def __init__(self, body: bytes) -> None:
        self._image: Image.Image = Image.open(io.BytesIO(body))
        turn = orientation(self._image)
        # A JPEG that will be turned is decoded at full size: where its sides do not divide evenly, what is left of a
        # pixel would come to lie at another end than `letterbox` takes it to be.
        self._shrinks = turn == 1 and self._image.format in ("JPEG", "MPO")
        width, height = self._image.size
        self.width, self.height = self.size = (width, height) if turn < _LYING else (height, width)

    def rgb(self, *, at_least: int = 0) -> Image.Image:
        """The whole image in RGB; of a JPEG at a reduced scale whose long side is still `at_least` pixels, if given.

        Raises:
            OSError: truncated.
        """
        if at_least:
            self._draft(max(self.width, self.height) / at_least)
        return as_seen(self._image)

    def letterbox(
        self,
        size: int,
        *,
        crop: PixelBox | None = None,
        retouch: Callable[[Image.Image], Image.Image] | None = None,
        out: Pixels | None = None,
    ) -> tuple[Pixels, Letterbox]:
        """Long-side resize and padding, METHOD's network input. Once a picture: it lets go of the pixels.

        Args:
            size: side of the square, pixels.
            crop: the part to show: left, top, right, bottom, pixels of the original; the whole image unless given.
            retouch: changes the resized image, before it is padded, and keeps its size.
            out: (size, size, 3) uint8 to write into.

        Returns:
            The pixels (`out` where given), and the map of boxes of the part.

        Raises:
            OSError: truncated.
        """
        left, top, right, bottom = crop or (0, 0, self.width, self.height)
        frame = Letterbox(right - left, bottom - top, size)
        across, down = self._draft(max(frame.width, frame.height) / size)
        # In fractions of a pixel: a draft's last column may stand for less than the others do.
        part = (left * across, top * down, right * across, bottom * down)
        image = as_seen(self._image)
        del self._image  # what is decoded is let go of at once, so that the next picture finds its memory
        if image.size != frame.resized or part != (0, 0, *image.size):
            image = image.resize(frame.resized, Image.Resampling.BICUBIC, box=part, reducing_gap=_REDUCING_GAP)
        return _padded(retouch(image) if retouch else image, size=size, out=out), frame

    def _draft(self, reduction: float) -> tuple[float, float]:
        """Has a JPEG decoded smaller, by at most `reduction`; returns what share of its sides comes out."""
        scale = next((scale for scale in _DRAFTS if scale <= reduction), 1)
        if scale > 1 and self._shrinks:
            drafted = self._image.draft("RGB", (max(1, self.width // scale), max(1, self.height // scale)))
            if drafted is not None:
                _, (_, _, width, height) = drafted
                return width / self.width, height / self.height
        return 1.0, 1.0


def decode(body: bytes, *, at_least: int = 0) -> Image.Image:
    """Decodes an image file to RGB, upright.

    Args:
        body: the encoded file.
        at_least: a JPEG may be decoded at a reduced scale whose long side is still at least this many pixels.

    Raises:
        OSError: not an image, or truncated.
    """
    return Picture(body).rgb(at_least=at_least)


def letterbox(image: Image.Image, *, size: int) -> tuple[Pixels, Letterbox]:
    """Long-side resize and padding: an RGB image -> (size, size, 3) uint8, and the map of its boxes."""
    frame = Letterbox(image.width, image.height, size)
    if image.size != frame.resized:
        image = image.resize(frame.resized, Image.Resampling.BICUBIC)
    return _padded(image, size=size), frame


def _padded(image: Image.Image, *, size: int, out: Pixels | None = None) -> Pixels:
    """The image on the top left of a square."""
    if out is None:
        out = np.empty((size, size, 3), dtype=np.uint8)
    width, height = image.size
    out[:height, :width] = np.asarray(image)
    # Copied: numpy repeats three values far slower than it copies.
    out[height:] = _blank(size)[height:]
    out[:height, width:] = _blank(size)[:height, width:]
    return out


@functools.lru_cache(maxsize=8)
def _blank(size: int) -> Pixels:
    """A square of padding."""
    return np.full((size, size, 3), PADDING, dtype=np.uint8)
