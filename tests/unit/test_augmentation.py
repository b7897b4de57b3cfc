"""Pixels and boxes: what is drawn is found where its box says, whatever is done to the image."""

import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from cloc.boxes import BoxesXYXY
from cloc.config.schema import AugmentationConfig
from cloc.data.augmentation import (
    Retouch,
    flipped,
    names_a_side,
    random_retouch,
    random_view,
    view_of,
)
from cloc.data.transforms import PADDING, Picture, decode, letterbox

SIDE = 96


def encoded(image: Image.Image, suffix: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, {"jpg": "JPEG", "png": "PNG"}[suffix], **({"quality": 95, "subsampling": 0} | options))
    return sink.getvalue()


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Red on blue; `box` in pixels, exclusive on the right and below."""
    image = Image.new("RGB", size, (0, 0, 200))
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(255, 0, 0))
    return image


def found(pixels_SS3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The red rectangle, xyxy in [0, 1] of the square."""
    red = (pixels_SS3[..., 0] > 128) & (pixels_SS3[..., 1] < 100) & (pixels_SS3[..., 2] < 100)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / len(pixels_SS3)


@st.composite
def drawings(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Size of an image, and a rectangle of at least a third of its sides."""
    width, height = draw(st.integers(40, 420)), draw(st.integers(40, 420))
    x1, y1 = draw(st.integers(0, width // 2)), draw(st.integers(0, height // 2))
    x2, y2 = draw(st.integers(x1 + width // 3, width)), draw(st.integers(y1 + height // 3, height))
    return (width, height), (x1, y1, x2, y2)


@given(drawing=drawings(), suffix=st.sampled_from(("jpg", "png")), seed=st.integers(0, 2**32), flip=st.booleans())
@settings(max_examples=120, deadline=None)
def test_boxes_follow_pixels(drawing, suffix: str, seed: int, flip: bool) -> None:
    size, box = drawing
    boxes_R4 = np.array([box]) / [*size, *size]
    config = AugmentationConfig(min_crop_area=0.2, max_stretch=2.0, min_visible=0.3)
    picture = Picture(encoded(rectangle(size, box), suffix))
    assert picture.size == size
    view = random_view(boxes_R4, size=size, config=config, rng=np.random.default_rng(seed))
    assert len(view.boxes_R4) == 1
    boxes_R4 = flipped(view.boxes_R4) if flip else view.boxes_R4
    pixels_SS3, frame = picture.letterbox(SIDE, crop=view.crop, retouch=Retouch(flip))
    # A pixel of the target on each side for the filter's width, one for its rounding.
    shown = frame.to_padded(boxes_R4)[0]
    if min(shown[2:] - shown[:2]) > 6 / SIDE:
        np.testing.assert_allclose(found(pixels_SS3), shown, atol=1.6 / SIDE)


@pytest.mark.parametrize("size", [(641, 427), (1001, 333), (333, 999), (450, 449), (225, 90), (100, 50)])
def test_a_draft_shows_what_full_decoding_shows(size: tuple[int, int]) -> None:
    """Sides that do not divide by the draft's scale shift nothing."""
    coarse = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    body = encoded(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), "jpg")
    pixels_SS3, frame = Picture(body).letterbox(SIDE)
    expected_SS3, expected_frame = letterbox(decode(body), size=SIDE)
    assert frame == expected_frame
    difference = np.abs(pixels_SS3.astype(int) - expected_SS3)
    assert difference.mean() < 0.6
    assert np.quantile(difference, 0.999) <= 8


def test_a_draft_saves_the_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    body = encoded(Image.new("RGB", (800, 600)), "jpg")
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda own, *a, **k: (sizes.append(own.size), resize(own, *a, **k))[1])
    Picture(body).letterbox(96)
    Picture(body).letterbox(96, crop=(0, 0, 300, 200))  # of a part, more pixels are needed
    assert sizes == [(100, 75), (400, 300)]
    assert max(Picture(body).rgb(at_least=128).size) == 200


@pytest.mark.parametrize("turn", range(1, 9))
def test_boxes_are_of_the_picture_as_seen(turn: int) -> None:
    """EXIF's rotations: width, height and crops are the upright picture's."""
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = rectangle((301, 201), (30, 40, 150, 160))
    body = encoded(stored, "jpg", exif=exif.tobytes())
    seen = decode(body)
    picture = Picture(body)
    assert picture.size == seen.size == ((301, 201) if turn < 5 else (201, 301))
    box = np.argwhere(np.asarray(seen)[..., 0] > 128)
    (top, left), (bottom, right) = box.min(axis=0), box.max(axis=0) + 1
    pixels_SS3, frame = picture.letterbox(SIDE)
    expected = frame.to_padded(np.array([[left, top, right, bottom]]) / [*seen.size, *seen.size])[0]
    np.testing.assert_allclose(found(pixels_SS3), expected, atol=1.6 / SIDE)


def test_padding_fills_what_the_image_does_not(tmp_path) -> None:
    for size in ((200, 100), (100, 200)):
        pixels_SS3, frame = Picture(encoded(Image.new("RGB", size), "png")).letterbox(
            SIDE, out=np.full((SIDE, SIDE, 3), 77, dtype=np.uint8)
        )
        width, height = frame.resized
        assert (pixels_SS3[:height, :width] == 0).all()
        assert (pixels_SS3[height:] == PADDING).all()
        assert (pixels_SS3[:, width:] == PADDING).all()


def test_a_crop_clips_boxes_and_drops_those_of_which_little_is_left() -> None:
    boxes_R4 = np.array([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 1.0, 1.0], [0.8, 0.8, 0.9, 0.9], [0.3, 0.3, 0.3, 0.5]])
    view = view_of((0, 0, 50, 50), boxes_R4, size=(100, 100), min_visible=0.2)
    assert view.kept_R is not None
    assert view.kept_R.tolist() == [0]
    view = view_of((0, 0, 50, 50), boxes_R4, size=(100, 100), min_visible=0.1)
    assert view.kept_R is not None
    assert view.kept_R.tolist() == [0, 1]
    np.testing.assert_allclose(view.boxes_R4, [[0, 0, 1, 1], [0.5, 0.5, 1, 1]])


def crops(boxes_R4: BoxesXYXY, config: AugmentationConfig, *, count: int = 200) -> Iterator[tuple[int, int, int, int]]:
    for seed in range(count):
        view = random_view(boxes_R4, size=(120, 80), config=config, rng=np.random.default_rng(seed))
        if view.crop:
            yield view.crop


def test_crops_keep_the_least_area_and_the_shape() -> None:
    config = AugmentationConfig(min_crop_area=0.25, max_stretch=1.5)
    shares = []
    for left, top, right, bottom in crops(np.zeros((0, 4)), config):
        assert 0 <= left < right <= 120
        assert 0 <= top < bottom <= 80
        shares.append((right - left) * (bottom - top) / (120 * 80))
        assert 0.9 / 1.5 < (right - left) / 120 / ((bottom - top) / 80) < 1.5 * 1.1
    assert 0.22 < min(shares) < 0.35
    assert max(shares) > 0.9


def test_a_crop_leaves_a_region() -> None:
    """One small box: one crop of three would lose it."""
    config = AugmentationConfig(min_crop_area=0.3, min_visible=0.5)
    boxes_R4 = np.array([[0.0, 0.0, 0.1, 0.1]])
    views = [random_view(boxes_R4, size=(120, 80), config=config, rng=np.random.default_rng(s)) for s in range(100)]
    assert all(len(view.boxes_R4) == 1 for view in views)
    assert len({view.crop for view in views}) > 50


def test_images_whose_texts_name_a_side_are_not_flipped() -> None:
    config = AugmentationConfig(flip=1.0)
    rng = np.random.default_rng(0)
    assert random_retouch(["a dog", "a leftover cake, all right angles"], config=config, rng=rng) is None
    assert random_retouch(["a dog"], config=config, rng=rng) == Retouch(flip=True)
    for text in ("the dog on the LEFT", "left-hand drive", "the rightmost cup", "its right side", "leftwards", "right"):
        assert names_a_side([text]), text
    for text in ("a leftover cake", "bright light", "upright piano", "copyright", "a sleft word"):
        assert not names_a_side([text]), text


def test_off_is_off() -> None:
    config, rng = AugmentationConfig(), np.random.default_rng(0)
    boxes_R4 = np.array([[0.1, 0.1, 0.4, 0.4]])
    view = random_view(boxes_R4, size=(50, 40), config=config, rng=rng)
    assert view.crop is None
    assert view.boxes_R4 is boxes_R4
    assert random_retouch(["a dog"], config=config, rng=rng) is None


def test_colours_vary_and_shapes_do_not() -> None:
    config, rng = AugmentationConfig(color_jitter=0.5), np.random.default_rng(0)
    image = rectangle((64, 64), (10, 10, 40, 40))
    looks = set()
    for _ in range(5):
        retouch = random_retouch(["a dog"], config=config, rng=rng)
        assert retouch is not None
        assert not retouch.flip
        assert all(0.5 <= factor <= 1.5 for factor in retouch.factors)
        changed = retouch(image)
        assert changed.size == image.size
        looks.add(changed.tobytes())
    assert len(looks) == 5
