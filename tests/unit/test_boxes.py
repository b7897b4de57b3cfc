"""Geometry of boxes, against naive references."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloc.boxes import Letterbox, area, as_boxes, iou, nms, problem

unit = st.floats(0, 1, allow_nan=False, width=64)
sides = st.integers(1, 5000)


@st.composite
def box(draw: st.DrawFn) -> list[float]:
    xs, ys = sorted(draw(st.tuples(unit, unit))), sorted(draw(st.tuples(unit, unit)))
    return [xs[0], ys[0], xs[1], ys[1]]


boxes = st.lists(box(), min_size=1, max_size=12)


def naive_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def naive_nms(items: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    left = sorted(range(len(items)), key=lambda index: (-scores[index], index))
    kept = []
    while left:
        best, *rest = left
        kept.append(best)
        left = [index for index in rest if naive_iou(items[best], items[index]) <= threshold]
    return kept


@given(width=sides, height=sides, size=st.integers(1, 1024), items=boxes)
def test_letterbox_and_back_is_the_identity(width: int, height: int, size: int, items: list[list[float]]) -> None:
    letterbox = Letterbox(width=width, height=height, size=size)
    padded = letterbox.to_padded(items)
    assert padded.min() >= 0
    assert padded.max() <= 1
    np.testing.assert_allclose(letterbox.from_padded(padded), items, atol=1e-6)


def test_letterbox_puts_a_wide_image_on_top() -> None:
    letterbox = Letterbox(width=200, height=100, size=64)
    assert letterbox.resized == (64, 32)
    np.testing.assert_allclose(letterbox.to_padded([[0.5, 0.5, 1, 1]]), [[0.5, 0.25, 1, 0.5]])


def test_letterbox_clips_what_lies_on_the_padding() -> None:
    letterbox = Letterbox(width=200, height=100, size=64)
    np.testing.assert_allclose(letterbox.from_padded([[0, 0.25, 1, 1]]), [[0, 0.5, 1, 1]])


def test_letterbox_of_a_line_keeps_a_pixel() -> None:
    assert Letterbox(width=1000, height=1, size=64).resized == (64, 1)
    with pytest.raises(ValueError, match="at least 1 pixel, got 0x5"):
        Letterbox(width=0, height=5, size=64)


@given(a=boxes, b=boxes)
def test_iou_equals_the_naive_one(a: list[list[float]], b: list[list[float]]) -> None:
    expected = [[naive_iou(one, other) for other in b] for one in a]
    np.testing.assert_allclose(iou(as_boxes(a), as_boxes(b)), expected, atol=1e-9)


@given(items=boxes, threshold=st.sampled_from([0.0, 0.3, 0.7, 1.0]), data=st.data())
def test_nms_equals_the_naive_one(items: list[list[float]], threshold: float, data: st.DataObject) -> None:
    # Few distinct scores, so that ties occur.
    scores = data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=len(items), max_size=len(items)))
    kept = nms(as_boxes(items), np.array(scores), threshold=threshold)
    assert kept.tolist() == naive_nms(items, scores, threshold)


def test_nms_of_nothing() -> None:
    assert nms(as_boxes([]), np.array([]), threshold=0.5).tolist() == []


def test_area_of_a_degenerate_box_is_zero() -> None:
    np.testing.assert_allclose(area(as_boxes([[0, 0, 0.5, 0.5], [0.5, 0, 0.2, 1]])), [0.25, 0])


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 1, 4)])
def test_as_boxes_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected the shape \(N, 4\)"):
        as_boxes(np.ones(shape))


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ([0, 0, 1, 1], None),
        ([0.2, 0.2, 0.3, 0.3], None),
        ([0, 0, math.nan, 1], "box is not finite"),
        ([0, 0, math.inf, 1], "box is not finite"),
        ([-0.01, 0, 1, 1], "box outside its image"),
        ([0, 0, 1, 1.01], "box outside its image"),
        ([10, 20, 30, 40], "box outside its image"),
        ([0.5, 0, 0.5, 1], "degenerate box"),
        ([0.5, 0.9, 0.6, 0.1], "degenerate box"),
        ([0.5, 0.5, 0.51, 0.9], "box too small"),
    ],
)
def test_problem_names_what_is_wrong(item: list[float], reason: str | None) -> None:
    assert problem(item, min_side=0.05) == reason


@given(item=box(), min_side=st.floats(0, 0.2))
def test_problem_is_none_for_what_is_usable(item: list[float], min_side: float) -> None:
    width, height = item[2] - item[0], item[3] - item[1]
    usable = min(width, height) > 0 and min(width, height) >= min_side
    assert (problem(item, min_side=min_side) is None) == usable
