"""The report's charts as PNG, for experiment tracking and slides. Drawn by matplotlib, which is imported on use."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cloc.evaluation.charts import ClassBar, Confusion
from cloc.evaluation.summary import FIGURES, best_row, figure, headline
from cloc.evaluation.tables import SIZES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OTHERS = ("#8b95a3", "#c08a2b", "#5aa078", "#a06ab4", "#c0605a", "#4f9bb5")
_OWN, _INK, _LINE = "#0b62c4", "#1b1f24", "#dfe3e8"
_SHOWN = 60  # classes that can be read


def draw(metrics: Mapping[str, Any], bars: Sequence[ClassBar], confused: Confusion | None) -> dict[str, bytes]:
    """PNG files by name: headline, per_class, by_size and confusion, those that there are figures for.

    Args:
        metrics: content of `metrics.json`.
        bars: accuracy by class.
        confused: the worst classes; None where nothing is wrong.
    """
    found = {"headline": _headline(metrics), "by_size": _by_size(metrics)}
    if bars:
        found["per_class"] = _per_class(bars, metrics)
    if confused:
        found["confusion"] = _confusion(confused)
    return {f"{name}.png": _png(figure) for name, figure in found.items() if figure is not None}


def _canvas(width: float, height: float) -> "tuple[Figure, Axes]":
    """A figure without pyplot: nothing global, no display."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    axes = drawn.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return drawn, axes


def _png(drawn: "Figure") -> bytes:
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=130, metadata={"Software": None})
    return stream.getvalue()


def _colors(metrics: Mapping[str, Any]) -> dict[str, str]:
    candidate = metrics["headline"]["candidate"]
    others = [model for model in metrics["models"] if model != candidate]
    return {candidate: _OWN, **{model: _OTHERS[number % len(_OTHERS)] for number, model in enumerate(others)}}


def _plain(text: str) -> str:
    """A text of the data as matplotlib shows it: "$" begins no formula."""
    return text.replace("$", r"\$")


def _grouped(
    metrics: Mapping[str, Any], groups: Sequence[str], values: Mapping[str, Mapping[str, tuple[float, float, float]]]
) -> "Figure":
    """Bars by group and model with whiskers: `values[model][group]` is (share, low, high)."""
    models = list(values)
    drawn, axes = _canvas(max(6.0, 1.0 + len(groups) * (0.5 + 0.28 * len(models))), 4.2)
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        places = [place for place, group in enumerate(groups) if group in values[model]]
        found = 100 * np.asarray([values[model][groups[place]] for place in places]).reshape(-1, 3)
        x = np.asarray(places) - 0.4 + width * (number + 0.5)
        errors = np.abs(found[:, 1:] - found[:, :1]).T
        axes.bar(x, found[:, 0], 0.92 * width, color=_colors(metrics)[model], label=_plain(model))
        axes.errorbar(x, found[:, 0], errors, fmt="none", ecolor=_INK, elinewidth=1, capsize=2)
    axes.set_xticks(range(len(groups)), [_plain(group) for group in groups])
    if sum(map(len, groups)) > 60:
        axes.tick_params("x", rotation=20)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
    axes.set_ylabel("percent, 95 % interval")
    axes.grid(axis="y", color=_LINE)
    axes.legend(frameon=False, fontsize=9)
    return drawn


def _headline(metrics: Mapping[str, Any]) -> "Figure | None":
    split = metrics["headline"]["split"]
    values: dict[str, dict[str, tuple[float, float, float]]] = {}
    for model in metrics["models"]:
        for path, label in FIGURES.items():
            found = figure(metrics, split=split, model=model, path=path)
            if found:
                values.setdefault(model, {})[label] = (found.value, *found.interval)
    groups = [row.label for row in headline(metrics).rows if any(row.label in of for of in values.values())]
    return _grouped(metrics, groups, values) if groups else None


def _by_size(metrics: Mapping[str, Any]) -> "Figure | None":
    split = metrics["headline"]["split"]
    values: dict[str, dict[str, tuple[float, float, float]]] = {}
    for model in metrics["models"]:
        row = best_row(metrics, split=split, model=model)
        for size in SIZES:
            block = row["region"].get("by_size", {}).get(size) if row else None
            if block and block.get("n"):
                values.setdefault(model, {})[size] = (block["mAcc"], *block["interval"]["mAcc"])
    groups = [size for size in SIZES if any(size in of for of in values.values())]
    return _grouped(metrics, groups, values) if groups else None


def _per_class(bars: Sequence[ClassBar], metrics: Mapping[str, Any]) -> "Figure":
    shown = sorted(sorted(bars, key=lambda bar: -bar.regions)[:_SHOWN], key=lambda bar: bar.own)
    drawn, axes = _canvas(7.0, 1.2 + 0.19 * len(shown))
    for place, bar in enumerate(shown):
        axes.plot([bar.low, bar.low + bar.span], [place, place], color=_LINE, linewidth=2, zorder=1)
    compared = [(place, bar.other) for place, bar in enumerate(shown) if bar.other is not None]
    if compared:
        places, others = zip(*compared, strict=True)
        axes.scatter(others, places, s=22, facecolor="white", edgecolor=_OTHERS[0], label="best other model", zorder=2)
    own = metrics["headline"]["candidate"] or next(iter(metrics["models"]))
    axes.scatter([bar.own for bar in shown], range(len(shown)), s=22, color=_OWN, label=_plain(own), zorder=3)
    axes.set_yticks(range(len(shown)), [_plain(f"{bar.name} ({bar.regions})") for bar in shown], fontsize=7)
    axes.set_ylim(-1, len(shown))
    axes.set_xlim(-2, 102)
    axes.set_xlabel("accuracy, percent (in brackets: regions)")
    axes.grid(axis="x", color=_LINE)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return drawn


def _confusion(found: Confusion) -> "Figure":
    shares = 100 * np.asarray([row.taken for row in found.rows])
    drawn, axes = _canvas(3.0 + 0.5 * len(found.columns), 2.2 + 0.36 * len(found.rows))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=max(60.0, float(shares.max())), aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.5:
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=8, color=_text(share))
    axes.set_xticks(range(len(found.columns)), [_plain(name) for name in found.columns], rotation=45, ha="right")
    axes.set_yticks(range(len(found.rows)), [_plain(f"{row.name} ({row.regions})") for row in found.rows])
    axes.set_xlabel(_plain(f"taken for, percent ({found.model}, {found.reader})"))
    return drawn


def _text(share: float) -> str:
    return "white" if share > 55 else _INK
