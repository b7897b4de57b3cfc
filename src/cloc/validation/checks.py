"""What a check is: a rule that rows keep, or a limit of the whole set. Which there are stands in `row_checks` and
`set_checks`, all together in `suites`."""

from dataclasses import dataclass
from typing import Any, Literal

# First: it settles what great_expectations reads when it is imported.
from cloc.validation import expectations  # noqa: F401  # imported for that, and before what follows
from cloc.validation.results import DATA_SET, Level

import great_expectations.expectations as gxe  # isort: skip


@dataclass(frozen=True)
class RowCheck:
    """A rule that each row of a table keeps.

    Attributes:
        id, name, hint, level: see CheckResult.
        expectation: the Great Expectations class's instance that judges it.
        columns: what an example shows of the offending row.
        mostly: least share of rows that must keep it; rows whose value is missing do not count.
    """

    id: str
    name: str
    expectation: Any
    columns: tuple[str, ...]
    mostly: float
    hint: str = ""
    level: Level = "fail"

    @property
    def table(self) -> str:
        """The table that it judges."""
        return self.id.partition("/")[0]


@dataclass(frozen=True)
class SetCheck:
    """A limit on one number of the whole data set (a column of the one-row summary frame).

    Attributes:
        id, name, hint, level: see CheckResult.
        column: the number's name.
        minimum, maximum: the limits, None for none.
        unit: how to print it.
        unknown: what to do where the number is not known, which is then a warning; "" for a number that is only missing
            where there is nothing to judge: the check is left out then.
    """

    id: str
    name: str
    column: str
    minimum: float | None = None
    maximum: float | None = None
    unit: Literal["count", "share", "number"] = "share"
    hint: str = ""
    level: Level = "fail"
    unknown: str = ""

    @property
    def table(self) -> str:
        """What it judges."""
        return DATA_SET

    @property
    def expectation(self) -> Any:
        """The Great Expectations form: the largest value of a one-row column is that row's value."""
        return gxe.ExpectColumnMaxToBeBetween(
            column=self.column,
            min_value=self.minimum,
            max_value=self.maximum,
            description=f"{self.name} ({self.limit})",
            meta={"check": self.id},
        )

    def text(self, value: float) -> str:
        """A value of this number, readable."""
        if self.unit == "share":
            return f"{value:.1%}"
        return f"{value:,.0f}" if self.unit == "count" else f"{value:.2f}"

    @property
    def limit(self) -> str:
        """The limit, readable."""
        parts = []
        if self.minimum is not None:
            parts.append(f"at least {self.text(self.minimum)}")
        if self.maximum is not None:
            parts.append(f"at most {self.text(self.maximum)}")
        return ", ".join(parts)

    def severity(self, value: float) -> float:
        """How far `value` is beyond the limit, relative to it, at most 1."""
        if self.minimum is not None and value < self.minimum:
            return min(1.0, (self.minimum - value) / self.minimum)
        if self.maximum is not None and value > self.maximum:
            return min(1.0, (value - self.maximum) / max(self.maximum, 1e-9))
        return 0.0
