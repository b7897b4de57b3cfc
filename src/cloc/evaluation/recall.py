"""How many phrases a model finds as boxes have to fit ever better: grounding's accuracy at 0.5 is one point of this."""

from collections.abc import Mapping, Sequence

import numpy as np

from cloc.evaluation.statistics import Floats

RECALL_FILE = "grounding_recall.json"
THRESHOLDS: Sequence[float] = tuple(number / 20 for number in range(1, 20))


def by_iou(iou: Mapping[str, Floats]) -> dict[str, list[dict[str, float]]]:
    """Share of phrases whose box has at least this IoU with the labelled one, at each of `THRESHOLDS`.

    Args:
        iou: of each phrase, by model; models that were asked nothing are left out.
    """
    return {
        model: [{"iou": least, "recall": float(np.mean(iou_P >= least))} for least in THRESHOLDS]
        for model, iou_P in iou.items()
        if len(iou_P)
    }
