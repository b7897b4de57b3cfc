"""Pixels: decoding and letterboxing an image for the network."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from cloc.boxes import Letterbox

# CLIP's normalisation (OpenAI), RGB in [0, 1].
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
# Padding in uint8, close to the mean, so that padded pixels are close to 0 after normalisation.
PADDING = tuple(round(255 * value) for value in PIXEL_MEAN)


def decode(body: bytes, *, at_least: int = 0) -> Image.Image:
    """Decodes an image file to RGB, upright.

    Args:
        body: the encoded file.
        at_least: a JPEG may be decoded at a reduced scale whose long side is still at least this many pixels.

    Raises:
        OSError: not an image, or truncated.
    """
    image: Image.Image = Image.open(io.BytesIO(body))
    if at_least and image.format == "JPEG" and max(image.size) > at_least:
        scale = at_least / max(image.size)
        image.draft("RGB", (max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    return ImageOps.exif_transpose(image).convert("RGB")


def letterbox(image: Image.Image, *, size: int) -> tuple[npt.NDArray[np.uint8], Letterbox]:
    """Long-side resize and padding: an RGB image -> (size, size, 3) uint8, and the map of its boxes."""
    frame = Letterbox(image.width, image.height, size)
    if image.size != frame.resized:
        image = image.resize(frame.resized, Image.Resampling.BICUBIC)
    if frame.resized == (size, size):
        return np.asarray(image), frame
    canvas = Image.new("RGB", (size, size), PADDING)
    canvas.paste(image, (0, 0))
    return np.asarray(canvas), frame
