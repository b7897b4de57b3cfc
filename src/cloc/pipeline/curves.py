"""What `dvc plots` draws, as rows of equal keys: one file a plot, whose template is in `.dvc/plots`.

Every row has `model` and `order`, by which all plots colour alike: 0 is the candidate. `panel` is the small chart that
a row belongs to, `place` its number. Shares are in percent. Pure functions of the files that stages left; no torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cloc.evaluation.confusion import OTHERS
from cloc.evaluation.summary import best_row, dig, figure

Row = dict[str, Any]
_LOSSES = {"loss/image": "images and texts", "loss/region": "regions and texts", "loss/grounding": "grounding"}
_WAYS = {
    "retrieval/i2t": "image to text",
    "retrieval/t2i": "text to image",
    "region_retrieval/r2t": "region to text",
    "region_retrieval/t2r": "text to region",
}
_KS = (1, 5, 10)
_CLASSES = 40  # what can be read


def _where(panel: str = "", place: int = 0) -> Row:
    return {"panel": panel, "place": place}


def orders(metrics: Mapping[str, Any]) -> dict[str, int]:
    """The models of an evaluation's `metrics.json`, the candidate first."""
    candidate = metrics["headline"]["candidate"]
    names = sorted(metrics["models"], key=lambda name: name != candidate)
    return {name: number for number, name in enumerate(names)}


def losses(trainings: Mapping[str, Sequence[Row]], order: Mapping[str, int]) -> list[Row]:
    """`step`, `loss`: a panel a loss, of those models that have it.

    Args:
        trainings: records of each model's training, by its name.
        order: of the models.
    """
    return [
        {**_where(panel, place), "model": model, "order": order[model], "step": record["step"], "loss": record[key]}
        for place, (key, panel) in enumerate(_LOSSES.items())
        for model, records in trainings.items()
        if any(record.get(key) for record in records)
        for record in records
        if key in record
    ]


def learning_rates(trainings: Mapping[str, Sequence[Row]], order: Mapping[str, int]) -> list[Row]:
    """`step`, `learning_rate`."""
    return [
        {**_where(), "model": model, "order": order[model], "step": record["step"], "learning_rate": rate}
        for model, records in trainings.items()
        for record in records
        if (rate := record.get("train/learning_rate")) is not None
    ]


def recalls(metrics: Mapping[str, Any]) -> list[Row]:
    """`k`, `recall` of the headline split: a panel a way of retrieval; regions by each model's best reader."""
    split = metrics["headline"]["split"]
    rows = []
    for place, (path, panel) in enumerate(_WAYS.items()):
        for model, order in orders(metrics).items():
            for k in _KS:
                found = figure(metrics, split=split, model=model, path=f"{path}/R@{k}")
                if found:
                    row = {"model": model, "order": order, "k": k, "recall": 100 * found.value}
                    rows.append(_where(panel, place) | row)
    return rows


def grounding(metrics: Mapping[str, Any], found: Mapping[str, Sequence[Row]]) -> list[Row]:
    """`iou`, `recall`: phrases whose box is at least as good. `found` is the evaluation's `grounding_recall.json`."""
    return [
        {**_where(), "model": model, "order": order, "iou": point["iou"], "recall": 100 * point["recall"]}
        for model, order in orders(metrics).items()
        for point in found.get(model, ())
    ]


def classes(metrics: Mapping[str, Any]) -> list[Row]:
    """`class`, `accuracy`, `regions` of each model's best reader: the classes that occur most."""
    split = metrics["headline"]["split"]
    rows = []
    for model, order in orders(metrics).items():
        best = best_row(metrics, split=split, model=model)
        for name, scores in (dig(best, "region/per_class") or {}).items() if best else ():
            row = {"class": name, "accuracy": 100 * scores["accuracy"], "regions": scores["n"]}
            rows.append({"model": model, "order": order, **row})
    frequent = sorted({(-row["regions"], row["class"]) for row in rows})[:_CLASSES]
    shown = {name for _, name in frequent}
    return [row for row in rows if row["class"] in shown]


def confusion(found: Mapping[str, Any]) -> list[Row]:
    """`right`, `taken_for`, `share` of the right class's regions, `regions`. `found` is `confusion.json`."""
    names = found.get("categories", [])
    places = [len(names) if name == OTHERS else number for number, name in enumerate(names)]
    rows = []
    for right, row, counts in zip(names, places, found.get("matrix", []), strict=True):
        for taken_for, column, count in zip(names, places, counts, strict=True):
            share = 100 * count / sum(counts) if sum(counts) else 0.0
            cell = {"row": row, "column": column, "share": share, "regions": count}
            rows.append({"right": right, "taken_for": taken_for, **cell})
    return rows
