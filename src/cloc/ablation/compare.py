"""Differences to the base row, their noise, and whether they agree with the paper's. Pure; all figures in percent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Any

from cloc.ablation.paper import PAPER, PaperRow
from cloc.ablation.rows import BASE, Row
from cloc.evaluation.summary import best_row

# The paper gives no spread: a difference of less than this many points in it is taken for none.
PAPER_NOISE = 1.0


@dataclass(frozen=True)
class Figure:
    """A figure of the table.

    Attributes:
        key: its name in ablation.json.
        title: for people.
        paper: the field of `PaperRow` that it is set beside; "" where the paper has none.
        paper_title: what that is.
    """

    key: str
    title: str
    paper: str = ""
    paper_title: str = ""

    def of(self, row: PaperRow | None) -> float | None:
        """The paper's figure in a row; None where there is none."""
        value: float | None = getattr(row, self.paper) if row and self.paper else None
        return value


FIGURES = (
    Figure("i2t", "image→text R@1", "i2t", "COCO i2t"),
    Figure("t2i", "text→image R@1", "t2i", "COCO t2i"),
    Figure("region", "region mAcc", "coco", "COCO mAcc"),
    Figure("grounding", "grounding acc@0.5"),
)


@dataclass(frozen=True)
class Score:
    """A model's figure with the ends of its 95 % interval over the test images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Model:
    """A trained and evaluated model.

    Attributes:
        row: key of its row.
        seed: `train.seed`.
        name: of its row in the evaluation.
        folder: where it lies.
        scores: by the key of the figure; a figure that the model does not have is absent.
        reader: how it reads regions best.
        steps, cpu_seconds, parameters: of its training.
        weights: sha256.
        code: hash of the training's source.
    """

    row: str
    seed: int
    name: str
    folder: str
    scores: Mapping[str, Score]
    reader: str
    steps: int
    cpu_seconds: float
    parameters: int
    weights: str
    code: str


class Verdict(StrEnum):
    """How a difference here relates to the paper's."""

    AGREES = "agrees"
    DISAGREES = "does not agree"
    NOISE = "within noise"
    NO_FIGURE = "not in the paper"


@dataclass(frozen=True)
class Difference:
    """A row's figure less the base row's.

    Attributes:
        seeds: of each seed that both have, in order.
        mean: over the seeds.
        noise: see `noise_of`.
        paper: the paper's difference; None where it has none.
        verdict: what follows, by `RULE`.
    """

    seeds: tuple[float, ...]
    mean: float
    noise: float
    paper: float | None
    verdict: Verdict

    @property
    def is_clear(self) -> bool:
        """Whether there is a difference beyond noise, in one direction for every seed."""
        return abs(self.mean) > self.noise and (min(self.seeds) > 0 or max(self.seeds) < 0)


RULE = (
    "A difference is the row's figure less the row CLOC's, seed by seed, then the mean over seeds. Its noise is the "
    "larger of two: the range of the row CLOC over its seeds, and half the width of the 95 % bootstrap interval over "
    "test images (mean over the models of both rows). A difference is clear when it is larger than the noise and has "
    f"the same sign for every seed; else it is within noise. The paper gives no spread: under {PAPER_NOISE:g} point in "
    "the paper counts as no difference. A clear difference agrees when the paper has one in the same direction, and "
    "does not when the paper has none, or one in the other direction. Sizes are not compared."
)


@dataclass(frozen=True)
class TableRow:
    """A row of the result: its models by seed, and its differences to the base row by figure (none for the base)."""

    row: Row
    models: tuple[Model, ...]
    differences: Mapping[str, Difference]

    def mean(self, figure: str) -> float | None:
        """Mean over the seeds; None where the models do not have the figure."""
        values = self.values(figure)
        return fmean(values) if values else None

    def values(self, figure: str) -> tuple[float, ...]:
        """The figure of each seed."""
        return tuple(model.scores[figure].value for model in self.models if figure in model.scores)

    @property
    def cpu_seconds(self) -> float:
        """Mean over the seeds."""
        return fmean(model.cpu_seconds for model in self.models)


def read_scores(metrics: Mapping[str, Any], name: str, *, grounds: bool) -> dict[str, Score]:
    """A model's figures on the headline split of an evaluation's `metrics.json`.

    Args:
        metrics: the file's content.
        name: of the model.
        grounds: whether the model was trained to find boxes; else its grounding figure is left away.
    """
    split = metrics["splits"][metrics["headline"]["split"]]
    retrieval, best = split["retrieval"].get(name), best_row(metrics, split=metrics["headline"]["split"], model=name)
    scores = {way: _score(retrieval[way], "R@1") for way in ("i2t", "t2i")} if retrieval else {}
    if best is not None:
        scores["region"] = _score(best["region"], "mAcc")
    if grounds and name in split["grounding"]:
        scores["grounding"] = _score(split["grounding"][name], "acc@0.5")
    return scores


def _score(scores: Mapping[str, Any], key: str) -> Score:
    low, high = scores["interval"][key]
    return Score(100 * scores[key], 100 * low, 100 * high)


def compare(rows: Sequence[Row], models: Sequence[Model]) -> list[TableRow]:
    """The table: every row with its models, and its differences to the base row."""
    by_row = {row.key: tuple(model for model in models if model.row == row.key) for row in rows}
    table = []
    for row in rows:
        found = {} if row.key == BASE else _differences(row, by_row[row.key], by_row[BASE])
        table.append(TableRow(row, by_row[row.key], found))
    return table


def _differences(row: Row, models: Sequence[Model], base: Sequence[Model]) -> dict[str, Difference]:
    found = {}
    for figure in FIGURES:
        own, other = (
            {model.seed: model.scores[figure.key] for model in group if figure.key in model.scores}
            for group in (models, base)
        )
        seeds = [seed for seed in own if seed in other]
        if seeds:
            found[figure.key] = difference(
                [own[seed] for seed in seeds], [other[seed] for seed in seeds], paper=paper_difference(row, figure)
            )
    return found


def paper_difference(row: Row, figure: Figure) -> float | None:
    """The paper's row less the one it is compared with; None where either has no such figure."""
    own, other = figure.of(PAPER.get(row.paper)), figure.of(PAPER[row.reference])
    return None if own is None or other is None else round(own - other, 1)


def noise_of(row: Sequence[Score], base: Sequence[Score]) -> float:
    """Noise of a difference of means, points: see `RULE`."""
    spread = max(score.value for score in base) - min(score.value for score in base)
    return max(spread, fmean((score.high - score.low) / 2 for score in (*row, *base)))


def difference(row: Sequence[Score], base: Sequence[Score], *, paper: float | None) -> Difference:
    """The difference of two rows' scores, seed by seed, and its verdict."""
    seeds = tuple(own.value - other.value for own, other in zip(row, base, strict=True))
    plain = Difference(seeds, fmean(seeds), noise_of(row, base), paper, Verdict.NO_FIGURE)
    return Difference(plain.seeds, plain.mean, plain.noise, paper, _verdict(plain))


def _verdict(found: Difference) -> Verdict:
    if found.paper is None:
        return Verdict.NO_FIGURE
    if not found.is_clear:
        return Verdict.NOISE
    same_direction = (found.paper > 0) == (found.mean > 0)
    return Verdict.AGREES if abs(found.paper) >= PAPER_NOISE and same_direction else Verdict.DISAGREES
