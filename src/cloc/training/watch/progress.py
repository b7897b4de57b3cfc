"""What a person sees of a training: a line of text now and then, which a terminal shows as a bar.

    cloc step 150/1400, image 1.204, region 1.337, grounding 0.0412, lr 9.8e-04, 151 images/s, 41 s left

The first rank prints the line at every record. It reaches the launcher through files and pipes, and pods' logs: only
the launcher knows of a terminal. There it draws a bar out of the lines (`Screen`), and asks the rank through a variable
(`BAR`) for a line twice a second, with the losses of the last record. Everywhere else the lines stand as they are.
"""

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

BAR = "CLOC_PROGRESS"
"""Variable that asks the first rank for more lines when it is "bar"."""
_BAR_SECONDS = 0.5
_SPEED_LINES = 10
_SHOWN = {
    "loss/answers": ("loss", ".3f"),
    "loss/image": ("image", ".3f"),
    "loss/region": ("region", ".3f"),
    "loss/grounding": ("grounding", ".4f"),
}
_LINE = re.compile(r"^(?:\[rank 0\] )?(\w+) step (\d+)/(\d+), (.*), (\S+ s left)$")


def line(objective: str, step: int, steps: int, *, values: Mapping[str, float], speed: float, left: float) -> str:
    """A line of progress.

    Args:
        objective: what it begins with.
        step, steps: done, and in all.
        values: by the names of metrics; those that a person wants are shown.
        speed: images a second.
        left: seconds.
    """
    parts = [f"{name} {values[key]:{form}}" for key, (name, form) in _SHOWN.items() if values.get(key)]
    parts += [f"{key.removeprefix('eval/')} {value:.3f}" for key, value in values.items() if key.startswith("eval/")]
    if "train/learning_rate" in values:
        parts.append(f"lr {values['train/learning_rate']:.1e}")
    return f"{objective} step {step}/{steps}, {', '.join(parts)}, {speed:.0f} images/s, {left:.0f} s left"


class Reporter:
    """The first rank's side: prints the lines.

    Args:
        objective: what they begin with.
        start, steps: steps done at the start, and in all.
        batch_size: images a step.
    """

    def __init__(self, objective: str, *, start: int, steps: int, batch_size: int) -> None:
        self._objective, self._steps, self._batch_size = objective, steps, batch_size
        self._values: Mapping[str, float] = {}
        # Steps and their times: the speed is that of the last lines.
        self._said = deque([(start, time.monotonic())], maxlen=_SPEED_LINES + 1)
        self._often = os.environ.get(BAR) == "bar"

    def step(self, step: int) -> None:
        """Tells that a step is done."""
        if self._often and self._values and time.monotonic() - self._said[-1][1] >= _BAR_SECONDS:
            self._say(step)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Tells what was recorded of a step."""
        self._values = values
        self._say(step)

    def _say(self, step: int) -> None:
        self._said.append((step, time.monotonic()))
        (first, began), (_, now) = self._said[0], self._said[-1]
        each = max(now - began, 1e-9) / max(1, step - first)
        text = line(
            self._objective,
            step,
            self._steps,
            values=self._values,
            speed=self._batch_size / each,
            left=each * (self._steps - step),
        )
        print(text, flush=True)


@dataclass(frozen=True)
class _Seen:
    """What a line of progress says."""

    objective: str
    step: int
    steps: int
    text: str
    left: str


def _parsed(text: str) -> _Seen | None:
    found = _LINE.match(text)
    if found is None:
        return None
    objective, step, steps, said, left = found.groups()
    return _Seen(objective, int(step), int(steps), said, left)


class Screen:
    """The launcher's side, a context: shows lines, and on a terminal those of progress as a bar below the others.

    Processes that are started inside inherit the wish for a bar; ranks elsewhere do not, and the bar has their lines.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None
        self._draws, self._before = sys.stdout.isatty(), os.environ.get(BAR)

    def __enter__(self) -> "Screen":
        if self._draws:
            os.environ[BAR] = "bar"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
        if self._draws and self._before is None:
            del os.environ[BAR]

    def show(self, text: str, *, is_error: bool = False) -> None:
        """Takes a line without its end, of stdout or of stderr."""
        with self._lock:
            seen = _parsed(text) if self._draws and not is_error else None
            if seen is None:
                print(text, file=sys.stderr if is_error else sys.stdout, flush=True)
            else:
                self._draw(seen)

    def _draw(self, seen: _Seen) -> None:
        if self._bar is None:
            self._bar = _bar()
            self._task = self._bar.add_task(seen.objective, total=seen.steps, said="", left="")
            self._bar.start()
        self._bar.update(self._task, completed=seen.step, total=seen.steps, said=seen.text, left=seen.left)


def _bar() -> Any:
    from rich.console import RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
    from rich.text import Text

    class TwoLines(Progress):
        """The bar, and below it what its line says: side by side they need a wide terminal."""

        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                yield Text(task.fields["said"], style="cyan", no_wrap=True, overflow="ellipsis")

    # What else is printed meanwhile goes above the bar: rich takes stdout over while it is there, and stderr where that
    # is the terminal, too.
    return TwoLines(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", style="green"),
        redirect_stderr=sys.stderr.isatty(),
        refresh_per_second=4,
        expand=True,
    )
