"""What a check found: counts summed over shards, a few examples, and how bad it is. Plain data, no libraries."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

EXAMPLES = 5
DATA_SET = "data set"

Level = Literal["warn", "fail"]
"""What a check that is not kept means: a warning that is shown, or the end of the pipeline."""


@dataclass(frozen=True)
class Example:
    """One offending row.

    Attributes:
        shard: name of the shard it stands in.
        key: its image's key; "" when it has none.
        value: the offending values, readable, cut to a sane length. Untrusted text.
        row: position in the shard's table.
    """

    shard: str
    key: str
    value: str
    row: int


@dataclass
class Tally:
    """Sums of one row-wise expectation over shards; its size does not depend on theirs."""

    elements: int = 0
    unexpected: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, *, elements: int, unexpected: int, examples: Iterable[Example]) -> None:
        """Adds a shard's counts; keeps the first `EXAMPLES` examples."""
        self.elements += elements
        self.unexpected += unexpected
        self.examples = [*self.examples, *examples][:EXAMPLES]

    def merge(self, other: "Tally") -> None:
        """Adds what was summed over later shards."""
        self.add(elements=other.elements, unexpected=other.unexpected, examples=other.examples)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Tally":
        """The inverse of `dataclasses.asdict`."""
        examples = [Example(**example) for example in body["examples"]]
        return cls(elements=body["elements"], unexpected=body["unexpected"], examples=examples)


@dataclass(frozen=True)
class CheckResult:
    """One line of the report.

    Attributes:
        id: stable name, "<table>/<rule>".
        name: the rule in words.
        table: images, captions, regions or "data set".
        observed, limit: what was found and what is allowed, readable.
        passed: the verdict.
        severity: 0 for a pass, else above 0 up to 1: share of bad rows, or relative distance from the limit.
        elements, unexpected: rows looked at and rows that break the rule (row-wise checks).
        examples: a few of them.
        hint: what a failure usually means.
        level: "fail" for a check that ends the pipeline when it is not kept, "warn" for one that only warns.
    """

    id: str
    name: str
    table: str
    observed: str
    limit: str
    passed: bool
    severity: float
    elements: int = 0
    unexpected: int = 0
    examples: tuple[Example, ...] = ()
    hint: str = ""
    level: Level = "fail"

    @property
    def fatal(self) -> bool:
        """Whether this result ends the pipeline."""
        return not self.passed and self.level == "fail"

    @property
    def warned(self) -> bool:
        """Whether this result is a warning."""
        return not self.passed and self.level == "warn"


def failures_first(results: Iterable[CheckResult]) -> list[CheckResult]:
    """The results: fatal ones first, then warnings, then the rest; worst first, checks of the whole set before rows
    when equal."""
    return sorted(results, key=lambda item: (not item.fatal, item.passed, -item.severity, item.table != DATA_SET))


def printable(text: str) -> str:
    """Text of unknown origin for a terminal: control characters escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown(value: Any, *, limit: int = 160) -> str:
    """A value as one readable string; text in quotes, control characters escaped, cut after `limit` characters."""
    if isinstance(value, str):
        text = printable(value)
        return f'"{text[:limit]}…"' if len(text) > limit else f'"{text}"'
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
