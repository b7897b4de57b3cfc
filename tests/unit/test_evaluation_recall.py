"""Recall of grounding by how well boxes have to fit."""

import numpy as np

from cloc.evaluation.recall import THRESHOLDS, by_iou


def test_recall_counts_boxes_that_fit_at_least_as_well() -> None:
    found = by_iou({"CLOC": np.asarray([0.0, 0.5, 0.5, 0.9]), "nothing asked": np.zeros(0)})
    assert list(found) == ["CLOC"]
    assert [point["iou"] for point in found["CLOC"]] == list(THRESHOLDS)
    recall = {point["iou"]: point["recall"] for point in found["CLOC"]}
    assert recall[0.05] == 0.75
    assert recall[0.5] == 0.75
    assert recall[0.55] == 0.25
    assert recall[0.95] == 0.0
