"""Quality of labels against human boxes: who matches whom, what names a class, and rates of sums."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloc import boxes
from cloc.labeling import quality
from cloc.labeling.detectors import Region
from cloc.labeling.names import SYNONYMS, Names, contains, same, words_of
from cloc.labeling.quality import caption_counts, match, quality_counts, quality_metrics

Box = tuple[float, float, float, float]
LEFT: Box = (0.0, 0.0, 0.4, 0.4)
RIGHT: Box = (0.5, 0.5, 0.9, 0.9)
NAN = float("nan")


def found(box: Box, text: str = "key", score: float = 0.5) -> Region:
    return Region(box=box, text=text, score=score, source="model")


def human(box: Box, text: str = "large red key", label: str = "key", source: str = "human") -> dict[str, Any]:
    sides = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
    return {"key": "k", **sides, "text": text, "score": 1.0, "source": source, "label": label}


def test_boxes_are_matched_one_to_one_and_duplicates_count_as_wrong() -> None:
    counts = quality_counts([found(LEFT), found(LEFT), found(RIGHT)], [human(LEFT), human(RIGHT)])
    assert counts == {
        "judged_images": 1, "human_boxes": 2, "found_boxes": 3, "matched": 2, "matched_label": 2, "matched_text": 2,
    }  # fmt: skip


def test_the_surest_box_comes_first_and_takes_what_it_overlaps_most() -> None:
    near: Box = (0.0, 0.0, 0.4, 0.3)  # IoU 0.75 with LEFT
    regions = [found(near, score=0.2), found(LEFT, score=0.9)]
    assert match(regions, boxes.as_boxes([LEFT])) == {1: 0}
    assert match([found(LEFT, score=0.9), found(near, score=0.9)], boxes.as_boxes([LEFT])) == {0: 0}
    assert match([found(LEFT)], boxes.as_boxes([near, LEFT])) == {0: 1}
    # The second box has lost LEFT to the first and takes the other human box that it overlaps enough.
    assert match(regions, boxes.as_boxes([LEFT, (0.0, 0.0, 0.4, 0.2)])) == {1: 0, 0: 1}


def test_half_overlap_is_enough_and_less_is_not() -> None:
    assert match([found((0.0, 0.0, 0.5, 0.25))], boxes.as_boxes([(0.0, 0.0, 0.5, 0.5)])) == {0: 0}
    assert match([found((0.0, 0.0, 0.5, 0.24))], boxes.as_boxes([(0.0, 0.0, 0.5, 0.5)])) == {}


def test_images_without_human_boxes_are_not_judged() -> None:
    assert quality_counts([found(LEFT)], []) == {}
    assert quality_counts([found(LEFT)], [human(LEFT, source="google/owlv2")]) == {}
    assert quality_counts([found(LEFT)], [human((0.1, NAN, 0.2, 0.3)), human((0.3, 0.3, 0.3, 0.9))]) == {}
    assert caption_counts(["a key"], []) == {}
    assert quality_metrics({}) == {}
    assert quality_metrics({"judged_images": 0}) == {}


def test_an_image_in_which_nothing_was_found_lowers_recall() -> None:
    counts = quality_counts([], [human(LEFT), human(RIGHT)])
    assert (counts["found_boxes"], counts["matched"], counts["human_boxes"]) == (0, 0, 2)
    metrics = quality_metrics(counts)
    assert set(metrics.values()) == {0.0}
    assert len(metrics) == 8


def test_boxes_that_are_not_finite_never_match_and_warn_of_nothing() -> None:
    with np.errstate(all="raise"):
        wild = [found((NAN, 0.0, 0.4, 0.4), score=0.9), found((0.0, 0.0, float("inf"), 1.0), score=0.8), found(LEFT)]
        counts = quality_counts(wild, [human(LEFT), human((0.1, NAN, 0.2, 0.3))])
    assert (counts["found_boxes"], counts["matched"], counts["human_boxes"]) == (3, 1, 1)


def test_a_score_that_is_no_number_comes_last() -> None:
    assert match([found(LEFT, score=NAN), found(LEFT, score=0.1)], boxes.as_boxes([LEFT])) == {1: 0}


@pytest.mark.parametrize(
    ("text", "label_right", "text_right"),
    [
        ("large red key", True, True),
        ("red keys", True, True),
        ("the Red-Key", True, True),
        ("blue key", True, False),
        ("red", False, True),
        ("monkey", False, False),
        ("keyhole", False, False),
        ("", False, False),
        ("...", False, False),
    ],
)
def test_text_of_a_matched_box_is_judged_by_label_and_whole(text: str, label_right: bool, text_right: bool) -> None:
    counts = quality_counts([found(LEFT, text)], [human(LEFT)])
    assert (counts["matched_label"], counts["matched_text"]) == (label_right, text_right)


def test_the_human_text_names_the_class_where_there_is_no_label() -> None:
    row = human(LEFT, text="sleeping cat", label="")
    assert quality_counts([found(LEFT, "a sleeping cat")], [row])["matched_label"] == 1
    assert quality_counts([found(LEFT, "cat")], [row])["matched_label"] == 0
    assert quality_counts([found(LEFT, "cat")], [row])["matched_text"] == 1


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("buses", "bus", True),
        ("ties", "tie", True),
        ("people", "person", True),
        ("knives", "knife", True),
        ("skis", "ski", True),
        ("glasses", "glass", True),
        ("sheep", "sheep", True),
        ("leaves", "leaf", True),
        ("card", "car", False),
        ("bee", "bees", True),
        ("bus", "bush", False),
    ],
)
def test_singular_and_plural_are_one_word(one: str, other: str, equal: bool) -> None:
    assert same(one, other) == same(other, one) == equal


def test_class_words_stand_as_a_run() -> None:
    assert contains(words_of("a tall wine glass on it"), words_of("wine glass"))
    assert contains(words_of("Teddy-bears"), words_of("teddy bear"))
    assert not contains(words_of("a glass of wine"), words_of("wine glass"))
    assert not contains(words_of("wine"), words_of("wine glass"))
    assert not contains(words_of("wine"), [])


def test_other_words_name_a_class_unless_the_data_has_them_as_a_class() -> None:
    man, mug = words_of("two young men"), words_of("a mug")
    assert not Names().named("person", man)
    assert Names(["person", "cup"]).named("person", man)
    assert Names(["person", "cup"]).named("cup", mug)
    assert not Names(["cup", "mug"]).named("cup", mug)
    assert Names(["cup", "mug"]).named("mug", mug)
    assert not Names(["wine glass", "glasses"]).named("wine glass", words_of("a glass"))
    counts = quality_counts([found(LEFT, "man")], [human(LEFT, "person", "person")], names=Names(["person"]))
    assert counts["matched_label"] == 1


def test_no_synonym_names_two_classes() -> None:
    count = Counter(" ".join(words_of(text)) for texts in SYNONYMS.values() for text in texts)
    assert [text for text, times in count.items() if times > 1] == []


def test_captions_are_held_against_the_alt_text() -> None:
    rows = [
        human(LEFT, label="key"),
        human(RIGHT, label="key"),
        human(RIGHT, label="traffic light"),
        human(LEFT, "ox", ""),
    ]
    counts = caption_counts(
        ["Two keys by a lamp.", "an ox under traffic\nlights"], rows, alt_texts=["key.jpg free download"]
    )
    assert counts == {
        "judged_images": 1,
        "human_classes": 3,
        "named_classes": 3,
        "alt_texts": 1,
        "alt_text_named_classes": 1,
    }
    metrics = quality_metrics(counts)
    assert metrics == {quality.NAMED_OBJECTS: 1.0, quality.ALT_TEXT_NAMED_OBJECTS: pytest.approx(1 / 3)}


def test_rates_are_made_from_sums() -> None:
    sums: Counter[str] = Counter()
    sums.update(quality_counts([found(LEFT, "red key"), found(RIGHT, "cat")], [human(LEFT)]))
    sums.update(quality_counts([found(LEFT, "cat")], [human(LEFT), human(RIGHT), human((0.5, 0.0, 0.9, 0.4))]))
    assert quality_metrics(sums) == pytest.approx(
        {
            "labels/precision": 2 / 3,
            "labels/recall": 2 / 4,
            "labels/f1": 4 / 7,
            "labels/labelled_precision": 1 / 3,
            "labels/labelled_recall": 1 / 4,
            "labels/labelled_f1": 2 / 7,
            "labels/label_accuracy": 1 / 2,
            "labels/text_accuracy": 1 / 2,
        }
    )


_NUMBER = st.floats(0, 1, width=32)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(_NUMBER, _NUMBER, _NUMBER, _NUMBER, _NUMBER), max_size=12), st.integers(1, 6), st.integers(0, 99)
)
def test_matching_agrees_with_a_plain_reference(values: list[tuple[float, ...]], n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner, side = rng.random((n, 2)) * 0.6, rng.random((n, 2)) * 0.4 + 0.01
    truth = np.concatenate([corner, corner + side], axis=1)
    regions = [found(tuple(truth[k % n]), score=v[4]) for k, v in enumerate(values)]
    regions += [found((v[0], v[1], v[2], v[3]), score=v[4]) for v in values]
    expected: dict[int, int] = {}
    for index in sorted(range(len(regions)), key=lambda number: -regions[number].score):
        rivals = [
            (boxes.iou(boxes.as_boxes([regions[index].box]), truth[[number]])[0, 0], -number)
            for number in range(n)
            if number not in expected.values()
        ]
        if rivals and max(rivals)[0] >= quality.IOU:
            expected[index] = -max(rivals)[1]
    assert match(regions, truth) == expected
