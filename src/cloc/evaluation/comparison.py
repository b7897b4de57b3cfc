"""Runs beside each other: what differs in settings, data, code and figures. Pure.

The first run is the one that the others are held against. Where two evaluations are of the same set, the difference of
their candidates is taken resample by resample (see `promotion`), and "better" is said where the 95 % interval leaves
zero out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloc.evaluation.differences import higher_is_better
from cloc.evaluation.promotion import Measured, estimate
from cloc.evaluation.statistics import difference
from cloc.evaluation.summary import FIGURES, Found, figure


@dataclass(frozen=True, eq=False)
class Subject:
    """What is known of a run.

    Attributes:
        label: what people call it.
        config, data, code: settings, data sets and source, by name.
        metrics: numbers by name.
        evaluation: its candidate's part in its evaluation; None where it has none.
    """

    label: str
    config: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluation: Measured | None = None


@dataclass(frozen=True)
class Line:
    """A setting, a data set or a metric of all runs, in their order; None where a run has none."""

    name: str
    values: tuple[str | float | None, ...]

    @property
    def differs(self) -> bool:
        """Whether any run has another value than the first."""
        return any(value != self.values[0] for value in self.values)


@dataclass(frozen=True)
class Gap:
    """A run's figure less the first run's.

    Attributes:
        value: of the two figures.
        interval: 95 %, paired; None where the runs were not measured on the same set with resamples kept.
        better: "this", "first", or "" where the interval does not say.
        note: why there is no interval.
    """

    value: float
    interval: tuple[float, float] | None = None
    better: str = ""
    note: str = ""


@dataclass(frozen=True)
class FigureLine:
    """A figure of the runs' candidates on a split.

    Attributes:
        split, path: of the figure.
        found: by run; None where a run has none.
        gaps: by run; None for the first, and where one of the two has none.
    """

    split: str
    path: str
    found: tuple[Found | None, ...]
    gaps: tuple[Gap | None, ...]

    @property
    def differs(self) -> bool:
        """Whether any run has another value than the first."""
        values = [item and item.value for item in self.found]
        return any(value != values[0] for value in values)


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other: their labels, and lines by section.

    Attributes:
        partial: metrics that some runs have and others have not, and that are not among the lines.
    """

    labels: tuple[str, ...]
    config: tuple[Line, ...]
    data: tuple[Line, ...]
    code: tuple[Line, ...]
    metrics: tuple[Line, ...]
    figures: tuple[FigureLine, ...]
    partial: int = 0

    def to_json(self) -> dict[str, Any]:
        """Values by section and name, in the order of "runs"; a figure's differences are those from the first run."""
        sections = {name: getattr(self, name) for name in ("config", "data", "code", "metrics")}
        return {
            "runs": list(self.labels),
            **{name: {line.name: list(line.values) for line in lines} for name, lines in sections.items()},
            "metrics_of_some_runs": self.partial,
            "figures": [
                {
                    "split": line.split,
                    "figure": line.path,
                    "values": [item and {"value": item.value, "reader": item.reader} for item in line.found],
                    "differences": [
                        gap and {**vars(gap), "interval": gap.interval and list(gap.interval)} for gap in line.gaps
                    ],
                }
                for line in self.figures
            ],
        }


def compare(subjects: Sequence[Subject], *, everything: bool = False) -> Comparison:
    """Runs beside each other.

    Args:
        subjects: at least two.
        everything: also what is equal in all runs, and metrics that not all of them have.
    """

    def lines(read: Callable[[Subject], Mapping[str, Any]]) -> tuple[Line, ...]:
        names = sorted({name for subject in subjects for name in read(subject)})
        found = [Line(name, tuple(read(subject).get(name) for subject in subjects)) for name in names]
        return tuple(line for line in found if everything or line.differs)

    metrics = lines(lambda subject: subject.metrics)
    common = metrics if everything else tuple(line for line in metrics if None not in line.values)
    figures = tuple(line for line in _figures(subjects) if everything or line.differs)
    return Comparison(
        labels=tuple(subject.label for subject in subjects),
        config=lines(lambda subject: subject.config),
        data=lines(lambda subject: subject.data),
        code=lines(lambda subject: subject.code),
        metrics=common,
        figures=figures,
        partial=len(metrics) - len(common),
    )


def _figures(subjects: Sequence[Subject]) -> list[FigureLine]:
    """The headline's figures on every split that any run was evaluated on."""
    parts = [subject.evaluation for subject in subjects]
    splits = dict.fromkeys(split for part in parts if part for split in part.metrics["splits"])
    lines = []
    for split in splits:
        for path in FIGURES:
            found = tuple(_found(part, split, path) for part in parts)
            if any(found):
                gaps = tuple(
                    _gap(parts[0], part, split, path) if number and found[0] and item else None
                    for number, (part, item) in enumerate(zip(parts, found, strict=True))
                )
                lines.append(FigureLine(split, path, found, gaps))
    return lines


def _found(part: Measured | None, split: str, path: str) -> Found | None:
    if part is None or split not in part.metrics["splits"]:
        return None
    return figure(part.metrics, split=split, model=part.model, path=path)


def _gap(first: Measured | None, part: Measured | None, split: str, path: str) -> Gap:
    assert first is not None
    assert part is not None
    a, b = estimate(part, path, split=split), estimate(first, path, split=split)
    assert a is not None
    assert b is not None
    sets = [item.metrics["splits"][split].get("digest") for item in (first, part)]
    if None in sets or sets[0] != sets[1]:
        return Gap(a.value - b.value, note="another evaluation set")
    if not len(a.samples_S) or len(a.samples_S) != len(b.samples_S):
        return Gap(a.value - b.value, note="resamples were not kept")
    told = difference(a, b, higher_is_better=higher_is_better(path))
    better = {"a": "this", "b": "first", "": ""}[told.better]
    return Gap(told.value, (told.interval.low, told.interval.high), better)
