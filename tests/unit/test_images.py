"""Image files of every kind: kept, made plain, or refused with a reason."""

import io
import itertools
import re
import sys
import zlib
from typing import Any

import imagehash
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from cloc.data import transforms
from cloc.data.images import CheckedImage, check_image
from cloc.errors import ConfigError
from cloc.labeling import images as labels

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
# Colours that change slowly, so that lossy formats keep them.
SMOOTH = Image.fromarray(np.random.default_rng(5).integers(10, 235, (3, 4, 3), dtype=np.uint8)).resize(
    (60, 40), Image.Resampling.BICUBIC
)


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format_, **options)
    return sink.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def png(*, width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds little."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """A PNG with a kilobyte of text that unpacks to megabytes."""
    body = encode(PHOTO, "PNG")
    return body[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8 << 20))) + body[33:]


def check(body: bytes) -> CheckedImage | str:
    return check_image(body, min_side=16, max_pixels=10_000)


def checked(body: bytes) -> CheckedImage:
    result = check(body)
    assert isinstance(result, CheckedImage), result
    return result


def pixels(image: CheckedImage) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(image.body)) as opened:
        assert opened.format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[image.suffix]
        assert opened.size == (image.width, image.height)
        assert opened.mode in ("RGB", "L")
        return np.asarray(opened)


@pytest.mark.parametrize(
    ("format_", "suffix", "mode"),
    [("JPEG", "jpg", "RGB"), ("JPEG", "jpg", "L"), ("PNG", "png", "RGB"), ("PNG", "png", "L"), ("WEBP", "webp", "RGB")],
)
def test_plain_images_keep_their_bytes(format_: str, suffix: str, mode: str) -> None:
    body = encode(PHOTO.convert(mode), format_)
    image = checked(body)
    assert (image.body, image.suffix, image.width, image.height, image.reencoded) == (body, suffix, 60, 40, False)


@pytest.mark.parametrize(
    ("body", "suffix"),
    [
        (encode(PHOTO.convert("CMYK"), "JPEG"), "jpg"),
        (encode(PHOTO, "MPO", save_all=True, append_images=[PHOTO]), "jpg"),
        (encode(PHOTO.convert("P"), "PNG"), "png"),
        (encode(PHOTO.convert("LA"), "PNG"), "png"),
        (encode(PHOTO.convert("1"), "PNG"), "png"),
        (encode(PHOTO, "PNG", transparency=(1, 2, 3)), "png"),
        (encode(PHOTO, "GIF"), "png"),
        (encode(PHOTO, "BMP"), "png"),
        (encode(PHOTO, "TIFF"), "png"),
    ],
)
def test_other_images_are_made_plain(body: bytes, suffix: str) -> None:
    image = checked(body)
    assert (image.suffix, image.reencoded) == (suffix, True)
    expected = np.asarray(PHOTO.convert("L"), dtype=float)
    grey = np.asarray(Image.fromarray(pixels(image)).convert("L"), dtype=float)
    assert np.corrcoef(grey.ravel(), expected.ravel())[0, 1] > 0.6  # the same picture


# What has to be done to the stored picture to see it, by EXIF's number.
TURNS = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen, -1),
    7: lambda seen: np.rot90(seen, 2).swapaxes(0, 1),
    8: lambda seen: np.rot90(seen),
}


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("number", TURNS)
def test_exif_orientation_is_applied_and_gone(number: int, format_: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = number
    options = {"lossless": True} if format_ == "WEBP" else {}
    body = encode(SMOOTH, format_, exif=exif, **options)
    image = checked(body)
    seen = pixels(image).astype(int)
    assert np.abs(seen - TURNS[number](np.asarray(SMOOTH).astype(int))).mean() < 3
    with Image.open(io.BytesIO(image.body)) as opened:
        assert opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
    if format_ != "TIFF":
        kept = check_image(body, min_side=16, max_pixels=10_000, reencode=False)
        assert isinstance(kept, CheckedImage)
        assert (kept.body, kept.width, kept.height) == (body, image.width, image.height)
        assert np.abs(np.asarray(transforms.decode(body)).astype(int) - seen).mean() < 3


def test_exif_behind_the_pixels_of_a_png_counts() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    body = encode(SMOOTH, "PNG")
    chunk = exif.tobytes().removeprefix(b"Exif\0\0")
    late = len(chunk).to_bytes(4, "big") + b"eXIf" + chunk + zlib.crc32(b"eXIf" + chunk).to_bytes(4, "big")
    body = body[:-12] + late + body[-12:]
    assert (checked(body).width, checked(body).height) == (40, 60)
    picture = transforms.Picture(body)
    assert (picture.width, picture.height) == picture.rgb().size == (40, 60)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*" + b"\xff" * 200, b"Exif\0\0II*\0" + b"\x08\0\0\0\xff\xff"]
)
def test_broken_exif_spoils_no_picture(exif: bytes) -> None:
    body = encode(SMOOTH, "JPEG", exif=exif)
    assert checked(body).body == body
    assert transforms.decode(body).size == (60, 40)


def test_transparency_lies_on_white() -> None:
    layer = Image.new("RGBA", (60, 40), (255, 0, 0, 0))
    layer.paste((0, 0, 255, 255), (0, 0, 30, 40))
    seen = pixels(checked(encode(layer, "PNG")))
    assert seen[0, 0].tolist() == [0, 0, 255]
    assert seen[0, 59].tolist() == [255, 255, 255]


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_brightness(format_: str) -> None:
    ramp = np.linspace(0, 65535, 60).astype(np.uint16)[None].repeat(40, axis=0)
    body = encode(Image.fromarray(ramp), format_)
    np.testing.assert_allclose(pixels(checked(body)), ramp / 257, atol=1)
    if format_ == "PNG":
        np.testing.assert_allclose(np.asarray(transforms.decode(body))[..., 0], ramp / 257, atol=1)


def test_sixteen_bits_with_a_transparent_grey_lie_on_white() -> None:
    deep = np.full((40, 60), 3000, dtype=np.uint16)
    deep[:, 30:] = 3001  # the same in eight bits, but not what is transparent
    seen = pixels(checked(encode(Image.fromarray(deep), "PNG", transparency=3000)))
    assert seen[0, 0].tolist() == [255, 255, 255]
    assert seen[0, 59].tolist() == [12, 12, 12]


@pytest.mark.parametrize(
    ("mode", "format_"),
    [("LA", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("RGBA", "GIF"), ("LA", "WEBP"), ("RGBA", "WEBP")],
)
def test_what_is_transparent_is_white_in_every_mode(mode: str, format_: str) -> None:
    layer = SMOOTH.convert("RGBA")
    layer.putalpha(Image.fromarray(np.where(np.arange(60) < 30, 255, 0).astype(np.uint8)[None].repeat(40, axis=0)))
    body = encode(layer.convert(mode) if mode != "P" else layer.quantize(64), format_)
    for seen in (pixels(checked(body)), np.asarray(transforms.decode(body))):
        assert seen[:, 31:].min() > 245
        assert seen[:, :29].max() < 245


# ---- colours


def profile_bytes(**primaries: tuple[float, float, float]) -> bytes:
    """sRGB's ICC profile with other primaries (XYZ at D50)."""
    body = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(int.from_bytes(body[128:132], "big")):
        entry = 132 + 12 * number
        name, start = bytes(body[entry : entry + 4]).decode(), int.from_bytes(body[entry + 4 : entry + 8], "big")
        for place, value in enumerate(primaries.get(name, ())):
            body[start + 8 + 4 * place : start + 12 + 4 * place] = round(value * 65536).to_bytes(4, "big", signed=True)
    return bytes(body)


ADOBE_RGB = {
    "rXYZ": (0.60974, 0.31111, 0.01947),
    "gXYZ": (0.20528, 0.62567, 0.06087),
    "bXYZ": (0.14919, 0.06322, 0.74457),
}
SRGB = {"rXYZ": (0.43607, 0.22249, 0.01392), "gXYZ": (0.38515, 0.71687, 0.09708), "bXYZ": (0.14307, 0.06061, 0.71410)}


def by_hand(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Colours of the wide gamut in sRGB."""
    share = values / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    moved = linear @ np.array(list(ADOBE_RGB.values())) @ np.linalg.inv(np.array(list(SRGB.values())))
    moved = moved.clip(0, 1)
    return 255 * np.where(moved <= 0.0031308, moved * 12.92, 1.055 * moved ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_wide_gamuts_become_srgb(format_: str) -> None:
    options: dict[str, Any] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format_, {})
    body = encode(SMOOTH, format_, icc_profile=profile_bytes(**ADOBE_RGB), **options)
    image = checked(body)
    assert (image.profile, image.reencoded) == ("converted", True)
    expected = by_hand(np.asarray(SMOOTH).astype(float))
    assert np.abs(expected - np.asarray(SMOOTH)).max() > 20, "the profile matters"
    assert np.abs(pixels(image) - expected).mean() < 2.5
    assert "icc_profile" not in Image.open(io.BytesIO(image.body)).info
    if format_ != "TIFF":
        assert np.abs(np.asarray(transforms.decode(body)) - expected).mean() < 2.5
        assert np.abs(np.asarray(labels.decode(body, min_side=1, max_pixels=10_000)) - expected).mean() < 2.5


def test_transparent_pictures_are_converted_too() -> None:
    layer = SMOOTH.convert("RGBA")
    layer.putpixel((0, 0), (0, 0, 0, 0))
    seen = pixels(checked(encode(layer, "PNG", icc_profile=profile_bytes(**ADOBE_RGB))))
    assert seen[0, 0].tolist() == [255, 255, 255]
    assert np.abs(seen - by_hand(np.asarray(SMOOTH).astype(float)))[1:].mean() < 1


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_srgb_by_whatever_name_is_left_alone(mode: str) -> None:
    nearly = {name: tuple(value + 2e-5 for value in values) for name, values in SRGB.items()}
    for profile in (profile_bytes(), profile_bytes(**nearly)):
        body = encode(SMOOTH.convert(mode), "JPEG", icc_profile=profile)
        image = checked(body)
        assert (image.profile, image.body) == ("srgb", body)


@pytest.mark.parametrize(
    "profile", [b"garbage", profile_bytes()[:200], profile_bytes().replace(b"RGB ", b"CMYK"), bytes(5 << 20)]
)
def test_broken_profiles_are_ignored_and_told(profile: bytes) -> None:
    body = encode(SMOOTH, "WEBP", lossless=True, icc_profile=profile)
    image = checked(body)
    assert (image.profile, image.body) == ("broken", body)
    np.testing.assert_array_equal(np.asarray(transforms.decode(body)), np.asarray(SMOOTH))


def cmyk_profile() -> bytes:
    """A printer whose cyan is a green: CMYK to Lab by a table with two points an ink."""
    corners = [
        (100 * (1 - k) * (1 - (c + m + y) / 6), -80 * c * (1 - k) + 70 * m * (1 - k), 60 * (y + c) * (1 - k) / 2)
        for c, m, y, k in itertools.product((0, 1), repeat=4)
    ]
    table = b"".join(bytes([round(2.55 * light), round(a) + 128, round(b) + 128]) for light, a, b in corners)
    identity = b"".join((65536 if place % 4 == 0 else 0).to_bytes(4, "big") for place in range(9))
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * ramp + table + 3 * ramp
    tags = (1).to_bytes(4, "big") + b"A2B0" + (144).to_bytes(4, "big") + len(lut).to_bytes(4, "big")
    head = bytearray(128)
    head[0:4] = (144 + len(lut)).to_bytes(4, "big")
    head[8:12], head[12:24], head[36:40] = b"\x02\x40\0\0", b"prtrCMYKLab ", b"acsp"
    for place, value in zip((68, 72, 76), (0.9642, 1.0, 0.8249), strict=True):
        head[place : place + 4] = round(65536 * value).to_bytes(4, "big")
    return bytes(head) + tags + lut


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_cmyk_looks_as_its_profile_says(format_: str) -> None:
    cyan = Image.new("CMYK", (60, 40), (255, 0, 0, 0))
    plain = pixels(checked(encode(cyan, format_)))
    assert np.abs(plain[20, 30].astype(int) - [0, 255, 255]).max() < 4
    image = checked(encode(cyan, format_, icc_profile=cmyk_profile()))
    assert image.profile == "converted"
    red, green, blue = pixels(image)[20, 30].tolist()
    assert green > 150 > max(red, blue), "this printer's cyan is a green"


def test_cmyk_of_adobe_is_not_inverted() -> None:
    body = encode(SMOOTH.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in body
    for seen in (
        pixels(checked(body)),
        np.asarray(transforms.decode(body)),
        np.asarray(transforms.decode(body, at_least=30)),
    ):
        expected = np.asarray(SMOOTH.resize(seen.shape[1::-1], Image.Resampling.BOX)).astype(int)
        assert np.abs(seen - expected).mean() < 6


# ---- hashes and kept bytes


def test_the_hash_is_of_what_is_seen() -> None:
    photo = SMOOTH.resize((600, 400), Image.Resampling.BICUBIC)
    plain = check_image(encode(photo, "JPEG"), min_side=16, max_pixels=1 << 20)
    assert isinstance(plain, CheckedImage)
    assert (plain.phash ^ int(str(imagehash.phash(photo)), 16)).bit_count() <= 4, "Pillow's own way agrees"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    turned = check_image(
        encode(photo.transpose(Image.Transpose.ROTATE_270), "JPEG", exif=exif), min_side=16, max_pixels=1 << 20
    )
    assert isinstance(turned, CheckedImage)
    assert (turned.phash ^ plain.phash).bit_count() <= 2
    other = checked(encode(PHOTO, "PNG"))
    assert (other.phash ^ plain.phash).bit_count() > 12


def test_bytes_that_stay_are_refused_only_where_decoding_fails() -> None:
    for image, format_ in ((PHOTO.convert("CMYK"), "JPEG"), (PHOTO.convert("P"), "PNG"), (PHOTO.convert("LA"), "WEBP")):
        body = encode(image, format_)
        kept = check_image(body, min_side=16, max_pixels=10_000, reencode=False)
        assert isinstance(kept, CheckedImage)
        assert (kept.body, kept.reencoded, kept.format) == (body, False, format_)
    assert check_image(encode(PHOTO, "GIF"), min_side=16, max_pixels=10_000, reencode=False) == (
        "stored as it is, GIF is none of jpg, png, webp"
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not an image"),
        (encode(PHOTO, "JPEG")[:900], "cannot be decoded.*truncated"),
        (encode(PHOTO, "PNG")[:2000], "cannot be decoded"),
        (encode(PHOTO, "WEBP")[:900], "cannot be decoded"),
        (encode(PHOTO, "JPEG")[:20], "not an image"),
        (encode(PHOTO.resize((1, 1)), "PNG"), r"too small \(1x1 pixels"),
        (encode(PHOTO.resize((200, 15)), "JPEG"), r"too small \(200x15 pixels"),
        (encode(PHOTO.resize((200, 200)), "PNG"), r"too many pixels \(200x200, at most 10000\)"),
        (encode(Image.new("1", (20_000, 20_000)), "PNG"), "too many pixels"),
        (encode(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(9)]), "animated"),
        (encode(PHOTO, "TIFF", save_all=True, append_images=[PHOTO]), "several pages"),
        (encode(PHOTO.convert("F"), "TIFF"), "32 bits"),
        (encode(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(9)]), "animated"),
        (encode(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(9)]), "animated"),
        (encode(PHOTO, "JPEG", progressive=True)[:-200], "cannot be decoded.*truncated"),
        (encode(PHOTO, "AVIF"), "AVIF is not supported"),
        (b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(99), "HEIC is not supported"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG is not supported"),
        (b"%PDF-1.4" + bytes(99), "PDF is not supported"),
        (png(width=0, height=40), "not an image|cannot be decoded|too small"),
        (png(width=1 << 30, height=1 << 30), "too many pixels"),
        (text_bomb(), "cannot be decoded.*MAX_TEXT"),
    ],
)
def test_unusable_images_have_a_reason(body: bytes, reason: str) -> None:
    result = check(body)
    assert isinstance(result, str)
    assert re.search(reason, result)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_damaged_bytes_never_raise(format_: str) -> None:
    body = encode(PHOTO, format_)
    generator = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(body)
        for place in generator.integers(0, len(damaged), 8):
            damaged[place] = generator.integers(0, 256)
        assert isinstance(check(bytes(damaged)), CheckedImage | str)


def test_missing_library_of_hashes_is_no_fault_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ConfigError, match=r"imagehash is not installed; install cloc\[ingest\]"):
        checked(encode(SMOOTH, "PNG"))
