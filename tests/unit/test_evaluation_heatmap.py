"""Heat maps and boxes lie over the pixels that they are of: padding and resize undone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cloc.boxes import Letterbox
from cloc.evaluation import heatmap
from cloc.evaluation.gallery import Asked, Box, heat_cards
from cloc.evaluation.heatmap import Heat, cells_on, paint, similarity, spread, windows

SIZES = [(640, 320), (320, 640), (500, 333), (333, 500), (400, 400), (64, 7)]


def _one_bright(frame, cells, row, column):
    values = np.zeros(cells_on(frame, cells=cells))
    values[row, column] = 1.0
    return Heat(values, frame, cells)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("cells", [7, 8, 14])
def test_a_bright_cell_lights_exactly_its_pixels(width, height, cells):
    frame = Letterbox(width, height, 224)
    rows, columns = cells_on(frame, cells=cells)
    row, column = rows // 2, columns // 2
    lit = np.argwhere(spread(_one_bright(frame, cells, row, column), width=width, height=height, smooth=False) > 0.5)
    # Where that cell of the padded square lies in the original image, by the boxes' own map.
    box = frame.from_padded(np.array([[column, row, column + 1, row + 1]]) / cells)[0] * [width, height, width, height]
    top, left = lit.min(axis=0)
    bottom, right = lit.max(axis=0) + 1
    assert np.abs(np.array([left, top, right, bottom]) - box).max() <= 1
    assert len(lit) == (bottom - top) * (right - left)


@pytest.mark.parametrize(("width", "height"), SIZES[:4])
def test_a_smooth_map_peaks_where_the_cell_is(width, height):
    frame, cells = Letterbox(width, height, 224), 8
    rows, columns = cells_on(frame, cells=cells)
    heat = _one_bright(frame, cells, rows - 2, columns - 2)
    row, column = np.unravel_index(spread(heat, width=width, height=height).argmax(), (height, width))
    x, y = heat.peak
    assert abs(column + 0.5 - x * width) <= 1
    assert abs(row + 0.5 - y * height) <= 1
    expected = (np.array([columns - 1.5, rows - 1.5]) / cells * 224) / frame.resized
    assert [x, y] == pytest.approx(expected)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_windows_cover_the_image_and_lie_in_it(width, height):
    frame = Letterbox(width, height, 96)
    boxes = windows(frame, cells=6, side=1 / 6)
    rows, columns = cells_on(frame, cells=6)
    assert len(boxes) == rows * columns
    assert boxes.min() == 0
    assert boxes.max() == 1
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    assert areas.sum() == pytest.approx(1)  # windows as wide as cells leave no gap and do not overlap


def test_the_peak_of_a_cell_that_padding_cuts_lies_in_the_image():
    heat = _one_bright(Letterbox(640, 230, 64), 8, 2, 0)  # the third row of cells is 2.875 cells deep
    assert heat.peak == pytest.approx((1 / 16, (2 + 2.875) / 2 / 2.875))


def test_nothing_is_painted_where_all_is_alike():
    picture = Image.new("RGB", (40, 20), (90, 90, 90))
    frame = Letterbox(40, 20, 40)
    assert np.asarray(paint(picture, Heat(np.full((4, 8), 0.3), frame, 8))).tolist() == np.asarray(picture).tolist()
    lit = np.asarray(paint(picture, _one_bright(frame, 8, 1, 6))).astype(int)
    changed = np.argwhere(np.abs(lit - 90).sum(axis=2) > 10)
    assert changed.min(axis=0).tolist() >= [2, 27]
    assert lit[7, 32].sum() > 3 * 90 + 150


class _RedEyes:
    """Stands in for a model: a region is as red as its pixels are, and every text asks for red."""

    name, size, readers = "eyes", 96, ("crop", "roi_align")
    model = SimpleNamespace(grid=12)

    def embed_texts(self, texts, *, batch_size):
        return np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (len(texts), 1))

    def embed_images(self, pixels, *, batch_size):
        red = pixels[..., 0].astype(np.float32) - pixels[..., 1]
        return np.stack([red.mean(axis=(1, 2)) / 255, np.ones(len(pixels))], axis=1)

    def encode_images(self, pixels, *, batch_size):
        assert pixels.shape == (1, self.size, self.size, 3)
        return torch.from_numpy(pixels)

    def read_regions(self, encoded, boxes, reader):
        assert reader == "roi_align"
        found = []
        for x1, y1, x2, y2 in boxes[0] * self.size:
            part = encoded.numpy()[
                :, round(y1) : max(round(y2), round(y1) + 1), round(x1) : max(round(x2), round(x1) + 1)
            ]
            found.append(self.embed_images(part, batch_size=1)[0])
        return np.stack(found)


@pytest.mark.parametrize(
    ("reader", "size", "target"),
    [
        ("roi_align", (640, 240), (480, 120, 560, 200)),
        ("roi_align", (240, 640), (20, 400, 120, 500)),
        ("crop", (640, 480), (400, 180, 500, 280)),  # away from the border, where crops are smaller
        ("crop", (480, 640), (180, 400, 280, 500)),
    ],
)
def test_a_model_that_sees_red_lights_the_red_square(reader, size, target):
    image = Image.new("RGB", size, (40, 40, 40))
    image.paste((255, 0, 0), target)
    heat = similarity(_RedEyes(), reader, image, ["red", "rot"], batch_size=4)[1]
    x, y = heat.peak[0] * size[0], heat.peak[1] * size[1]
    assert target[0] <= x <= target[2]
    assert target[1] <= y <= target[3]
    hot = np.argwhere(spread(heat, width=size[0], height=size[1]) > 0.8 * heat.values_YX.max())
    (top, left), (bottom, right) = hot.min(axis=0), hot.max(axis=0)
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    cell = max(size) / heat.cells
    assert np.abs(centre - [(target[0] + target[2]) / 2, (target[1] + target[3]) / 2]).max() <= cell


def test_a_card_marks_the_peak_and_whether_the_box_holds_it():
    image = Image.new("RGB", (640, 240), (40, 40, 40))
    image.paste((255, 0, 0), (480, 120, 560, 200))
    inside, outside = Box(480 / 640, 0.5, 560 / 640, 200 / 240, "labelled"), Box(0, 0, 0.2, 0.2, "labelled")
    asked = [Asked("a", "red", (inside,)), Asked("a", "red", (outside, inside)), Asked("a", "red", (outside,))]
    cards = heat_cards(asked, {"a": image}, [(_RedEyes(), "roi_align")], batch_size=4)
    assert [card.panels[0].hit for card in cards] == [True, True, False]
    panel = cards[0].panels[0]
    assert (panel.picture.width, panel.picture.height) == (480, 180)
    left, top = (float(part.split(":")[1].rstrip("%")) for part in panel.peak.split(";"))
    assert 75 <= left <= 87.5
    assert 50 <= top <= 84


def test_the_legend_goes_from_dark_to_light():
    colors = [sum(int(color[at : at + 2], 16) for at in (1, 3, 5)) for color in heatmap.legend()]
    assert colors == sorted(colors)
