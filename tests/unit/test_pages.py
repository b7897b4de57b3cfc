"""What the reports share: pictures with boxes on them, histograms, templates that escape."""

import base64
import io

import jinja2
import numpy as np
import pytest
from PIL import Image, ImageColor

from cloc.pages import environment
from cloc.pages.charts import Histogram, chart
from cloc.pages.pictures import Mark, data_url, draw, fit

RED, GREEN = "#ff0000", "#00ff00"


def drawn(*marks: Mark, size: tuple[int, int] = (101, 51)) -> np.ndarray:
    image = Image.new("RGB", size)
    draw(image, marks)
    return np.asarray(image)


def where(pixels: np.ndarray, color: str) -> tuple[int, int, int, int]:
    """First and last column and row that have a colour: left, top, right, bottom."""
    rows, columns = np.nonzero((pixels == ImageColor.getrgb(color)).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def test_box_is_drawn_at_its_corners() -> None:
    pixels = drawn(Mark((0.1, 0.2, 0.9, 0.8), RED, width=2))
    assert where(pixels, RED) == (10, 10, 90, 40)
    assert not pixels[12:39, 12:89].any()


def test_boxes_outside_and_swapped_are_drawn_at_the_border_and_others_not_at_all() -> None:
    assert where(drawn(Mark((1.5, 0.8, -0.5, 0.2), RED)), RED) == (0, 10, 100, 40)
    assert not drawn(Mark((float("nan"), 0.2, 0.9, 0.8), RED), Mark((0, 0, float("inf"), 1), RED)).any()


def test_the_first_box_is_on_top() -> None:
    box = (0.1, 0.2, 0.9, 0.8)
    assert (drawn(Mark(box, RED), Mark(box, GREEN))[10, 50] == (255, 0, 0)).all()


def test_dashes_leave_gaps_on_a_dark_line() -> None:
    pixels = drawn(Mark((0.1, 0.2, 0.9, 0.8), RED, width=1, dashed=True))
    edge = (pixels[10, 10:91] == (255, 0, 0)).all(axis=1)
    assert 0.3 < edge.mean() < 0.9
    assert pixels[10, 10:91].any(axis=1).all()


@pytest.mark.parametrize("box", [(0.2, 0.5, 0.9, 0.9), (0.2, 0.0, 0.9, 0.9), (0.99, 0.0, 1.0, 0.01)])
def test_tag_stands_inside_the_picture(box: tuple[float, float, float, float]) -> None:
    pixels = drawn(Mark(box, RED, "12"), size=(200, 100))
    assert (pixels == 255).all(axis=2).any(), "white digits"
    left, top, right, bottom = where(pixels, RED)
    assert right - left >= 20
    assert bottom - top >= 12


def test_fit_keeps_the_shape_and_enlarges_only_when_told() -> None:
    small = Image.new("RGB", (60, 20))
    assert fit(small, side=120).size == (120, 40)
    assert fit(small, side=120, enlarge=False).size == (60, 20)
    assert fit(small, side=30, enlarge=False).size == (30, 10)
    assert fit(Image.new("RGB", (1000, 1)), side=100).size == (100, 1)


def test_data_url_holds_the_picture() -> None:
    head, _, body = data_url(Image.new("RGB", (8, 6), "red")).partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(body))).size == (8, 6)


def test_histogram_counts_ends_into_the_last_bins_and_is_flat_when_empty() -> None:
    histogram = Histogram("things", ("0", "1", "2+"), (0, 1, 2, 3))
    assert [bar.height for bar in chart(histogram).bars] == [0, 0, 0]
    histogram.add(np.array([-5, 0, 1.5, 2, 99, np.nan, np.inf]))
    assert histogram.counts.tolist() == [2, 1, 2]
    bars = chart(histogram).bars
    assert [bar.height for bar in bars] == [100, 50, 100]
    assert [bar.share for bar in bars] == [0.4, 0.2, 0.4]


def test_templates_escape_and_miss_no_name() -> None:
    pages = environment("cloc.validation")
    assert pages.from_string("{{ text }}").render(text="<b>") == "&lt;b&gt;"
    with pytest.raises(jinja2.UndefinedError):
        pages.from_string("{{ text }}").render()
    assert "--accent" in pages.get_template("base.css").render()
