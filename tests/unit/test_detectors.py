"""Detectors without a model: inputs and back, regions from candidates, queries, devices, human boxes."""

import numpy as np
import pytest
import torch
from PIL import Image

from cloc.boxes import iou, nms
from cloc.config.schema import GroundingConfig
from cloc.data.dataset import LabeledSample
from cloc.data.shards import Sample
from cloc.errors import ConfigError
from cloc.labeling.detector_network import (
    Candidates,
    QueryEncoder,
    Stretched,
    letterbox,
    paste,
    stretch,
)
from cloc.labeling.detector_transformers import to_regions
from cloc.labeling.detectors import DETECTORS, QUERIES
from cloc.labeling.jobs import PROCESS_VARIABLE
from cloc.labeling.models import pick_device
from cloc.labeling.worker import Item


def bicubic(image: Image.Image, *, size: int):
    return stretch(image, size=size, resample=Image.Resampling.BICUBIC)


def candidates(boxes, scores, queries=None) -> Candidates:
    queries = [0] * len(scores) if queries is None else queries
    return Candidates(np.array(boxes, dtype=float).reshape(-1, 4), np.array(scores), np.array(queries, dtype=int))


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (333, 47), (64, 64), (31, 500)])
@pytest.mark.parametrize("prepare", [letterbox, bicubic])
def test_boxes_come_back_exactly_from_the_square(size, prepare):
    """A white rectangle is drawn, found again in the prepared square by its pixels, and mapped back."""
    width, height = size
    truth = np.array([[0.2, 0.3, 0.7, 0.8]])
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    x1, y1, x2, y2 = (truth[0] * [width, height, width, height]).round().astype(int)
    pixels[y1:y2, x1:x2] = 255
    side = 448
    prepared = prepare(Image.fromarray(pixels), size=side)
    bright = prepared.bytes_HWC[..., 0] > 127
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    left, top, right, bottom = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / side
    seen = candidates([[(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]], [0.9])
    (region,) = to_regions(seen, prepared.frame, ["box"], nms_iou=0.7, source="m")
    # One pixel of the square, in shares of the original image.
    tolerance = 1.5 / side * max(size) / np.array([width, height, width, height])
    drawn = np.array([x1, y1, x2, y2]) / [width, height, width, height]
    assert (np.abs(np.array(region.box) - drawn) <= tolerance).all()


def test_a_known_transform_is_undone_exactly():
    """A 200x100 image fills the upper half of the square: a box of the square's upper half is the whole image."""
    frame = letterbox(Image.new("RGB", (200, 100)), size=64).frame
    seen = candidates([[0.5, 0.25, 1.0, 0.5], [0.25, 0.125, 0.25, 0.125], [0.5, 0.5, 2.0, 2.0]], [0.9, 0.8, 0.7])
    regions = to_regions(seen, frame, ["all"], nms_iou=1.0, source="m")
    assert [region.box for region in regions] == [
        (0.0, 0.0, 1.0, 1.0),
        (0.125, 0.125, 0.375, 0.375),
        (0.0, 0.0, 1.0, 1.0),
    ]


@pytest.mark.parametrize("size", [(1000, 1), (1, 1000), (7, 1)])
def test_an_image_of_one_pixel_keeps_a_pixel(size):
    pixels = letterbox(Image.new("RGB", size, "white"), size=64)
    assert pixels.bytes_HWC.shape == (64, 64, 3)
    assert min(pixels.rows, pixels.columns) >= 1
    assert (pixels.bytes_HWC[: pixels.rows, : pixels.columns] == 255).all()
    assert pixels.bytes_HWC.sum() == 255 * 3 * pixels.rows * pixels.columns  # the rest is black
    np.testing.assert_array_equal(
        pixels.frame.from_padded([[0, 0, pixels.columns / 64, pixels.rows / 64]]), [[0, 0, 1, 1]]
    )


def test_an_image_is_pasted_top_left():
    pixels = paste(Image.new("RGB", (3, 2), (9, 8, 7)), height=4, width=5, frame=Stretched())
    assert (pixels.rows, pixels.columns) == (2, 3)
    assert (pixels.bytes_HWC[:2, :3] == (9, 8, 7)).all()
    assert pixels.bytes_HWC.sum() == 6 * 24


def test_regions_carry_their_most_confident_phrase_and_suppress_whatever_the_phrase():
    boxes = [[0.5, 0.5, 0.4, 0.4], [0.51, 0.5, 0.4, 0.4], [0.8, 0.8, 0.1, 0.1]]

    def found(nms_iou: float) -> list[tuple[str, float]]:
        regions = to_regions(
            candidates(boxes, [0.6, 0.7, 0.11], [1, 0, 0]), Stretched(), ["cat", "dog"], nms_iou=nms_iou, source="m"
        )
        assert all(region.source == "m" for region in regions)
        return [(region.text, region.score) for region in regions]

    assert found(1.0) == [("cat", 0.7), ("dog", 0.6), ("cat", 0.11)]
    assert found(0.7) == [("cat", 0.7), ("cat", 0.11)]
    assert to_regions(candidates([], []), Stretched(), ["cat"], nms_iou=0.7, source="m") == []


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_suppression_is_that_of_the_plain_definition(threshold):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.6, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.05, 0.4, (60, 2))], axis=1)
    boxes[10], boxes[20] = boxes[11], 0.0  # equal boxes, and an empty one
    scores = rng.choice([0.2, 0.4, 0.6, 0.8], 60)  # with ties, of which the earlier goes first
    overlaps, expected = iou(boxes, boxes), []
    for index in sorted(range(60), key=lambda index: (-scores[index], index)):
        if all(overlaps[index, other] <= threshold for other in expected):
            expected.append(index)
    assert nms(boxes, scores, threshold=threshold).tolist() == expected


class Encoding:
    """Encodes a text as its length and first letter, and remembers what it was asked for."""

    def __init__(self):
        self.calls = []

    def __call__(self, texts):
        self.calls.append(list(texts))
        return torch.tensor([[float(len(text)), float(ord(text[0]))] for text in texts])

    @property
    def distinct(self):
        return [list(dict.fromkeys(call)) for call in self.calls]


def expected(queries):
    return [[[float(len(text)), float(ord(text[0]))] for text in asked] for asked in queries]


def test_queries_of_a_batch_are_encoded_once_and_remembered():
    encode = Encoding()
    encoder = QueryEncoder(encode, at_once=64)
    first = [["a red key", "box"], ["box"], ["key", "box", "apple"]]
    asked = encoder.ask(first)
    assert encode.distinct == [["a red key", "box", "key", "apple"]]
    assert asked.mask_BQ.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    found = asked.embeddings_ND[asked.places_BQ]
    for embeddings, mask, own in zip(found, asked.mask_BQ, expected(first), strict=True):
        assert embeddings[mask].tolist() == own
        assert (embeddings[~mask] == embeddings[0]).all()  # filled up with the image's own first query
    asked = encoder.ask([["box", "ball"]])
    assert encode.distinct[1:] == [["ball"]]
    assert asked.embeddings_ND[asked.places_BQ].tolist() == expected([["box", "ball"]])


def test_encoding_is_of_one_shape_whatever_is_known():
    encode = Encoding()
    encoder = QueryEncoder(encode, at_once=64)
    encoder.ask([[f"query {number}" for number in range(70)]])
    encoder.ask([["query 3", "another"]])
    assert {len(call) for call in encode.calls} == {64}
    assert [len(texts) for texts in encode.distinct] == [64, 6, 1]


def test_memory_is_bounded_and_forgets_what_was_not_used():
    encode = Encoding()
    encoder = QueryEncoder(encode, at_once=4, remembered=3)
    for queries in (["a", "b", "c"], ["a"], ["d"]):  # b is now the oldest and goes
        encoder.ask([queries])
    encoder.ask([["a", "c", "d"]])
    assert len(encode.calls) == 2
    many = [[chr(ord("f") + number) for number in range(8)]]  # more than are remembered
    asked = encoder.ask(many)
    assert asked.embeddings_ND[asked.places_BQ].tolist() == expected(many)
    assert len(encoder._known) == 3
    encoder.ask([["b"]])
    assert encode.distinct[-1] == ["b"]


@pytest.mark.parametrize(("process", "index"), [(None, 0), ("0", 0), ("1", 1), ("2", 2), ("5", 1)])
def test_processes_spread_over_the_gpus(monkeypatch, process, index):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv(PROCESS_VARIABLE, raising=False)
    if process is not None:
        monkeypatch.setenv(PROCESS_VARIABLE, process)
    for name in ("auto", "cuda"):
        assert pick_device(name, key="k") == torch.device("cuda", index)
    assert pick_device("cpu", key="k") == torch.device("cpu")


def test_devices_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto", key="k") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"^grounding.device: 'cuda' is set but there is no CUDA device here; use"):
        pick_device("cuda", key="grounding.device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv(PROCESS_VARIABLE, "one")
    with pytest.raises(ConfigError, match=r"^CLOC_WORKER_PROCESS: 'one' is no number of a process; unset it"):
        pick_device("auto", key="k")


def human_item(alt_text: str = "") -> Item:
    box = {"x1": 0.1, "y1": 0.2, "x2": 0.3, "y2": 0.4}
    rows = [
        {"key": "a", **box, "text": "large red key", "score": 1.0, "source": "human", "label": "key"},
        {"key": "a", **box, "text": "blue box", "score": 0.5, "source": "human", "label": "box"},
        {"key": "a", **box, "text": "apple", "score": 0.9, "source": "a model", "label": ""},
    ]
    captions = ({"key": "a", "text": alt_text, "kind": "alt_text", "model": ""},)
    return Item(Image.new("RGB", (8, 8)), LabeledSample(Sample("a", b""), captions, tuple(rows)))


def test_annotations_are_the_human_regions():
    detector = DETECTORS["annotations"](GroundingConfig(backend="annotations"))
    batch = [detector.prepare(human_item()), detector.prepare(human_item())]
    assert len({detector.bucket(prepared) for prepared in batch}) == 1
    for regions in detector.detect(batch):
        assert [(region.text, region.score, region.source, region.label) for region in regions] == [
            ("large red key", 1.0, "human", "key"),
            ("blue box", 0.5, "human", "box"),
        ]
        assert regions[0].box == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("alt_text", "named"), [("a big red key", "red key"), ("key", "key"), ("red things", ""), ("many keys", "")]
)
def test_without_vesl_a_human_box_is_called_what_the_alt_text_calls_it(alt_text, named):
    detector = DETECTORS["annotations"](GroundingConfig(backend="annotations", phrases="alt_text_ngrams"))
    ((key, box),) = detector.detect([detector.prepare(human_item(alt_text))])
    assert (key.text, key.left_out) == ((named, "") if named else ("large red key", "not named in the alt-text"))
    assert box.left_out == "not named in the alt-text"


def test_queries_are_of_the_captions_or_of_the_alt_text():
    captions = tuple(
        {"key": "a", "text": text, "kind": kind, "model": ""}
        for text, kind in (("a red box", "generated"), ("a blue key", "human"), ("red apples", "alt_text"))
    )
    item = Item(Image.new("RGB", (8, 8)), LabeledSample(Sample("a", b""), captions))
    assert QUERIES["captions"](GroundingConfig())(item) == ["red box", "blue key"]
    assert QUERIES["captions"](GroundingConfig(max_phrases=1))(item) == ["red box"]
    assert QUERIES["captions_and_alt_text"](GroundingConfig())(item) == ["red box", "blue key", "red apples"]
    assert QUERIES["alt_text_ngrams"](GroundingConfig(max_ngram_words=1))(item) == ["red", "apples"]
