"""What the ranks of a machine say, and how they ended: their lines with a prefix, and one verdict with one last line.

Pure: no torch, so that every case is tested without a process.
"""

import io
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from cloc.errors import ClocError, ConfigError, DataError, GateFailed, TrainingError
from cloc.training.preemption import PREEMPTED

ERROR = "error: "
"""How a line begins that tells the user what went wrong."""
FAILURES: dict[int, type[ClocError]] = {kind.exit_code: kind for kind in (ConfigError, DataError, GateFailed)}
FAILURES[TrainingError.exit_code] = TrainingError
"""Exit codes of ranks whose reason is a `ClocError`: the same would happen again."""
CRASHED = "crashed with exit code"
"""Part of the line of a rank that left no reason."""
_WEAK = (CRASHED, "rank lost: ", " did not find the others at ")  # consequences, as a rule


@dataclass(frozen=True)
class Ended:
    """How a rank ended.

    Attributes:
        rank: among all.
        code: exit code; below zero the signal that killed it.
        by_agent: whether the agent ended it because another one had failed.
    """

    rank: int
    code: int
    by_agent: bool = False


@dataclass(frozen=True)
class Verdict:
    """Exit code of the agent, and its last line (empty where all is well or the ranks were told to stop)."""

    code: int
    line: str = ""


@dataclass
class Errors:
    """The reasons that ranks gave, each once, in the order of their coming."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Notes a reason."""
        if line not in self.lines:
            self.lines.append(line)

    @property
    def best(self) -> str:
        """The reason that explains most: the first that is no consequence of another's; empty when there is none."""
        strong = (line for line in self.lines if not any(weak in line for weak in _WEAK))
        return next(strong, self.lines[0] if self.lines else "")


def verdict(ended: Sequence[Ended], *, errors: Errors, host: str, told: bool, grace: int) -> Verdict:
    """What the ends of a machine's ranks mean.

    Args:
        ended: all its ranks.
        errors: what they gave for reasons.
        host: name of the machine.
        told: whether the agent was told to stop, and told its ranks.
        grace: seconds that they had then.

    Returns:
        0 where all ended well; 75 where they saved because they were told to; the code of a rank's `ClocError`; else 1.
    """
    failed = [item for item in ended if item.code]
    if not failed:
        return Verdict(0)
    if told and (late := [item for item in failed if item.code == -signal.SIGKILL]):
        return Verdict(PREEMPTED, f"{_ranks(late)} on {host} did not save within {grace} seconds and lost the steps "
                                  "since the last checkpoint")  # fmt: skip
    if not told and (lost := [item for item in failed if item.code < 0 and not item.by_agent]):
        return Verdict(1, _lost(lost, host))
    for item in failed:
        if item.code in FAILURES:
            return Verdict(item.code, errors.best or f"rank {item.rank} on {host} ended with exit code {item.code}")
    # SIGTERM ends a rank that does not listen yet: it has nothing to save.
    if any(item.code == PREEMPTED for item in failed) or (told and all(item.code < 0 for item in failed)):
        return Verdict(PREEMPTED)
    crashed = next((item for item in failed if not item.by_agent), failed[0])
    return Verdict(
        1, errors.best or f"rank {crashed.rank} on {host} {CRASHED} {crashed.code}; its traceback stands above"
    )


def _ranks(items: Sequence[Ended]) -> str:
    numbers = ", ".join(str(item.rank) for item in items[:8])
    return f"rank{'s' if len(items) > 1 else ''} {numbers}{', ...' if len(items) > 8 else ''}"


# What a signal usually means, and what to do then.
_SIGNALS: dict[int, tuple[str, str]] = {
    signal.SIGKILL: (
        " (out of memory?)",
        "; where memory was short, lower train.micro_batch, train.workers or train.shuffle_buffer first",
    ),
    signal.SIGBUS: (" (/dev/shm full?)", "; make /dev/shm larger, or lower train.workers, first"),
    signal.SIGABRT: (" (NCCL waited in vain?)", "; its own last lines say what it waited for"),
}


def _lost(lost: Sequence[Ended], host: str) -> str:
    number = -lost[0].code
    name = signal.Signals(number).name if number in {item.value for item in signal.Signals} else f"signal {number}"
    guess, remedy = _SIGNALS.get(number, ("", ""))
    were = "were" if len(lost) > 1 else "was"
    return (
        f"{_ranks(lost)} on {host} {were} killed by {name}{guess}: run the same command again, it goes on from its "
        f"last checkpoint{remedy}"
    )


class Printer:
    """Passes lines on whole, from several threads; reasons are kept back for the end."""

    def __init__(self, errors: Errors) -> None:
        self._errors, self._lock = errors, threading.Lock()

    def line(self, text: str, *, prefix: str, stream: TextIO) -> None:
        """Takes a line without its end."""
        with self._lock:
            if text.startswith(ERROR):
                self._errors.add(text.removeprefix(ERROR))
            elif text:
                print(f"{prefix}{text}", file=stream, flush=True)


class RankStream(io.TextIOBase):
    """Where the text of one rank's stream goes; it comes in pieces, which need not be lines."""

    def __init__(self, printer: Printer, *, prefix: str, is_error: bool) -> None:
        self._printer, self._prefix, self._rest = printer, prefix, ""
        self._stream = sys.stderr if is_error else sys.stdout

    def write(self, text: str) -> int:
        """Passes on the lines that are complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        self._pass(lines)
        return len(text)

    def finish(self) -> None:
        """Passes on what was no whole line."""
        self._pass([self._rest])
        self._rest = ""

    def _pass(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._printer.line(line.rstrip("\r"), prefix=self._prefix, stream=self._stream)
