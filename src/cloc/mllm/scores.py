"""Figures of adapters side by side: with intervals, and with paired differences from a baseline.

A row is a way of making a model, tuned with one seed or several: a question's value is the mean over its seeds.
Intervals are bootstrapped over images (`cloc.evaluation.statistics`), differences paired question by question.
No torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloc.errors import ConfigError
from cloc.evaluation.statistics import Estimate, difference, draws, mean_estimate
from cloc.evaluation.summary import signed
from cloc.mllm.conversation import Task
from cloc.mllm.instructions import plain
from cloc.mllm.judging import Prediction, says_none
from cloc.tracking import eval_name


@dataclass(frozen=True)
class Figure:
    """A figure of one task.

    Attributes:
        name: in results; see `metrics` for MLflow.
        label: for people.
        task: whose answers it is of.
        value: of an answer; None where it does not count.
        higher: whether more is better; None where neither is.
    """

    name: str
    label: str
    task: Task
    value: Callable[[Prediction], float | None]
    higher: bool | None = True


def _value(item: Prediction) -> float:
    return item.value


def _invented(item: Prediction) -> float:
    return 1 - item.value


def _unparsed(item: Prediction) -> float:
    return float(not item.parsed)


def _denied(item: Prediction) -> float:
    return float(says_none(item.answer))


def _yes(item: Prediction) -> float:
    return float(plain(item.answer).startswith("yes"))


FIGURES = (
    Figure("refer/accuracy", "refers, word for word", Task.REFER, _value),
    Figure("refer/noun_accuracy", "refers, by noun", Task.REFER, lambda item: None if item.noun is None else item.noun),
    Figure("attribute/accuracy", "names attributes", Task.ATTRIBUTE, _value),
    Figure("relation/accuracy", "names relations", Task.RELATION, _value),
    Figure("count/accuracy", "counts", Task.COUNT, _value),
    Figure("ground/acc@0.5", "grounds, IoU ≥ 0.5", Task.GROUND, _value),
    Figure("ground/iou", "grounds, mean IoU", Task.GROUND, lambda item: item.iou),
    Figure("ground/parse_failures", "boxes out of format", Task.GROUND, _unparsed, higher=False),
    Figure("ground/denied", "denies what is there", Task.GROUND, _denied, higher=False),
    Figure("ground_all/f1@0.5", "grounds all, F1", Task.GROUND_ALL, _value),
    Figure(
        "absent/hallucination", "boxes for what is not there", Task.ABSENT, lambda item: 1 - item.value, higher=False
    ),
    Figure("verify/accuracy", "yes or no", Task.VERIFY, _value),
    Figure("verify/yes_share", "says yes", Task.VERIFY, _yes, higher=None),
    Figure("describe/word_f1", "describes, word F1", Task.DESCRIBE, _value),
    Figure("grounded_caption/word_f1", "describes with boxes, word F1", Task.GROUNDED_CAPTION, _value),
    Figure("other/accuracy", "other questions, word for word", Task.OTHER, _value),
)


@dataclass(frozen=True)
class Row:
    """A way of making a model, and what the models that were made so answered.

    Attributes:
        name: to show.
        runs: answers of each seed, to the same questions in the same order.
    """

    name: str
    runs: tuple[Sequence[Prediction], ...]

    @property
    def questions(self) -> list[tuple[str, str, str, str]]:
        """What was asked, in order: source, image, task and truth (wordings may differ where a sampler is told)."""
        return [_identity(item) for item in self.runs[0]]

    def check(self) -> None:
        """Raises ConfigError where its runs were asked different things, or there is none."""
        if not self.runs:
            raise ConfigError(f"{self.name}: no answers to compare")
        if any([_identity(item) for item in run] != self.questions for run in self.runs):
            raise ConfigError(f"{self.name}: its seeds were asked different questions; tune them alike")


def _identity(item: Prediction) -> tuple[str, str, str, str]:
    return item.source, item.key, item.task, item.truth


def compare(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of all rows, and how the others differ from the first, which is the baseline.

    Args:
        rows: at least one; all must have been asked the same questions.

    Returns:
        JSON values: {"rows": [{"name", "seeds"}], "figures": [{"source", "name", "label", "higher", "scores": {row:
        {"value", "interval", "n", "images", "seeds": [value of each seed]}}, "differences": {row: {"value",
        "interval", "better": "a" (the row) | "b" (the baseline) | ""}}}]}; shares, not percent.

    Raises:
        ConfigError: there is no row, or they were asked different questions.
    """
    if not rows:
        raise ConfigError("no adapters to compare")
    for row in rows:
        row.check()
        if row.questions != rows[0].questions:
            raise ConfigError(
                f"{row.name} was asked other questions than {rows[0].name}: tune both with the same data, "
                "adapter.tasks, adapter.eval_images and adapter.seed"
            )
    sources = sorted({item.source for item in rows[0].runs[0]})
    figures = [entry for source in sources for figure in FIGURES if (entry := _entry(rows, figure, source))]
    return {"rows": [{"name": row.name, "seeds": len(row.runs)} for row in rows], "figures": figures}


def _entry(rows: Sequence[Row], figure: Figure, source: str) -> dict[str, Any] | None:
    """A figure of all rows; None where nothing of its kind was asked."""
    first = rows[0].runs[0]
    keys = sorted({item.key for item in first if item.source == source})
    number = {key: place for place, key in enumerate(keys)}
    chosen = [
        place
        for place, item in enumerate(first)
        if item.source == source and item.task == figure.task.value and figure.value(item) is not None
    ]
    if not chosen:
        return None
    draws_SN = draws(len(keys))
    images_I = np.array([number[first[place].key] for place in chosen])
    estimates, scores = {}, {}
    for row in rows:
        values_RI = np.array([[float(figure.value(run[place]) or 0) for place in chosen] for run in row.runs])
        estimate = mean_estimate(values_RI.mean(axis=0), images_I, draws_SN)
        estimates[row.name] = estimate
        scores[row.name] = {
            "value": estimate.value,
            "interval": estimate.interval.to_json(),
            "n": estimate.n,
            "images": estimate.images,
            "seeds": values_RI.mean(axis=1).tolist(),
        }
    return {
        "source": source,
        "name": figure.name,
        "label": figure.label,
        "higher": figure.higher,
        "scores": scores,
        "differences": {row.name: _gap(estimates[row.name], estimates[rows[0].name], figure) for row in rows[1:]},
    }


def _gap(own: Estimate, baseline: Estimate, figure: Figure) -> dict[str, Any]:
    gap = difference(own, baseline, higher_is_better=figure.higher is not False)
    better = "" if figure.higher is None else gap.better
    return {"value": gap.value, "interval": gap.interval.to_json(), "better": better}


def metrics(comparison: Mapping[str, Any], row: str, *, test: str) -> dict[str, float]:
    """A row's figures as MLflow has them: "eval/mllm_ground/test/acc_0.5".

    Args:
        comparison: of `compare`.
        row: its name.
        test: name of the set that questions of no other source were asked on.
    """
    found = {}
    for entry in comparison["figures"]:
        task, _, figure = entry["name"].partition("/")
        found[eval_name(f"mllm_{task}", entry["source"] or test, figure)] = entry["scores"][row]["value"]
    return found


def sentences(comparison: Mapping[str, Any]) -> list[str]:
    """What the figures of the test split show, a sentence a row against the baseline; nothing that an interval does
    not say."""
    baseline, *others = [row["name"] for row in comparison["rows"]]
    own = [entry for entry in comparison["figures"] if not entry["source"] and entry["higher"] is not None]
    found = []
    for name in others:
        for better, says in (("a", "is better than"), ("b", "is worse than")):
            shown = [_said(entry, name) for entry in own if entry["differences"][name]["better"] == better]
            if shown:
                found.append(f"{name} {says} {baseline}: {'; '.join(shown)}.")
        if not any(entry["differences"][name]["better"] for entry in own):
            found.append(f"No difference between {name} and {baseline} is shown.")
    return found


def _said(entry: Mapping[str, Any], name: str) -> str:
    gap, own = entry["differences"][name], entry["scores"][name]
    low, high = (signed(end) for end in gap["interval"])
    return f"{entry['label']} {100 * own['value']:.1f}, {signed(gap['value'])} ({low} to {high})"
