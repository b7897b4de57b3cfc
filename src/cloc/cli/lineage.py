"""`cloc lineage`: what a model goes back to."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from cloc.cli.options import settings_options, tracking_settings
from cloc.errors import DataError

if TYPE_CHECKING:
    from rich.tree import Tree

    from cloc.tracking.lineage_nodes import Node

_WIDTH = 100
_SETTINGS = 5  # shown of a node on a terminal
_MARKS = {"same": ("✓", "green"), "differs": ("✗ differs:", "red"), "gone": ("? no longer there:", "yellow")}


@click.command()
@click.argument("model")
@click.option("--check", is_flag=True, help="Hold what is still there against the recorded hashes; reads all of it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options
def lineage(model: str, check: bool, as_json: bool, **settings: Any) -> None:
    """Walk back from a model: version, evaluation, training, code, data, labels, captioner and detector, pipeline.

    A MODEL is models:/NAME@ALIAS, models:/NAME/VERSION, a model's folder, or a run (its id, the start of it, its name,
    or `latest`). Each line says where it was read; what nobody recorded is "not recorded". With --check the exit code
    is 3 where something differs from what was recorded.

    \b
    cloc lineage models:/cloc@champion
    cloc lineage work/models/cloc --check
    """
    config = tracking_settings(**settings)

    from cloc.tracking.lineage import walk  # heavy: not for --help

    root = walk(model, config, check=check)
    if as_json:
        click.echo(json.dumps(root.to_json(), indent=1))
    elif sys.stdout.isatty():
        _show(root)
    else:
        for line in _plain(root):
            click.echo(line)
    differing = [item for node in root.everything() for item in node.checks if item.verdict == "differs"]
    if differing:
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise DataError(f"{differing[0].what}{more}: not what was recorded ({differing[0].detail})")


def _show(root: "Node") -> None:
    from rich.console import Console
    from rich.tree import Tree

    console = Console()
    console.width = min(console.width, _WIDTH)
    tree = Tree("", hide_root=True, guide_style="dim")
    _grow(tree, root)
    console.print(tree)


def _grow(tree: "Tree", node: "Node") -> None:
    from rich.text import Text

    text = Text(overflow="fold")
    text.append(f"{node.name}  ", "bold cyan").append(node.told)
    text.append(f"  [{node.source}]" if node.source else "", "dim")
    for name, value in node.facts.items():
        text.append(f"\n{name}: ", "dim").append(str(value))
    shown = list(node.settings.items())[:_SETTINGS]
    left = len(node.settings) - len(shown)
    if shown:
        told = ", ".join(f"{name} {value}" for name, value in shown) + (f" and {left} more (--json)" if left else "")
        text.append(f"\nwith {told}", "dim")
    for check in node.checks:
        mark, color = _MARKS[check.verdict]
        text.append(f"\n{mark} ", color).append(f"{check.what}{f' ({check.detail})' if check.detail else ''}")
    branch = tree.add(text)
    for child in node.children:
        _grow(branch, child)


def _plain(node: "Node", above: str = "") -> Iterator[str]:
    """Lines of fields between tabs: path, what is told, and where it was read; facts and checks by their names."""
    path = f"{above}/{node.name}" if above else node.name
    yield "\t".join((path, node.told, node.source))
    for name, value in {**node.facts, **node.settings}.items():
        yield "\t".join((f"{path}: {name}", str(value), node.source))
    for check in node.checks:
        yield "\t".join((f"{path}: check", f"{check.verdict} {check.what}", check.detail))
    for child in node.children:
        yield from _plain(child, path)
