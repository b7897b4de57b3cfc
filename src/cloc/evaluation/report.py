"""The report folder: one HTML page that needs no network, the same as Markdown, tables, and charts as PNG.

    index.html       figures with intervals, charts, heat maps, galleries, provenance, and how to make it again
    summary.md       the headline and all tables
    tables/*.csv, tables/*.json, figures/*.png
    examples/        named and found boxes drawn into a few pictures, and what is said of them as a table

Everything that comes from data is escaped by the template; pictures are data URIs. The page has no script.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from cloc.config import Config
from cloc.data.storage import Storage
from cloc.evaluation import (
    charts,
    figures,
    gallery,
    grounding,
    heatmap,
    region_recognition,
    statistics,
    summary,
    tables,
)
from cloc.evaluation.examples import examples
from cloc.evaluation.gate import Verdict, judge
from cloc.evaluation.metrics import SplitResult
from cloc.evaluation.models import EvaluatedModel, Reader
from cloc.evaluation.truth import Split
from cloc.pages import environment
from cloc.pages.examples import FOLDER, Example, write_examples

REPORT_FILE, SUMMARY_FILE = "index.html", "summary.md"
FIGURES_FOLDER, TABLES_FOLDER = "figures", "tables"
_HEATED = 2  # one heat map for so many pictures of a gallery: each is as many encoded windows


@dataclass(frozen=True)
class Shown:
    """The rows whose single answers are shown: the candidate's best, and the best of another model (None without)."""

    own: Mapping[str, Any]
    other: Mapping[str, Any] | None

    @property
    def keys(self) -> list[tuple[str, Reader]]:
        """(model, reader) of the rows."""
        return [(row["model"], row["reader"]) for row in (self.own, self.other) if row]


@dataclass(frozen=True)
class Galleries:
    """All pictures of the page and what stands beside them."""

    images: Mapping[str, Image.Image]
    pictures: Mapping[str, gallery.Picture]
    heats: Sequence[gallery.HeatCard]
    regions: Sequence[gallery.RegionCard]
    groundings: Sequence[gallery.GroundingCard]
    retrievals: Sequence[gallery.RetrievalCard]


@dataclass(frozen=True)
class Command:
    """How to make a row again."""

    model: str
    readers: tuple[str, ...]
    text: str


def write(
    config: Config,
    metrics: Mapping[str, Any],
    split: Split,
    result: SplitResult,
    models: Sequence[EvaluatedModel],
    *,
    data: str,
    storage: Storage,
) -> dict[str, str]:
    """Writes the report folder.

    Args:
        config, metrics, split, result, models, data: see `render`.
        storage: the report's folder.

    Returns:
        What was written, by the name to show: paths in the folder.
    """
    shown = shown_rows(metrics)
    galleries = _galleries(config, split, result, metrics, shown, models)
    page = render(config, metrics, split, result, data=data, models=models, galleries=galleries)
    sheets = tables.sheets(metrics)
    storage.write_bytes(REPORT_FILE, page.encode())
    storage.write_bytes(SUMMARY_FILE, f"{summary.headline_markdown(metrics)}\n{tables.markdown(sheets)}".encode())
    for sheet in sheets:
        storage.write_bytes(f"{TABLES_FOLDER}/{sheet.name}.csv", tables.as_csv(sheet).encode())
        storage.write_bytes(f"{TABLES_FOLDER}/{sheet.name}.json", tables.as_json(sheet).encode())
    bars = charts.classes(shown.own, shown.other) if shown else []
    for name, png in figures.draw(metrics, bars, _confusion(split, result, shown)).items():
        storage.write_bytes(f"{FIGURES_FOLDER}/{name}", png)
    written = {"report": REPORT_FILE, "summary": SUMMARY_FILE, "tables": TABLES_FOLDER, "figures": FIGURES_FOLDER}
    return written | ({"examples": FOLDER} if write_examples(storage, _examples(galleries, shown)) else {})


def render(
    config: Config,
    metrics: Mapping[str, Any],
    split: Split,
    result: SplitResult,
    *,
    data: str,
    models: Sequence[EvaluatedModel] = (),
    galleries: Galleries | None = None,
) -> str:
    """The page as HTML.

    Args:
        config: the settings.
        metrics: content of `metrics.json`.
        split, result: the headline split and what was found on it; pictures come from it.
        data: the data that was evaluated, as given.
        models: to draw heat maps with; without them there are none.
        galleries: the pictures, where they are chosen already.
    """
    shown = shown_rows(metrics)
    pages = environment("cloc.evaluation")
    pages.filters["percent"] = lambda value: f"{100 * value:.1f}"
    pages.filters["count"] = lambda value: summary.DASH if value is None else f"{value:,.0f}"
    pages.filters.update(reader=summary.reader_name, signed=summary.signed)
    pages.filters["cosine"] = lambda value: tables.decimal(value, 2)
    sheets = tables.sheets(metrics)
    return pages.get_template("report.html.j2").render(
        metrics=metrics,
        headline=metrics["headline"],
        split=metrics["splits"][split.name],
        table=summary.headline(metrics),
        says=summary.sentences(metrics),
        supervision=summary.SUPERVISION,
        verdict=_verdict(config, metrics),
        sheets={sheet.name: sheet for sheet in sheets},
        briefs={sheet.name: tables.brief(sheet, split.name) for sheet in sheets},
        region_charts=[chart for name in metrics["splits"] if (chart := charts.regions(metrics, name))],
        size_charts=charts.sizes(metrics),
        shown=shown,
        class_bars=charts.classes(shown.own, shown.other) if shown else [],
        confusion=_confusion(split, result, shown),
        galleries=galleries or _galleries(config, split, result, metrics, shown, models),
        legend=heatmap.legend(),
        commands=list(_commands(metrics, data)),
        statistics=statistics,
        threshold=grounding.THRESHOLD,
        data=data,
    )


def _verdict(config: Config, metrics: Mapping[str, Any]) -> Verdict | None:
    """What the gate will say; None where there is nothing to hold against each other."""
    complete = metrics["headline"]["candidate"] and metrics["headline"]["baselines"]
    return judge(metrics, config.evaluation) if complete else None


def shown_rows(metrics: Mapping[str, Any], figure: str = "region/mAcc") -> Shown | None:
    """The candidate's best row by a figure and the best row of a plain CLIP, else of any other model.

    Without a candidate the best row of all stands in its place, and without any row there is nothing to show.
    """
    head, models = metrics["headline"], list(metrics["models"])
    best = {model: summary.best_row(metrics, split=head["split"], model=model, figure=figure) for model in models}

    def first(names: Sequence[str]) -> Mapping[str, Any] | None:
        rows = [row for name in names if (row := best[name])]
        return max(rows, key=lambda row: float(summary.dig(row, figure)), default=None)

    own = first([head["candidate"]] if head["candidate"] else models)
    if own is None:
        return None
    others = [model for model in models if model != own["model"]]
    return Shown(own, first([name for name in others if name in head["baselines"]]) or first(others))


def _confusion(split: Split, result: SplitResult, shown: Shown | None) -> charts.Confusion | None:
    if shown is None:
        return None
    model, reader = shown.keys[0]
    predicted = result.recognitions[model, reader].predicted
    counts_CC = region_recognition.confusion(
        np.asarray(result.items.labels, dtype=np.int64), predicted, classes=len(split.classes)
    )
    return charts.confusion(counts_CC, split.classes, model=model, reader=summary.reader_name(reader))


def _galleries(
    config: Config,
    split: Split,
    result: SplitResult,
    metrics: Mapping[str, Any],
    shown: Shown | None,
    models: Sequence[EvaluatedModel],
) -> Galleries:
    count, candidate = config.evaluation.pictures, metrics["headline"]["candidate"]
    regions: list[gallery.RegionCard] = []
    groundings: list[gallery.GroundingCard] = []
    if shown:
        own, *other = shown.keys
        baseline = other[0] if other else None
        regions = gallery.region_cards(split, result, candidate=own, baseline=baseline, count=count)
    if candidate in result.boxes:
        groundings = gallery.grounding_cards(result, model=candidate, threshold=grounding.THRESHOLD, count=count)
    model = candidate or next(iter(metrics["models"]))
    retrievals = gallery.retrieval_cards(split, result, model=model, count=count)
    by_text = shown_rows(metrics, "region_retrieval/r2t/R@1")
    if by_text:
        retrievals += gallery.region_text_cards(split, result, row=by_text.keys[0], count=count)
    by_name = {model.name: model for model in models}
    rows = shown or by_text
    readers = [(by_name[name], reader) for name, reader in (rows.keys if rows else ()) if name in by_name]
    asked = gallery.asked_phrases(split, result.items, count=-(-count // _HEATED)) if readers else []
    keys = gallery.keys_of(regions, groundings, retrievals) | {item.key for item in asked}
    side = max((model.size for model, _ in readers), default=0)
    images = gallery.load_images(split.dataset, keys, side=side)
    heats = gallery.heat_cards(asked, images, readers, batch_size=config.evaluation.batch_size)
    pictures = {key: gallery.picture(image) for key, image in images.items()}
    return Galleries(images, pictures, heats, regions, groundings, retrievals)


def _examples(galleries: Galleries, shown: Shown | None) -> Iterator[Example]:
    if shown is None:
        return iter(())
    other = shown.other["model"] if shown.other else ""
    return examples(
        galleries.images, galleries.regions, galleries.groundings, candidate=shown.own["model"], baseline=other
    )


def _commands(metrics: Mapping[str, Any], data: str) -> Iterator[Command]:
    """A command a row: this model by this reader, with the settings that lie beside the page."""
    first = metrics["headline"]["split"]
    for name, model in metrics["models"].items():
        rows = [row["reader"] for row in metrics["splits"][first]["rows"] if row["model"] == name]
        for reader in rows or [""]:
            given = [
                "cloc",
                "evaluate",
                "--params",
                "config.yaml",
                "--data",
                data,
                "--model",
                f"{name}={model['folder']}",
            ]
            given += ["-S", "evaluation.models={}"]
            given += ["-S", f"evaluation.readers=[{reader}]"] if reader else []
            text = " ".join(map(shlex.quote, [*given, "--out", "again"]))
            yield Command(name, (reader,) if reader else (), text)
