"""`cloc compare`: what differs between runs."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from cloc.cli.options import settings_options, tracking_settings
from cloc.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from cloc.evaluation.comparison import Comparison, FigureLine, Gap, Line
    from cloc.evaluation.summary import Found

_SECTIONS = {"config": "Settings", "data": "Data", "code": "Code", "metrics": "Metrics"}
_WIDTH = 100


@click.command(short_help="What differs between runs: settings, data, code, figures.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--all", "everything", is_flag=True, help="Also what is equal, and metrics of some runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options
def compare(runs: tuple[str, ...], everything: bool, as_json: bool, **settings: Any) -> None:
    """Print what differs between runs: settings, data, code and figures; the first is held against the others.

    A RUN is a run in MLflow (its id, the start of its id, or its name; a pipeline's run with its stages), or a folder
    that a stage or `cloc run --out` wrote. Where two evaluations are of the same set, a figure's difference comes with
    its 95 % interval, paired over images, and "better" where that leaves zero out.

    \b
    cloc compare 3f2a91c0 8be1d02f
    cloc compare runs/demo runs/photos --all
    """
    if len(runs) < 2:
        raise ConfigError(f"compare: {len(runs)} run given; name two or more")
    tracking = tracking_settings(**settings)

    from cloc.cli.subjects import Subjects
    from cloc.evaluation.comparison import compare as beside

    subjects = Subjects(tracking)
    comparison = beside([subjects.find(run) for run in runs], everything=everything)
    if as_json:
        click.echo(json.dumps(comparison.to_json(), indent=1))
    elif sys.stdout.isatty():
        _show(comparison)
    else:
        for line in _plain(comparison):
            click.echo(line)


def _show(comparison: "Comparison") -> None:
    from rich.console import Console

    console = Console()
    console.width = min(console.width, _WIDTH)
    for number, label in enumerate(comparison.labels, start=1):
        console.print(f"{number}: {label}", markup=False, highlight=False)
    tables = list(_tables(comparison))
    for table in tables:
        console.print(table)
    if comparison.partial:
        console.print(f"{comparison.partial} more metrics are not of all runs: --all shows them", highlight=False)
    elif not tables:
        console.print("no difference")


def _tables(comparison: "Comparison") -> Iterator["Table"]:
    """A table a section that has lines; the figures last."""
    from rich.table import Table
    from rich.text import Text

    for section, title in _SECTIONS.items():
        lines = getattr(comparison, section)
        if not lines:
            continue
        table = Table("", *map(str, range(1, len(comparison.labels) + 1)), title=title, title_justify="left")
        for line in lines:
            table.add_row(Text(line.name, overflow="fold"), *(Text(cell, overflow="fold") for cell in _cells(line)))
        yield table
    if comparison.figures:
        title = "Figures of the candidates (percent; differences from 1 with 95 % interval)"
        table = Table("", *map(str, range(1, len(comparison.labels) + 1)), title=title, title_justify="left")
        for row in comparison.figures:
            table.add_row(_name(row), *(Text(cell.replace("; ", "\n")) for cell in _figure_cells(row)))
        yield table


def _plain(comparison: "Comparison") -> Iterator[str]:
    """Lines of fields separated by tabs: section, name, and a field a run."""
    yield "\t".join(["runs", "", *comparison.labels])
    for section in _SECTIONS:
        for line in getattr(comparison, section):
            yield "\t".join([section, line.name, *_cells(line)])
    for row in comparison.figures:
        yield "\t".join(["figure", _name(row), *_figure_cells(row)])


def _cells(line: "Line") -> list[str]:
    """Values as shown; numbers with their difference from the first."""
    first = line.values[0]
    cells = []
    for value in line.values:
        if value is None:
            cells.append("-")
        elif isinstance(value, str):
            cells.append(value)
        else:
            gap = value - first if isinstance(first, int | float) else 0.0
            cells.append(f"{value:.6g} ({gap:+.4g})" if gap else f"{value:.6g}")
    return cells


def _name(row: "FigureLine") -> str:
    from cloc.evaluation.summary import FIGURES

    return f"{FIGURES.get(row.path, row.path)}, {row.split}"


def _figure_cells(row: "FigureLine") -> list[str]:
    return [_figure(found, gap) for found, gap in zip(row.found, row.gaps, strict=True)]


def _figure(found: "Found | None", gap: "Gap | None") -> str:
    """ "72.1 (Prompter); +3.1 (0.4 to 5.9) better"; parts separated by semicolons."""
    from cloc.evaluation.summary import reader_name, signed

    if found is None:
        return "-"
    shown = f"{100 * found.value:.1f}" + (f" ({reader_name(found.reader)})" if found.reader else "")
    if gap is None:
        return shown
    if gap.interval is None:
        return f"{shown}; {signed(gap.value)}; {gap.note}"
    low, high = gap.interval
    verdict = {"this": " better", "first": " worse", "": ""}[gap.better]
    return f"{shown}; {signed(gap.value)} ({signed(low)} to {signed(high)}){verdict}"
