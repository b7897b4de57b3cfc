"""How `cloc runs` shows runs: tables that fit 100 columns on a terminal, elsewhere lines of fields between tabs."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

WIDTH = 100
_NARROW = 90  # columns below which who, code and data are left to `show`
_ID, _COMMIT, _DIGEST = 8, 8, 8  # characters shown
_FIGURES = 4  # shown of a run in the list
_READER_SLASHES = 4  # in eval/<protocol>/<data set>/<reader>/<figure>
_COLORS = {"FINISHED": "green", "FAILED": "red", "KILLED": "red", "RUNNING": "yellow"}
_HEADER = ("run", "name", "started", "seconds", "status", "by", "commit", "data", "figures", "reason")


def print_runs(runs: Sequence[Mapping[str, Any]]) -> None:
    """The list."""
    if not on_terminal():
        click.echo("\t".join(_HEADER))
        for run in runs:
            click.echo("\t".join(_fields(run)))
            for stage in run.get("stages", ()):
                click.echo("\t".join(_fields(stage, under=run["run"])))
        return
    console = _console()
    console.print(_list(runs, narrow=console.width < _NARROW))


def print_details(told: Mapping[str, Any]) -> None:
    """Everything of a run."""
    if not on_terminal():
        for name, value in _lines(told):
            click.echo(f"{name}\t{value}")
        return
    console = _console()
    for part in (_head(told), *_sections(told)):
        console.print(part)
    print_links(told["links"])


def print_links(found: Mapping[str, str]) -> None:
    """Addresses, whole: a line each."""
    widest = max(map(len, found))
    for name, address in found.items():
        click.echo(f"{name:<{widest}}  {address}" if on_terminal() else f"{name}\t{address}")


def on_terminal() -> bool:
    """Whether a person reads along."""
    return sys.stdout.isatty()


def took(seconds: float) -> str:
    """ "48 s", "4 min", "1 h 12"."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02}"


def number(value: float) -> str:
    """A figure, to compare."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    console.width = min(console.width, WIDTH)
    return console


def _table(*columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def _text(value: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(value, style=style, overflow="fold")


def _moment(milliseconds: int, form: str = "%m-%d %H:%M") -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000):{form}}"


def _commit(run: Mapping[str, Any]) -> str:
    return f"{run['commit'][:_COMMIT]}{'*' if run['dirty'] else ''}" if run["commit"] else "-"


def _list(runs: Sequence[Mapping[str, Any]], *, narrow: bool) -> "Table":
    table = _table()
    names = ["Run", "Name and figures", "Started", "Took", "Status", *([] if narrow else ["By", "Commit", "Data"])]
    for name in names:
        table.add_column(name, no_wrap=name not in ("Name and figures",), ratio=1 if name[:4] == "Name" else None)
    for run in runs:
        cell = _text(run["name"], "bold")
        if run["reason"]:
            cell.append(f"\n{run['reason']}", "red")
        for line in _figure_lines(run["figures"]):
            cell.append(f"\n{line}", "dim")
        more = (run["started_by"].upper() or "-", _commit(run), run["data"][:_DIGEST] or "-")
        cells = (run["run"][:_ID], cell, _moment(run["started"]), took(run["seconds"]), _status(run["status"]), *more)
        table.add_row(*cells[: len(names)])
        for stage in run.get("stages", ()):
            cell = _text(f"  {stage['name']}")
            if stage["reason"]:
                cell.append(f"\n  {stage['reason']}", "red")
            times = (_moment(stage["started"]), took(stage["seconds"]), _status(stage["status"]))
            table.add_row(f"  {stage['run'][: _ID - 2]}", cell, *times)
    if any(run["dirty"] for run in runs):
        table.caption, table.caption_justify = "* with changes that are not in the commit", "left"
    return table


def _status(status: str) -> "Text":
    return _text(status.lower(), _COLORS.get(status, ""))


def _figure_lines(figures: Mapping[str, float]) -> list[str]:
    """ "region/test: mAcc 0.601, top1 0.553"; a line a protocol and data set, of a few figures."""
    groups: dict[str, list[str]] = {}
    for name, value in list(figures.items())[:_FIGURES]:
        group, _, figure = name.rpartition("/")
        groups.setdefault(group, []).append(f"{figure} {number(value)}")
    left = len(figures) - _FIGURES
    lines = [f"{group}: {', '.join(told)}" if group else ", ".join(told) for group, told in groups.items()]
    return [*lines, f"and {left} more"] if left > 0 else lines


def _fields(run: Mapping[str, Any], *, under: str = "") -> list[str]:
    """A run in the order of `_HEADER`; of a stage the run that it belongs to stands before its own."""
    figures = ", ".join(f"{name}={value:.6g}" for name, value in run.get("figures", {}).items())
    return [
        f"{under}/{run['run']}" if under else run["run"],
        run["name"],
        _moment(run["started"], "%Y-%m-%d %H:%M:%S"),
        str(run["seconds"]),
        run["status"],
        run.get("started_by", ""),
        f"{run['commit']}{'*' if run['dirty'] else ''}" if run.get("commit") else "",
        run.get("data", ""),
        figures,
        run["reason"],
    ]


def _head(told: Mapping[str, Any]) -> "Text":
    text = _text(told["name"], "bold")
    text.append(f" ({told['run']}), experiment {told['experiment']}\n", "not bold")
    text.append(told["status"].lower(), _COLORS.get(told["status"], ""))
    text.append(f", {took(told['seconds'])}, started {_moment(told['started'], '%Y-%m-%d %H:%M')}", "not bold")
    text.append(f" by {told['started_by'].upper()}" if told["started_by"] else "", "not bold")
    text.append(f", commit {_commit(told)}" if told["commit"] else ", commit not recorded", "not bold")
    text.append(" (* with changes that are not in it)" if told["dirty"] else "", "not bold")
    for line in (told["reason"], told["message"]):
        text.append(f"\n{line}" if line else "", "red" if line == told["reason"] else "not bold")
    return text


def _sections(told: Mapping[str, Any]) -> Iterator[Any]:
    """A title and a table for all that there is."""
    if told["stages"]:
        yield _text("Stages", "bold")
        table = _table("Run", "Stage", "Started", "Took", "Status")
        for stage in told["stages"]:
            cell = _text(stage["name"])
            cell.append(f"\n{stage['reason']}" if stage["reason"] else "", "red")
            row = (stage["run"][:_ID], cell, _moment(stage["started"]), took(stage["seconds"]))
            table.add_row(*row, _status(stage["status"]))
        yield table
    if told["settings"]:
        yield _text(f"Settings that differ from {told['settings_differ_from']}", "bold")
        table = _table("", "Here", "There")
        for name, pair in told["settings"].items():
            usual = "(no such setting)" if pair["usual"] is None else pair["usual"]
            table.add_row(_text(name), _text(pair["value"]), _text(usual, "dim"))
        yield table
    metrics = {name: value for name, value in sorted(told["metrics"].items()) if not _of_a_reader(name)}
    left = len(told["metrics"]) - len(metrics)
    title = "Metrics" + (f" (and {left} of single readers of regions: --json)" if left else "")
    pairs = {
        "Data sets": told["data_sets"],
        title: {name: number(value) for name, value in metrics.items()},
        "Outputs": told["outputs"],
        "Kept in MLflow": {", ".join(told["artifacts"]): ""} if told["artifacts"] else {},
    }
    for title, values in pairs.items():
        if values:
            yield _text(title, "bold")
            table = _table("", "")
            table.show_header = False
            for name, value in values.items():
                table.add_row(_text(name), _text(value))
            yield table
    yield _text("Links", "bold")


def _of_a_reader(name: str) -> bool:
    """Whether a metric is of one way to read regions; the best one's stands without a name of it, too."""
    return name.startswith("eval/") and name.count("/") == _READER_SLASHES


def _lines(told: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names and values of everything, nested ones with the name of their section before."""
    lines: list[tuple[str, Any]] = []
    for name, value in told.items():
        if name == "stages":
            lines += [("stage", "\t".join([*_fields(stage)[:5], stage["reason"]])) for stage in value]
        elif name == "settings":
            lines += [(f"settings/{key}", f"{pair['value']}\t{pair['usual']}") for key, pair in value.items()]
        elif isinstance(value, Mapping):
            lines += [(f"{name}/{key}", item) for key, item in value.items()]
        elif isinstance(value, list):
            lines += [(name, item) for item in value]
        else:
            lines.append((name, value))
    return lines
