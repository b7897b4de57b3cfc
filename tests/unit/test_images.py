"""Image files of every kind: kept, made plain, or refused with a reason."""

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from cloc.data.images import CheckedImage, check_image

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format_, **options)
    return sink.getvalue()


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


def test_exif_rotation_is_applied_and_gone() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was turned: to be seen a quarter turn clockwise
    picture = Image.new("RGB", (60, 40), "black")
    picture.paste("white", (0, 0, 30, 40))  # left half
    image = checked(encode(picture, "JPEG", exif=exif))
    assert (image.width, image.height) == (40, 60)
    seen = pixels(image)
    assert seen[:25].min() > 200, "the left half is on top now"
    assert seen[35:].max() < 50
    with Image.open(io.BytesIO(image.body)) as opened:
        assert ExifTags.Base.Orientation not in opened.getexif()


def test_transparency_lies_on_white() -> None:
    layer = Image.new("RGBA", (60, 40), (255, 0, 0, 0))
    layer.paste((0, 0, 255, 255), (0, 0, 30, 40))
    seen = pixels(checked(encode(layer, "PNG")))
    assert seen[0, 0].tolist() == [0, 0, 255]
    assert seen[0, 59].tolist() == [255, 255, 255]


def test_sixteen_bits_keep_their_brightness() -> None:
    ramp = np.linspace(0, 65535, 60).astype(np.uint16)[None].repeat(40, axis=0)
    seen = pixels(checked(encode(Image.fromarray(ramp), "PNG")))
    np.testing.assert_allclose(seen, ramp / 257, atol=1)


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
