"""Draws the compiled pipeline as SVG: tasks from top to bottom, without the edges that follow from others.

python -m pipelines.graph --out docs/images/pipeline.svg
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PipelineTaskSpec

from pipelines.cloc_pipeline import cloc_pipeline

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "pipeline.svg"
_WIDTH, _HEIGHT, _GAP, _MARGIN = 310, 34, 30, 20
_GATES = ("validation", "registration")
_STYLE = """
text { font: 14px sans-serif; fill: #1c2430; text-anchor: middle; dominant-baseline: central; }
path { fill: none; stroke: #7d8794; stroke-width: 1.3; }
.task rect { fill: #eef3fb; stroke: #3d6fb4; }
.gate rect { fill: #fdf1dd; stroke: #c07a12; }
.loop rect { fill: #f3eefb; stroke: #7a4fb4; stroke-dasharray: 5 3; }
.exit rect { fill: #eef7ee; stroke: #3b8a3b; }
@media (prefers-color-scheme: dark) {
  svg { background: #14181d; }
  text { fill: #e8ecf2; }
  path { stroke: #8b95a3; }
  .task rect { fill: #1d2b40; }
  .gate rect { fill: #40310f; }
  .loop rect { fill: #2c2140; }
  .exit rect { fill: #1c3320; }
}
"""


def draw(spec: PipelineSpec) -> str:
    """The SVG of a pipeline whose tasks stand in an exit handler."""
    (handled,) = (part for name, part in spec.components.items() if name.startswith("comp-exit-handler"))
    (last,) = (task for name, task in spec.root.dag.tasks.items() if not name.startswith("exit-handler"))
    tasks = dict(sorted(handled.dag.tasks.items()))
    before = {name: set(task.dependent_tasks) for name, task in tasks.items()}
    rows = _rows(before)
    width = max(len(row) for row in rows) * (_WIDTH + _GAP) - _GAP
    places = {
        name: ((width - len(row) * (_WIDTH + _GAP) + _GAP) / 2 + column * (_WIDTH + _GAP), _top(depth))
        for depth, row in enumerate(rows)
        for column, name in enumerate(row)
    }
    view = f"{-_MARGIN} {-_MARGIN} {width + 2 * _MARGIN} {_top(len(rows)) + _HEIGHT + 2 * _MARGIN}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" role="img">',
            "<title>The tasks of the pipeline</title>",
            f"<style>{_STYLE}</style>",
            *(_edge(places[first], places[second]) for first, second in _edges(before)),
            *(_box(places[name], task.task_info.name, kind=_kind(task)) for name, task in tasks.items()),
            _box(((width - _WIDTH) / 2, _top(len(rows))), f"{last.task_info.name}, whatever happened", kind="exit"),
            "</svg>\n",
        ]
    )


def _rows(before: Mapping[str, set[str]]) -> list[list[str]]:
    """The tasks by depth, the length of the longest way to each; on the right those whose edges pass by other rows."""
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = max((depth(item) + 1 for item in before[name]), default=0)
        return depths[name]

    rows: list[list[str]] = [[] for _ in range(max(map(depth, before)) + 1)]
    for name in before:
        rows[depths[name]].append(name)
    reach = {first: depths[second] - depths[first] for first, second in _edges(before)}
    return [sorted(row, key=lambda name: reach.get(name, 0)) for row in rows]


def _edges(before: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """The edges, but for those that a longer way makes needless."""

    def reaches(name: str) -> set[str]:
        return before[name].union(*map(reaches, before[name]))

    for name, direct in before.items():
        indirect = set[str]().union(*map(reaches, direct))
        yield from ((item, name) for item in sorted(direct - indirect))


def _kind(task: PipelineTaskSpec) -> str:
    if task.WhichOneof("iterator"):
        return "loop"
    return "gate" if task.component_ref.name.removeprefix("comp-") in _GATES else "task"


def _top(depth: int) -> float:
    return depth * (_HEIGHT + _GAP)


def _edge(start: Sequence[float], end: Sequence[float]) -> str:
    x1, y1, x2, y2 = start[0] + _WIDTH / 2, start[1] + _HEIGHT, end[0] + _WIDTH / 2, end[1]
    middle = y2 - _GAP / 2
    return f'<path d="M{x1:g} {y1:g} V{middle:g} H{x2:g} V{y2:g}"/>'


def _box(place: Sequence[float], title: str, *, kind: str) -> str:
    x, y = place
    return (
        f'<g class="{kind}"><rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<text x="{x + _WIDTH / 2:g}" y="{y + _HEIGHT / 2:g}">{escape(title)}</text></g>'
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Draw the pipeline.")
    parser.add_argument("--out", default=str(PICTURE), help="file to write (%(default)s)")
    given = parser.parse_args()
    Path(given.out).write_text(draw(cloc_pipeline.pipeline_spec))
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
