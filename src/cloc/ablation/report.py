"""The result as ablation.json, ablation.md, and a table on the terminal. Pure; percent and points everywhere."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cloc.ablation import paper
from cloc.ablation.compare import FIGURES, RULE, Difference, Figure, TableRow, Verdict
from cloc.ablation.labels import Labels
from cloc.ablation.rows import LabelKind
from cloc.config import Config, flatten
from cloc.evaluation.summary import DASH, MINUS

JSON_FILE, MARKDOWN_FILE = "ablation.json", "ablation.md"
SCHEMA_VERSION = 1
_WIDTH = 120  # columns in a log file
_DEMO = "cloc data scenes"  # what the demo's manifest says that it was made by
_LABEL_NAMES = {
    LabelKind.ALL: "all rows but those named below",
    LabelKind.FEWER: "fewer region labels",
    LabelKind.ALT_TEXT: "without VESL",
}
_HEADINGS = {
    Verdict.AGREES: "Where this scale agrees with the paper",
    Verdict.DISAGREES: "Where it does not",
    Verdict.NOISE: "Within noise: nothing is shown either way",
    Verdict.NO_FIGURE: "What the paper has no figure for",
}


@dataclass(frozen=True)
class Result:
    """Everything that is reported.

    Attributes:
        config: settings of the base row.
        seeds: values of `train.seed`.
        table: the rows.
        labels: what they were trained with.
        metrics: the evaluation's `metrics.json`.
    """

    config: Config
    seeds: tuple[int, ...]
    table: Sequence[TableRow]
    labels: Mapping[LabelKind, Labels]
    metrics: Mapping[str, Any]

    @property
    def split(self) -> str:
        """The test split of the figures."""
        return str(self.metrics["headline"]["split"])


def write(result: Result, folder: Path) -> dict[str, str]:
    """Writes both files and returns their paths by name."""
    body, text = folder / JSON_FILE, folder / MARKDOWN_FILE
    body.write_text(json.dumps(to_json(result), indent=1, ensure_ascii=False) + "\n")
    text.write_text(to_markdown(result))
    return {"table": str(text), "figures": str(body)}


def to_json(result: Result) -> dict[str, Any]:
    """All figures of all seeds, percent and points."""
    return {
        "schema_version": SCHEMA_VERSION,
        "split": result.split,
        "seeds": list(result.seeds),
        "rule": RULE,
        "figures": {figure.key: {"title": figure.title, "paper": figure.paper_title} for figure in FIGURES},
        "rows": [_row_json(item, result.config) for item in result.table],
        "labels": {
            kind.value: {
                "regions_per_image": labels.regions_per_image,
                "words_per_region": labels.words_per_region,
                "images_with_regions": labels.coverage,
            }
            for kind, labels in result.labels.items()
        },
        "paper": {name: asdict(row) for name, row in paper.PAPER.items()},
        "settings": result.config.model_dump(mode="json"),
    }


def _row_json(item: TableRow, config: Config) -> dict[str, Any]:
    row = item.row
    return {
        "row": row.key,
        "title": row.title,
        "changes": row.changes(config),
        "objective": row.objective,
        "labels": row.labels.value,
        "paper": row.paper or None,
        "paper_reference": row.reference if row.paper else None,
        "note": row.note,
        "mean": {figure.key: item.mean(figure.key) for figure in FIGURES},
        "cpu_seconds": item.cpu_seconds,
        "models": [asdict(model) for model in item.models],
        "differences": {key: asdict(found) for key, found in item.differences.items()},
    }


def brief(table: Sequence[TableRow]) -> str:
    """One line: how many differences agree with the paper's."""
    verdicts = [found.verdict for item in table for found in item.differences.values()]
    counts = {verdict: verdicts.count(verdict) for verdict in (Verdict.AGREES, Verdict.DISAGREES, Verdict.NOISE)}
    return (
        f"{sum(counts.values())} differences to CLOC stand beside the paper's: {counts[Verdict.AGREES]} agreeing, "
        f"{counts[Verdict.DISAGREES]} not agreeing, {counts[Verdict.NOISE]} within noise."
    )


def signed(value: float) -> str:
    """Points with their sign: "+1.2", a true minus, "0.0" without."""
    text = f"{abs(value):.1f}"
    return text if text == "0.0" else f"{'+' if value > 0 else MINUS}{text}"


def _seeds(values: Sequence[float], show: Any = "{:.1f}".format) -> str:
    """The figure of each seed in brackets; nothing for a single one."""
    return f" ({', '.join(map(show, values))})" if len(values) > 1 else ""


def sentences(table: Sequence[TableRow], verdict: Verdict) -> list[str]:
    """What has this verdict, one sentence a row."""
    found = []
    for item in table:
        parts = [
            _clause(figure, item.differences[figure.key])
            for figure in FIGURES
            if figure.key in item.differences and item.differences[figure.key].verdict is verdict
        ]
        if parts:
            found.append(f"{item.row.title}: {'; '.join(parts)}.")
    return found


def _clause(figure: Figure, found: Difference) -> str:
    text = f"{figure.title} {signed(found.mean)}"
    if not found.is_clear:
        text += f" (noise {found.noise:.1f})"
    return text if found.paper is None else f"{text}, in the paper {signed(found.paper)}"


def to_markdown(result: Result) -> str:
    """The whole report."""
    lines = ["# The paper's ablation at this scale", "", *_setting(result), ""]
    lines += ["## Figures", "", *_figures(result), ""]
    lines += ["## Differences to the row CLOC", "", RULE, "", *_difference_table(result), ""]
    lines += ["## What this says", "", brief(result.table), ""]
    for verdict, heading in _HEADINGS.items():
        found = sentences(result.table, verdict)
        if found:
            lines += [f"### {heading}", "", *(f"- {sentence}" for sentence in found), ""]
    lines += ["## Rows", "", *_notes(result), ""]
    return "\n".join(lines).rstrip() + "\n"


def _setting(result: Result) -> Iterator[str]:
    config, split = result.config, result.metrics["splits"][result.split]
    model, labels = result.table[0].models[0], result.labels[LabelKind.ALL]
    yield (
        "Models, data and schedule are not the paper's: what is compared is the direction of each change, not its "
        f"size. Every row was trained for {model.steps:,} steps of {config.train.batch_size:,} images out of "
        f"{labels.images:,} (the paper: {paper.STEPS:,} steps of {paper.BATCH_SIZE:,} out of billions), with "
        f"{_count(result.seeds)}; a seed changes `train.seed` only (weights, order, sampling). Steps are equal, "
        "processor time is not: see its column."
    )
    if labels.made_by == _DEMO:
        yield ""
        yield (
            "This is the demo's scale: rendered scenes of coloured pictograms, with exact boxes and captions made by "
            "rules, and a model that trains in minutes. What holds here need not hold for photographs."
        )
    yield ""
    yield (
        f"Figures are of the split `{result.split}`: {split['images']:,} images, {split['regions']:,} regions of "
        f"{split['classes']:,} classes, {split['captions']:,} captions. Region mAcc is by each model's own best way to "
        "read a region (crop, RoIAlign, Prompter, region head), picked on this split for all rows alike. They stand "
        "beside COCO's in the paper, which are of other images and classes."
    )
    yield ""
    yield from _label_lines(result)
    yield ""
    yield f"Settings of all rows that are not the paper's: {_deviations(config)}."
    codes = {model.code for item in result.table for model in item.models}
    if len(codes) > 1:
        yield ""
        yield (
            f"**The models were trained by {len(codes)} different versions of the code** (see `code` in {JSON_FILE}); "
            "what differs between rows may be that."
        )


def _count(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"one seed ({seeds[0]}), so that the spread between seeds is not known"
    return f"{len(seeds)} seeds ({', '.join(map(str, seeds))})"


def _label_lines(result: Result) -> Iterator[str]:
    yield "| labels of | regions an image | words a region | images with regions |"
    yield "|---|---:|---:|---:|"
    for kind, name in _LABEL_NAMES.items():
        if kind in result.labels:
            found = result.labels[kind]
            cells = [f"{found.regions_per_image:.1f}", f"{found.words_per_region:.1f}", f"{100 * found.coverage:.0f} %"]
            yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield f"The paper: {paper.REGIONS_VESL} regions an image with VESL, {paper.REGIONS_ALT_TEXT} without."


def _deviations(config: Config) -> str:
    """Model, loss and captions where they differ from the schema's defaults, which are the paper's."""
    own, usual = (
        {
            **flatten({"model": {"prompter": tree["model"]["prompter"]}, "loss": tree["loss"]}),
            "train.alt_text_share": tree["train"]["alt_text_share"],
        }
        for tree in (config.model_dump(mode="json"), Config().model_dump(mode="json"))
    )
    found = [f"`{key}` {value} ({usual[key]})" for key, value in own.items() if value != usual[key]]
    return (", ".join(found) + "; the paper's in brackets") if found else "none but sizes and schedule"


def _figures(result: Result) -> Iterator[str]:
    yield (
        "| row | " + " | ".join(figure.title for figure in FIGURES) + " | CPU-seconds | the paper's row | "
        "COCO i2t / t2i | COCO mAcc |"
    )
    yield "|---|" + "---:|" * (len(FIGURES) + 1) + "---|---:|---:|"
    for item in result.table:
        cells = [_cell(item, figure) for figure in FIGURES]
        row = paper.PAPER.get(item.row.paper)
        theirs = [row.name, f"{row.i2t} / {row.t2i}", str(row.coco or "not given")] if row else [DASH] * 3
        yield f"| {item.row.title} | " + " | ".join([*cells, f"{item.cpu_seconds:,.0f}", *theirs]) + " |"
    yield ""
    yield "Percent; mean over the seeds, in brackets each seed."
    yield f"{DASH}: the model does not do this, or the paper has no such row."


def _cell(item: TableRow, figure: Figure) -> str:
    mean = item.mean(figure.key)
    return DASH if mean is None else f"{mean:.1f}{_seeds(item.values(figure.key))}"


def _difference_table(result: Result) -> Iterator[str]:
    yield "| row | figure | difference | noise | in the paper | |"
    yield "|---|---|---:|---:|---:|---|"
    for item in result.table:
        for figure in FIGURES:
            if figure.key in item.differences:
                found = item.differences[figure.key]
                theirs = DASH if found.paper is None else f"{signed(found.paper)} {_reference(item, figure)}"
                yield (
                    f"| {item.row.title} | {figure.title} | {signed(found.mean)}{_seeds(found.seeds, signed)} | "
                    f"{found.noise:.1f} | {theirs} | {found.verdict} |"
                )


def _reference(item: TableRow, figure: Figure) -> str:
    short = {paper.CLOC_300M: "300M", paper.CLOC_2B: "2B"}[item.row.reference]
    return f"({figure.paper_title}, to {short})"


def _notes(result: Result) -> Iterator[str]:
    yield (
        "The paper compares its rows on loss and Prompter with its CLOC of 300M region labels, those on labels and "
        "sizes with its CLOC of 2B; so do the differences above."
    )
    yield ""
    for item in result.table:
        changes = [f"`{key}` = {value}" for key, value in item.row.changes(result.config).items()]
        changes += ["no region losses"] if item.row.objective == "clip" else []
        parts = [", ".join(changes), item.row.note, f"{item.models[0].parameters:,} parameters"]
        yield f"- **{item.row.title}** (`{item.row.key}`): {'. '.join(part.rstrip('.') for part in parts if part)}."


def print_result(result: Result) -> None:
    """The table and what it says, on the terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    console.print()
    console.print(_rich_table(result))
    console.print(Text(brief(result.table)), soft_wrap=True)
    for verdict, heading in _HEADINGS.items():
        found = sentences(result.table, verdict)
        if found:
            console.print(Text(f"{heading}:", style="bold"))
            for sentence in found:
                console.print(Text(f"- {sentence}"), soft_wrap=True)
    console.print()


def _rich_table(result: Result) -> Table:
    seeds = ", ".join(map(str, result.seeds))
    table = Table(
        title=f"The paper's ablation at this scale, split {result.split!r}, seeds {seeds} (percent; paper in brackets)",
        title_justify="left",
    )
    table.add_column("")
    for figure in FIGURES:
        table.add_column(figure.title, justify="right")
    table.add_column("CPU-s", justify="right")
    for item in result.table:
        cells = [_rich_cell(item, figure) for figure in FIGURES]
        table.add_row(Text(item.row.title), *cells, f"{item.cpu_seconds:,.0f}")
    return table


def _rich_cell(item: TableRow, figure: Figure) -> Text:
    mean = item.mean(figure.key)
    if mean is None:
        return Text(DASH)
    theirs = figure.of(paper.PAPER.get(item.row.paper))
    text = Text(f"{mean:.1f}" + (f" [{theirs}]" if theirs is not None else ""))
    values = item.values(figure.key)
    return text.append(f"\n{', '.join(f'{value:.1f}' for value in values)}", style="dim") if len(values) > 1 else text
