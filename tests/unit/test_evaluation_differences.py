"""The list of paired differences of a split."""

import numpy as np

from cloc.evaluation.differences import differences, higher_is_better
from cloc.evaluation.statistics import draws, mean_estimate

IMAGES = 40
DRAWN = draws(IMAGES)


def _estimate(right, *, scale=1.0):
    """The first `right` of the images are right."""
    return mean_estimate(scale * (np.arange(IMAGES) < right), np.arange(IMAGES), DRAWN)


def test_best_readers_are_compared_figure_by_figure():
    found = differences(
        {
            ("region/mAcc", "CLIP", "crop"): _estimate(10),
            ("region/mAcc", "CLIP", "roi_align"): _estimate(12),
            ("region/mAcc", "CLOC", "crop"): _estimate(5),
            ("region/mAcc", "CLOC", "prompter"): _estimate(30),
            ("region/mAcc", "other", "crop"): _estimate(30),
            ("retrieval/i2t/R@1", "CLOC", ""): _estimate(8),
            ("retrieval/i2t/R@1", "CLIP", ""): _estimate(20),
        },
        candidate="CLOC",
    )
    assert [(row["figure"], row["a"], row["b"], row["value"], row["better"]) for row in found] == [
        (
            "region/mAcc",
            {"model": "CLOC", "reader": "prompter"},
            {"model": "CLIP", "reader": "roi_align"},
            0.45,
            "a",
        ),
        ("region/mAcc", {"model": "CLOC", "reader": "prompter"}, {"model": "other", "reader": "crop"}, 0.0, ""),
        ("retrieval/i2t/R@1", {"model": "CLOC", "reader": ""}, {"model": "CLIP", "reader": ""}, -0.3, "b"),
    ]
    low, high = found[0]["interval"]
    assert 0 < low < 0.45 < high < 1


def test_of_ranks_the_lowest_is_best():
    found = differences(
        {
            ("attributes/hard/mean_rank", "CLOC", "crop"): _estimate(40, scale=5),
            ("attributes/hard/mean_rank", "CLOC", "prompter"): _estimate(40, scale=2),
            ("attributes/hard/mean_rank", "CLIP", "crop"): _estimate(40, scale=4),
        },
        candidate="CLOC",
    )
    assert [(row["a"]["reader"], row["value"], row["better"]) for row in found] == [("prompter", -2.0, "a")]
    assert higher_is_better("attributes/hard/accuracy")


def test_what_cannot_be_compared_is_left_out():
    none = mean_estimate(np.zeros(0), np.zeros(0, dtype=int), DRAWN)
    assert (
        differences(
            {
                ("grounding/acc@0.5", "CLOC", ""): _estimate(3),
                ("region/mAcc", "CLIP", "crop"): _estimate(3),
                ("region/top1", "CLOC", "crop"): _estimate(3),
                ("region/top1", "CLIP", "crop"): none,
                ("coherence/outside", "CLOC", ""): _estimate(3),
                ("coherence/outside", "CLIP", ""): _estimate(30),
            },
            candidate="CLOC",
        )
        == []
    )
    assert differences({("region/mAcc", "CLIP", "crop"): _estimate(3)}, candidate="") == []
