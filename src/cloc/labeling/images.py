"""Decoding of untrusted images: pixels, or the reason why there are none."""

import io
import warnings

from PIL import Image, UnidentifiedImageError

from cloc.data import transforms

FORMATS = ("JPEG", "PNG", "WEBP")  # the contract's; every other decoder stays closed to untrusted bytes


class BadImageError(Exception):
    """The image cannot be used; the message is the reason that quarantine records."""


def decode(body: bytes, *, min_side: int, max_pixels: int) -> Image.Image:
    """The image as RGB and upright, as the loader decodes it too: boxes of both are of the same image.

    Args:
        body: an encoded image file.
        min_side: least length of the shorter side, pixels.
        max_pixels: most pixels; checked before anything is decompressed.

    Raises:
        BadImageError: undecodable, too small or too large.
    """
    try:
        with warnings.catch_warnings():
            # The limit below is the check; Pillow's warning would only repeat it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(body), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise BadImageError(f"too large: {image.width}x{image.height} pixels")
        if min(image.size) < min_side:
            raise BadImageError(f"too small: {image.width}x{image.height} pixels")
        return transforms.decode(body)
    except UnidentifiedImageError:
        # Pillow's own message holds a memory address, which would make equal runs differ.
        raise BadImageError(f"undecodable: not {', '.join(FORMATS)}") from None
    except (BadImageError, MemoryError):
        raise
    except Exception as error:
        # Decoders meet hostile bytes with errors of any type; each means that this file cannot be decoded.
        raise BadImageError(f"undecodable: {' '.join(str(error).split())[:200]}") from None
