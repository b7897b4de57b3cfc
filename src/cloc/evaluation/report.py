"""The report: one HTML page that needs no network, with figures, charts, pictures and how to make it again.

Everything that comes from data is escaped by the template; pictures are data URIs. The page has no script.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from cloc.config import Config
from cloc.evaluation import gallery, grounding, statistics, summary
from cloc.evaluation.gate import Verdict, judge
from cloc.evaluation.metrics import SplitResult
from cloc.evaluation.truth import Split

REPORT_FILE = "index.html"
_CLASSES = 120


@dataclass(frozen=True)
class Point:
    """A row of an interval chart, in percent of the axis."""

    label: str
    text: str
    left: float
    low: float
    span: float
    kind: str
    best: bool


@dataclass(frozen=True)
class Chart:
    """An interval chart: rows over an axis from 0 to its last tick."""

    title: str
    note: str
    ticks: tuple[tuple[float, str], ...]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class ClassBar:
    """A row of the per-class chart, in percent."""

    name: str
    own: float
    other: float
    regions: int

    @property
    def low(self) -> float:
        """Left end of the line between the two."""
        return min(self.own, self.other)

    @property
    def span(self) -> float:
        """Length of that line."""
        return abs(self.own - self.other)


@dataclass(frozen=True)
class Galleries:
    """All pictures of the page and what stands beside them."""

    pictures: Mapping[str, gallery.Picture]
    regions: Sequence[gallery.RegionCard]
    groundings: Sequence[gallery.GroundingCard]
    retrievals: Sequence[gallery.RetrievalCard]


def render(config: Config, metrics: Mapping[str, Any], split: Split, result: SplitResult, *, data: str) -> str:
    """The page as HTML.

    Args:
        config: the settings.
        metrics: content of `metrics.json`.
        split, result: the headline split and what was found on it; pictures come from it.
        data: the data that was evaluated, as given.
    """
    shown = _shown_rows(metrics)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cloc.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    environment.filters["quoted"] = shlex.quote
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment.get_template("report.html.j2").render(
        metrics=metrics,
        headline=metrics["headline"],
        split=metrics["splits"][split.name],
        table=summary.headline(metrics),
        is_best=summary.is_best,
        gains_and_losses=summary.sentences(metrics),
        supervision=summary.SUPERVISION,
        readers=summary.READERS,
        verdict=_verdict(config, metrics),
        charts=[_chart(metrics, name) for name in metrics["splits"]],
        shown=shown,
        class_bars=_class_bars(metrics, shown) if shown else [],
        galleries=_galleries(config, split, result, metrics, shown),
        statistics=statistics,
        threshold=grounding.THRESHOLD,
        data=data,
        config=config,
    )


def _verdict(config: Config, metrics: Mapping[str, Any]) -> Verdict | None:
    """What the gate will say; None where there is nothing to hold against each other."""
    complete = metrics["headline"]["candidate"] and metrics["headline"]["baselines"]
    return judge(metrics, config.evaluation) if complete else None


def _shown_rows(metrics: Mapping[str, Any]) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """(model, reader) of the candidate's best row and of the best plain-CLIP row; None without either."""
    head = metrics["headline"]
    rows = [summary.best_row(metrics, split=head["split"], model=name) for name in head["baselines"]]
    found = [row for row in rows if row]
    if not head["candidate"] or not found:
        return None
    own = summary.best_row(metrics, split=head["split"], model=head["candidate"])
    other = max(found, key=lambda row: row["region"]["mAcc"])
    assert own is not None
    return (own["model"], own["reader"]), (other["model"], other["reader"])


def _chart(metrics: Mapping[str, Any], split: str) -> Chart:
    """Region mAcc of every row of a split."""
    scores = metrics["splits"][split]
    highest = max(row["region"]["interval"]["mAcc"][1] for row in scores["rows"])
    step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.25) if step * 5 >= highest or step == 0.25)
    top = min(1.0, max(step, math.ceil(highest / step) * step))
    best = max(row["region"]["mAcc"] for row in scores["rows"])
    points = []
    for row in scores["rows"]:
        value, (low, high) = row["region"]["mAcc"], row["region"]["interval"]["mAcc"]
        points.append(
            Point(
                label=f"{row['model']} · {summary.READERS[row['reader']]}",
                text=f"{100 * value:.1f}",
                left=100 * value / top,
                low=100 * low / top,
                span=100 * (high - low) / top,
                kind=metrics["models"][row["model"]]["objective"],
                best=value == best,
            )
        )
    ticks = [step * number for number in range(round(top / step) + 1)]
    return Chart(
        title=split.replace("_", " "),
        note=f"{scores['images']:,} images, {scores['regions']:,} regions of {scores['classes_occurring']} classes; "
        f"chance {100 / scores['classes']:.1f}",
        ticks=tuple((100 * tick / top, f"{100 * tick:.0f}") for tick in ticks),
        points=tuple(points),
    )


def _class_bars(metrics: Mapping[str, Any], shown: tuple[tuple[str, str], tuple[str, str]]) -> list[ClassBar]:
    rows = {(row["model"], row["reader"]): row for row in metrics["splits"][metrics["headline"]["split"]]["rows"]}
    own, other = (rows[key]["region"]["per_class"] for key in shown)
    return [ClassBar(name, 100 * a, 100 * b, n) for name, a, b, n in gallery.per_class(own, other, limit=_CLASSES)]


def _galleries(
    config: Config,
    split: Split,
    result: SplitResult,
    metrics: Mapping[str, Any],
    shown: tuple[tuple[str, str], tuple[str, str]] | None,
) -> Galleries:
    count, candidate = config.evaluation.pictures, metrics["headline"]["candidate"]
    regions: list[gallery.RegionCard] = []
    groundings: list[gallery.GroundingCard] = []
    if shown:
        regions = gallery.region_cards(split, result, candidate=shown[0], baseline=shown[1], count=count)
    if candidate in result.boxes:
        groundings = gallery.grounding_cards(result, model=candidate, threshold=grounding.THRESHOLD, count=count)
    model = candidate or next(iter(metrics["models"]))
    retrievals = gallery.retrieval_cards(split, result, model=model, count=count)
    keys = gallery.keys_of(regions, groundings, retrievals)
    return Galleries(gallery.load_pictures(split.dataset, keys), regions, groundings, retrievals)
