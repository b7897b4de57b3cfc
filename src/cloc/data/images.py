"""Checking one image file of unknown origin: decoded once, whole, before it may enter a data set.

What comes out is what is seen: EXIF rotation applied (boxes are of the picture as a viewer shows it), one frame, 8-bit
RGB or grey, transparency laid on white. A plain jpg, png or webp keeps its bytes; everything else is encoded again.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Suffix = Literal["jpg", "png", "webp"]

# Formats that are opened at all: fewer decoders, fewer surprises from hostile files.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_KEPT: dict[str, Suffix] = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_LOSSY = ("JPEG", "MPO", "WEBP")
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class CheckedImage:
    """A usable image.

    Attributes:
        body: the encoded file to store.
        suffix: its format: "jpg", "png" or "webp", by content and not by file name.
        width, height: of the picture as seen, pixels.
        phash: 64-bit perceptual hash of what is seen; equal or close for pictures that look the same.
        reencoded: whether `body` differs from the bytes that were checked.
    """

    body: bytes
    suffix: Suffix
    width: int
    height: int
    phash: int
    reencoded: bool


def check_image(body: bytes, *, min_side: int, max_pixels: int, reencode: bool = True) -> CheckedImage | str:
    """Decodes an image and makes it storable, or says why it cannot be used.

    Args:
        body: the file's bytes.
        min_side: least shorter side, pixels.
        max_pixels: largest width x height; judged by the header, before anything is decoded.
        reencode: False leaves the bytes as they are (tars that are not copied) and refuses what is no jpg, png or webp.

    Returns:
        The image, or the reason for its quarantine in a few words.
    """
    if not body:
        return "empty file"
    with warnings.catch_warnings():
        # Pillow warns of large images (judged here by `max_pixels`) and of odd metadata.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(body), formats=_FORMATS) as image:
                return _refusal(image, min_side=min_side, max_pixels=max_pixels) or _checked(
                    image, body, reencode=reencode
                )
        except UnidentifiedImageError:
            return f"not an image ({', '.join(_FORMATS).lower()})"
        except Image.DecompressionBombError:
            return "too many pixels (decompression bomb)"
        except MemoryError:
            raise
        except Exception as error:
            # Decoders meet hostile bytes with errors of any type; each means that this file cannot be decoded.
            return f"cannot be decoded ({' '.join(str(error).split())[:120] or type(error).__name__})"


def _refusal(image: Image.Image, *, min_side: int, max_pixels: int) -> str | None:
    """What the header alone rules out."""
    if min(image.size) < min_side:
        return f"too small ({image.width}x{image.height} pixels, the shorter side must be {min_side})"
    if image.width * image.height > max_pixels:
        return f"too many pixels ({image.width}x{image.height}, at most {max_pixels})"
    # A camera's MPO is a JPEG with previews behind it: its first frame is the picture.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        return f"animated or of several pages ({frames} frames)"
    if image.mode in ("F", "I"):
        return f"pixels of 32 bits (mode {image.mode}) have no fixed range"
    return None


def _checked(image: Image.Image, body: bytes, *, reencode: bool) -> CheckedImage | str:
    format_ = image.format or ""
    stored = _KEPT.get("JPEG" if format_ == "MPO" else format_)
    if not reencode and stored is None:
        return f"stored as it is, {format_} is none of {', '.join(_KEPT.values())}"
    image.load()
    rotated = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    plain = image.mode in ("RGB", "L") and not image.has_transparency_data
    if plain and not rotated and format_ in _KEPT:
        return CheckedImage(
            body, _KEPT[format_], image.width, image.height, phash=perceptual_hash(image), reencoded=False
        )
    profile = image.info.get("icc_profile") if plain else None
    seen = _eight_bit(ImageOps.exif_transpose(image))
    if stored and not reencode:
        return CheckedImage(body, stored, seen.width, seen.height, phash=perceptual_hash(seen), reencoded=False)
    sink = io.BytesIO()
    if format_ in _LOSSY:
        seen.save(sink, "JPEG", quality=_JPEG_QUALITY, subsampling=0, icc_profile=profile)
    else:
        seen.save(sink, "PNG", icc_profile=profile)
    suffix: Suffix = "jpg" if format_ in _LOSSY else "png"
    hashed = perceptual_hash(seen)
    return CheckedImage(sink.getvalue(), suffix, seen.width, seen.height, phash=hashed, reencoded=True)


def perceptual_hash(seen: Image.Image) -> int:
    """The 64-bit perceptual hash (pHash: signs of the low frequencies of a DCT) of a picture as it is seen.

    The picture is reduced by whole pixels before the filter: 0 to 2 bits off the hash of the slow way, at a third of
    its time.
    """
    import imagehash  # brings scipy, which what only decodes does without

    small = seen.convert("L").resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return int(str(imagehash.phash(small, hash_size=8)), 16)


def _eight_bit(image: Image.Image) -> Image.Image:
    """The picture as RGB or L without transparency."""
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    return image if image.mode in ("RGB", "L") else image.convert("L" if image.mode == "1" else "RGB")
