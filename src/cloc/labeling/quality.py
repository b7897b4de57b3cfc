"""Quality of labels, held against people's boxes where the data has them.

Everything is counted an image and summed over shards; rates are made from sums. Images without a usable human box are
not judged: nothing says that people looked at them.

What the figures are: a found box is right when it overlaps a human box at an IoU of `IOU` or more, one to one, the
surest found box first. Human boxes are of a closed list of classes, so a good box of anything else counts as wrong:
with an open vocabulary, precision is a lower bound, and recall is what it says. Crowd boxes are no part of a data set.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cloc import boxes
from cloc.labeling.detectors import Region
from cloc.labeling.names import Names, same, words_of

IOU = 0.5

PRECISION = "labels/precision"
RECALL = "labels/recall"
F1 = "labels/f1"
LABELLED_PRECISION = "labels/labelled_precision"
LABELLED_RECALL = "labels/labelled_recall"
LABELLED_F1 = "labels/labelled_f1"
LABEL_ACCURACY = "labels/label_accuracy"
TEXT_ACCURACY = "labels/text_accuracy"
NAMED_OBJECTS = "labels/named_objects"
ALT_TEXT_NAMED_OBJECTS = "labels/named_objects_alt_text"

_NO_SYNONYMS = Names()


def quality_counts(
    found: Sequence[Region], human: Sequence[Mapping[str, Any]], *, names: Names = _NO_SYNONYMS
) -> dict[str, int]:
    """Counts of one image's regions; {} for an image that cannot be judged.

    Args:
        found: the regions that were found.
        human: rows of the data's own regions table; those of another source than `human`, and boxes that are not
            finite or have no area, are passed over.
        names: what the classes are called.

    Returns:
        judged_images (1), human_boxes, found_boxes, matched (found boxes that a human box is matched to),
        matched_label (of these, those whose text names the human box's class: its `label`, else its `text`) and
        matched_text (of these, those whose every word stands in the human text).
    """
    truth = usable(human)
    if not truth:
        return {}
    counts = {
        "judged_images": 1, "human_boxes": len(truth), "found_boxes": len(found),
        "matched": 0, "matched_label": 0, "matched_text": 0,
    }  # fmt: skip
    for number, partner in match(found, boxes.as_boxes([box_of(row) for row in truth])).items():
        region, row = found[number], truth[partner]
        words = words_of(region.text or region.label)
        told = words_of(row["text"] or "")
        counts["matched"] += 1
        counts["matched_label"] += names.named(class_of(row), words)
        counts["matched_text"] += bool(words) and all(any(same(word, other) for other in told) for word in words)
    return counts


def caption_counts(
    texts: Sequence[str],
    human: Sequence[Mapping[str, Any]],
    *,
    alt_texts: Sequence[str] = (),
    names: Names = _NO_SYNONYMS,
) -> dict[str, int]:
    """Counts of one image's captions; {} for an image that cannot be judged.

    Args:
        texts: its captions, without the alt-text.
        human: rows of the data's own regions table, as in `quality_counts`.
        alt_texts: its alt-texts, which the captions are held against.
        names: what the classes are called.

    Returns:
        judged_images (1), human_classes (distinct classes of the human boxes), named_classes (of these, those that a
        caption names), alt_texts, and alt_text_named_classes (of the classes, those that an alt-text names).
    """
    classes = {class_of(row) for row in usable(human)} - {""}
    if not classes:
        return {}
    return {
        "judged_images": 1,
        "human_classes": len(classes),
        "named_classes": _named(classes, texts, names),
        "alt_texts": len(alt_texts),
        "alt_text_named_classes": _named(classes, alt_texts, names),
    }


def quality_metrics(counts: Mapping[str, int]) -> dict[str, float]:
    """Rates of summed counts, in [0, 1]; {} where no image was judged. Rates of nothing are 0; without
    any alt-text there is no rate of it."""
    metrics: dict[str, float] = {}
    if counts.get("human_boxes"):
        found, human, matched = (counts.get(name, 0) for name in ("found_boxes", "human_boxes", "matched"))
        labelled = counts.get("matched_label", 0)
        metrics |= {
            PRECISION: matched / max(1, found),
            RECALL: matched / human,
            F1: 2 * matched / (found + human),
            LABELLED_PRECISION: labelled / max(1, found),
            LABELLED_RECALL: labelled / human,
            LABELLED_F1: 2 * labelled / (found + human),
            LABEL_ACCURACY: labelled / max(1, matched),
            TEXT_ACCURACY: counts.get("matched_text", 0) / max(1, matched),
        }
    if counts.get("human_classes"):
        metrics[NAMED_OBJECTS] = counts.get("named_classes", 0) / counts["human_classes"]
        if counts.get("alt_texts"):
            metrics[ALT_TEXT_NAMED_OBJECTS] = counts.get("alt_text_named_classes", 0) / counts["human_classes"]
    return metrics


def match(found: Sequence[Region], human: npt.NDArray[np.floating]) -> dict[int, int]:
    """Found boxes and their partners, one to one.

    From the highest score to the lowest (ties: in order), each takes the free human box that it overlaps most, where
    that is an IoU of `IOU` or more. Boxes that are not finite overlap nothing.

    Args:
        found: the regions that were found.
        human: usable boxes, shape (N, 4).

    Returns:
        Position in `human` by position in `found`.
    """
    if not found or not len(human):
        return {}
    given = boxes.as_boxes([region.box for region in found])
    overlaps = boxes.iou(np.nan_to_num(given, nan=0.0, posinf=0.0, neginf=0.0), human)
    overlaps[np.logical_not(np.isfinite(given)).any(axis=1)] = 0.0
    partners: dict[int, int] = {}
    for index in np.argsort([-region.score for region in found], kind="stable"):
        best = int(overlaps[index].argmax())
        if overlaps[index, best] >= IOU:
            partners[int(index)] = best
            overlaps[:, best] = 0.0
    return partners


def usable(human: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows with source `human` whose boxes are finite and have an area."""
    # As an array a null becomes NaN: tables may come from elsewhere, and this must not end a labelling job.
    finite = (np.isfinite(np.asarray(box_of(row), dtype=np.float64)).all() for row in human)
    return [
        row
        for row, is_finite in zip(human, finite, strict=True)
        if row["source"] == "human" and is_finite and row["x1"] < row["x2"] and row["y1"] < row["y2"]
    ]


def class_of(row: Mapping[str, Any]) -> str:
    """What people call a box: its class where there is one, else its text."""
    return str(row["label"] or row["text"] or "")


def box_of(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """The box of a row of the regions table, xyxy in [0, 1] of the original image."""
    return row["x1"], row["y1"], row["x2"], row["y2"]


def _named(classes: Collection[str], texts: Sequence[str], names: Names) -> int:
    said = [words_of(text) for text in texts]
    return sum(any(names.named(name, words) for words in said) for name in classes)
