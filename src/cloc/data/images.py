"""Image files of unknown origin: what a viewer would show of them, and the check before they may enter a data set.

`as_seen` is the one definition of an image's pixels, shared by ingest, labelling and training, so that boxes fit and
colours are equal everywhere: EXIF rotation applied, colours converted to sRGB, 8 bits, transparency laid on white.
"""

import functools
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from cloc.errors import ConfigError

T = TypeVar("T")

Suffix = Literal["jpg", "png", "webp"]
Profile = Literal["none", "srgb", "converted", "broken"]

# Formats that are opened at all: fewer decoders, fewer surprises from hostile files.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_KEPT: dict[str, Suffix] = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_LOSSY = ("JPEG", "MPO", "WEBP")
_JPEG_QUALITY = 95
_MAX_PROFILE_BYTES = 1 << 22  # printers' profiles take up to 3 MB
_PROFILES = 32  # transforms kept: a camera or a program gives all its pictures one profile
_SRGB_TOLERANCE = 2  # of 255: what the many versions of sRGB differ by among themselves
_METADATA = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class CheckedImage:
    """A usable image.

    Attributes:
        body: the encoded file to store.
        suffix: its format: "jpg", "png" or "webp", by content and not by file name.
        width, height: of the picture as seen, pixels.
        phash: 64-bit perceptual hash of what is seen; equal or close for pictures that look the same.
        format: what the file that was checked is, by content: "JPEG", "PNG", ...
        reencoded: whether `body` differs from the bytes that were checked.
        profile: its ICC profile: "none", one of "srgb", "converted" to sRGB, or "broken" and so ignored.
    """

    body: bytes
    suffix: Suffix
    width: int
    height: int
    phash: int
    format: str
    reencoded: bool
    profile: Profile


@dataclass(frozen=True)
class _Seen:
    """What is seen of an image.

    Attributes:
        pixels: RGB or L.
        profile: as in `CheckedImage`.
        changed: whether plain decoders, which know of neither EXIF nor ICC, would show something else.
    """

    pixels: Image.Image
    profile: Profile
    changed: bool


def as_seen(image: Image.Image) -> Image.Image:
    """What a viewer shows of an opened image, in RGB: its first frame, upright, in sRGB, on white.

    Raises:
        OSError: truncated, or pixels without a meaning (32 bits).
        ValueError: broken in another way.
    """
    pixels = _seen(image).pixels
    return pixels if pixels.mode == "RGB" else pixels.convert("RGB")


def seen_size(body: bytes) -> tuple[int, int] | None:
    """Width and height of what `as_seen` shows of a file, by its header alone; None when that cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `check_image`, which tells what is wrong with such a file
        try:
            with Image.open(io.BytesIO(body), formats=_FORMATS) as image:
                width, height = image.size
                turned = orientation(image) in range(5, 9)
        except MemoryError:
            raise
        except Exception:
            return None
    return (height, width) if turned else (width, height)


def check_image(body: bytes, *, min_side: int, max_pixels: int, reencode: bool = True) -> CheckedImage | str:
    """Decodes an image and makes it storable, or says why it cannot be used.

    A jpg, png or webp that any decoder shows rightly keeps its bytes; everything else is encoded again, as seen.

    Args:
        body: the file's bytes.
        min_side: least shorter side, pixels.
        max_pixels: largest width x height; judged by the header, before anything is decoded.
        reencode: False leaves the bytes as they are (tars that are not copied) and refuses what is no jpg, png or webp.

    Returns:
        The image, or the reason for its quarantine in a few words.
    """
    return _opened(
        body,
        lambda image: (
            _refusal(image, min_side=min_side, max_pixels=max_pixels, reencode=reencode)
            or _checked(image, body, reencode=reencode)
        ),
        formats=_FORMATS,
    )


def decode_untrusted(body: bytes, *, max_pixels: int) -> Image.Image | str:
    """What a viewer shows of a jpg, png or webp (see `as_seen`), or in a few words why it cannot be used.

    Args:
        body: the file's bytes, of whatever origin.
        max_pixels: largest width x height; judged by the header, before anything is decoded.
    """
    return _opened(
        body,
        lambda image: _refusal(image, min_side=1, max_pixels=max_pixels, reencode=False) or as_seen(image),
        formats=tuple(_KEPT),
    )


def _opened(body: bytes, use: Callable[[Image.Image], T | str], *, formats: tuple[str, ...]) -> T | str:
    """What `use` makes of a file's image, or why it cannot."""
    if not body:
        return "empty file"
    with warnings.catch_warnings():
        # Pillow warns of large images (judged here by `max_pixels`) and of odd metadata.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(body), formats=formats) as image:
                return use(image)
        except UnidentifiedImageError:
            return _unidentified(body, formats)
        except Image.DecompressionBombError:
            return "too many pixels (decompression bomb)"
        except (MemoryError, ConfigError):
            raise
        except Exception as error:  # decoders meet hostile bytes with errors of any type: this file cannot be decoded
            return f"cannot be decoded ({' '.join(str(error).split())[:120] or type(error).__name__})"


def perceptual_hash(seen: Image.Image) -> int:
    """The 64-bit perceptual hash (pHash: signs of the low frequencies of a DCT) of a picture as it is seen.

    The picture is reduced by whole pixels before the filter: 0 to 2 bits off the hash of the slow way, at a third of
    its time.
    """
    try:
        import imagehash  # brings scipy, which what only decodes does without
    except ImportError:
        raise ConfigError("imagehash is not installed; install cloc[ingest]") from None

    small = seen.convert("L").resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return int(str(imagehash.phash(small, hash_size=8)), 16)


# Beginnings of files that are images but not of a kind that is read: a name tells more than "not an image".
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC"} | {
    b"avif": "AVIF",
    b"avis": "AVIF",
}
_SIGNATURES = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"\0\0\1\0": "ICO",
}


def _unidentified(body: bytes, formats: tuple[str, ...]) -> str:
    known = ", ".join(formats).lower()
    name = _BRANDS.get(body[8:12], "") if body[4:8] == b"ftyp" else ""
    name = name or next((name for start, name in _SIGNATURES.items() if body.startswith(start)), "")
    if not name and b"<svg" in body[:4096].lower():
        name = "SVG"
    return f"{name} is not supported ({known} are)" if name else f"not an image ({known})"


def _refusal(image: Image.Image, *, min_side: int, max_pixels: int, reencode: bool) -> str | None:
    """What the header alone rules out."""
    if min(image.size) < min_side:
        return f"too small ({image.width}x{image.height} pixels, the shorter side must be {min_side})"
    if image.width * image.height > max_pixels:
        return f"too many pixels ({image.width}x{image.height}, at most {max_pixels})"
    # A camera's MPO is a JPEG with previews behind it: its first frame is the picture.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return "animated or of several pages"
    if image.mode in ("F", "I"):
        return f"pixels of 32 bits (mode {image.mode}) have no fixed range"
    if not reencode and _stored_suffix(image) is None:
        return f"stored as it is, {image.format} is none of {', '.join(_KEPT.values())}"
    return None


def _stored_suffix(image: Image.Image) -> Suffix | None:
    """What the file can be called in a data set as it is."""
    return _KEPT.get("JPEG" if image.format == "MPO" else image.format or "")


def _checked(image: Image.Image, body: bytes, *, reencode: bool) -> CheckedImage:
    seen = _seen(image)
    suffix, changed = _stored_suffix(image), reencode and (seen.changed or image.format not in _KEPT)
    pixels = seen.pixels
    if changed or suffix is None:
        suffix = "jpg" if image.format in _LOSSY else "png"
        body = _encoded(pixels, suffix)
        if suffix == "jpg":
            pixels = Image.open(io.BytesIO(body))  # the hash is of what is stored
    return CheckedImage(
        body=body,
        suffix=suffix,
        width=pixels.width,
        height=pixels.height,
        phash=perceptual_hash(pixels),
        format="JPEG" if image.format == "MPO" else image.format or "",
        reencoded=changed,
        profile=seen.profile,
    )


def _encoded(pixels: Image.Image, suffix: Suffix) -> bytes:
    sink = io.BytesIO()
    if suffix == "jpg":
        pixels.save(sink, "JPEG", quality=_JPEG_QUALITY, subsampling=0, icc_profile=None)
    else:
        pixels.save(sink, "PNG", icc_profile=None)
    return sink.getvalue()


def _seen(image: Image.Image) -> _Seen:
    image.load()
    turn = _TURNS.get(orientation(image))
    transparent = image.has_transparency_data
    plain = image.mode in ("RGB", "L") and not transparent
    pixels = image if plain else _eight_bit(image, transparent=transparent)
    pixels, profile = _in_srgb(pixels, image.info.get("icc_profile"))
    if transparent:
        pixels = _on_white(pixels)
    elif pixels.mode not in ("RGB", "L"):
        pixels = pixels.convert("RGB")
    if turn is not None:
        pixels = pixels.transpose(turn)
    return _Seen(pixels, profile, changed=turn is not None or profile == "converted" or not plain)


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where it says nothing that can be read."""
    if image.format == "PNG":
        image.load()  # its EXIF may stand behind the pixels
    if image.format in _KEPT and not image.info.keys() & _METADATA:
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Broken EXIF raises errors of any type. It spoils no pixel: viewers show such a picture unturned.
        return 1
    return value if value in _TURNS else 1


def _eight_bit(image: Image.Image, *, transparent: bool) -> Image.Image:
    """The picture in a mode that a profile may speak of: L, RGB, RGBA or CMYK."""
    if image.mode in ("F", "I"):
        raise OSError(f"pixels of 32 bits (mode {image.mode}) have no fixed range")
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        grey = Image.fromarray((deep.astype(np.float32) / 257).round().astype(np.uint8))
        if transparent:
            grey = grey.convert("RGBA")
            grey.putalpha(Image.fromarray(np.where(deep == image.info["transparency"], 0, 255).astype(np.uint8)))
        return grey
    if transparent:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def _on_white(layer: Image.Image) -> Image.Image:
    paper = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(paper, layer).convert("RGB")


def _in_srgb(pixels: Image.Image, profile: object) -> tuple[Image.Image, Profile]:
    """The picture with its colours in sRGB, and what became of its profile. CMYK without one stays CMYK."""
    if not isinstance(profile, bytes) or not profile:
        return pixels, "none"
    transform = _transform(profile, pixels.mode) if len(profile) <= _MAX_PROFILE_BYTES else "broken"
    if isinstance(transform, str):
        return pixels, transform
    source = pixels.convert(transform.input_mode) if pixels.mode != transform.input_mode else pixels
    converted = transform.apply(source)
    if pixels.mode == "RGBA":  # the transform is of colours alone
        converted = converted.convert("RGBA")
        converted.putalpha(pixels.getchannel("A"))
    return converted, "converted"


@functools.lru_cache(maxsize=_PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | Literal["srgb", "broken"]:
    """The transform of pictures of a mode into sRGB; "srgb" where there is nothing to do."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        source = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(opened.profile.xcolor_space, "")
        # A grey picture may carry a profile of RGB (it is RGB with equal channels), never the other way round.
        if source not in {"L": ("L", "RGB"), "RGBA": ("RGB", "L")}.get(mode, (mode,)):
            return "broken"
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), source, "RGB")
        if source == "CMYK":
            return transform
        probe = _probe(source)
        moved = np.asarray(transform.apply(probe), dtype=np.int16) - np.asarray(probe.convert("RGB"), dtype=np.int16)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return "broken"
    return "srgb" if np.abs(moved).max() <= _SRGB_TOLERANCE else transform


def _probe(mode: str) -> Image.Image:
    """Colours from the whole range."""
    levels = np.linspace(0, 255, 6).round().astype(np.uint8)
    if mode == "L":
        return Image.fromarray(np.arange(0, 256, 5, dtype=np.uint8)[None])
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3))
