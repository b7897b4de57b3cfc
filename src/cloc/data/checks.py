"""What a check found, as `cloc storage check` and `cloc doctor` tell it."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    WARNED = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"

    @property
    def mark(self) -> str:
        """A sign for the line of a check."""
        return _MARKS[self]


_MARKS = {Outcome.PASSED: "✓", Outcome.WARNED: "!", Outcome.FAILED: "✗", Outcome.SKIPPED: "-"}


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: e.g. "ranged read".
        outcome: how it ended; skipped when it makes no sense after what failed before.
        seconds: how long it took.
        detail: what was found, or why it failed or was skipped.
    """

    name: str
    outcome: Outcome
    seconds: float = 0.0
    detail: str = ""

    @property
    def line(self) -> str:
        """For people: mark, name, time, detail."""
        time = "" if self.outcome is Outcome.SKIPPED else f"{self.seconds:.3f} s"
        return f"{self.outcome.mark} {self.name:<18} {time:>9}  {self.detail}".rstrip()
