"""Great Expectations at work: suites of rows run a few shards at a time and summed; limits on the sums."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cloc.validation.checks import RowCheck, SetCheck  # first: it settles what great_expectations reads on import
from cloc.validation.frames import ROW, SHARD
from cloc.validation.results import DATA_SET, EXAMPLES, CheckResult, Example, Tally, shown

import great_expectations as gx  # isort: skip

# A run of Great Expectations costs about 20 ms an expectation whatever the number of rows, so small shards share one.
_BATCH_ROWS = 50_000
# COMPLETE, without index columns, gives the positions of all offending rows as plain lists: many times faster than
# the formats that look up every row's key, and as large as one batch at most.
_RESULT_FORMAT = {"result_format": "COMPLETE", "partial_unexpected_count": 0, "return_unexpected_index_query": False}


class Suite:
    """Expectations that frames of one kind are held against."""

    def __init__(self, context: Any, *, name: str, expectations: Sequence[Any]) -> None:
        self._suite = gx.ExpectationSuite(name=name, expectations=list(expectations))
        asset = context.data_sources.add_pandas(name).add_dataframe_asset(name)
        self._batches = asset.add_batch_definition_whole_dataframe(name)

    def judge(self, frame: pd.DataFrame) -> list[Any]:
        """Great Expectations' results, one an expectation."""
        batch = self._batches.get_batch(batch_parameters={"dataframe": frame})
        return list(batch.validate(self._suite, result_format=_RESULT_FORMAT).results)


class TableSuite:
    """The row-wise checks of one table, run over a few shards at a time; keeps sums, and at most `_BATCH_ROWS` rows
    and a shard."""

    def __init__(self, context: Any, *, table: str, checks: Sequence[RowCheck]) -> None:
        self._checks = {check.id: check for check in checks}
        self._tallies = {check.id: Tally() for check in checks}
        self._suite = Suite(context, name=table, expectations=[check.expectation for check in checks])
        self._waiting: list[pd.DataFrame] = []

    def add(self, frame: pd.DataFrame, *, shard: str) -> None:
        """Takes a shard's table; checks it once enough rows are waiting."""
        if not frame.empty:
            self._waiting.append(frame.assign(**{SHARD: shard, ROW: range(len(frame))}))
        if sum(map(len, self._waiting)) >= _BATCH_ROWS:
            self._check_waiting()

    def _check_waiting(self) -> None:
        if not self._waiting:
            return
        frame = pd.concat(self._waiting, ignore_index=True)
        self._waiting = []
        for item in self._suite.judge(frame):
            check = self._checks[item.expectation_config.meta["check"]]
            result = _result(item, check=check.id)
            rows = [int(row) for row in result["unexpected_index_list"][:EXAMPLES]]
            self._tallies[check.id].add(
                # The rule that nothing is missing has no count of what is missing.
                elements=int(result["element_count"]) - int(result.get("missing_count", 0)),
                unexpected=int(result["unexpected_count"]),
                examples=[_example(frame.iloc[row], columns=check.columns) for row in rows],
            )

    def tallies(self) -> dict[str, Tally]:
        """The sums over all shards so far, by check."""
        self._check_waiting()
        return self._tallies


class Engine:
    """A Great Expectations context in memory."""

    def __init__(self) -> None:
        # It announces every step; the stage prints its own progress.
        logging.getLogger("great_expectations").setLevel(logging.WARNING)
        self._context = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = {"globally": False}

    def table_suite(self, *, table: str, checks: Sequence[RowCheck]) -> TableSuite:
        """The suite of one table. Call once a table."""
        return TableSuite(self._context, table=table, checks=checks)

    def check_set(self, checks: Sequence[SetCheck], numbers: Mapping[str, float]) -> list[CheckResult]:
        """Checks the numbers of the whole set. A number that is not there is a warning where it is needed; otherwise
        there was nothing to judge, and its check is left out."""
        known = {check.id: check for check in checks if check.column in numbers}
        frame = pd.DataFrame([dict(numbers)])
        results = {check.id: _unknown(check) for check in checks if check.unknown and check.id not in known}
        suite = Suite(self._context, name="data_set", expectations=[check.expectation for check in known.values()])
        for item in suite.judge(frame):
            check = known[item.expectation_config.meta["check"]]
            observed = float(_result(item, check=check.id)["observed_value"])
            results[check.id] = CheckResult(
                id=check.id,
                name=check.name,
                table=DATA_SET,
                observed=check.text(observed),
                limit=check.limit,
                passed=bool(item.success),
                severity=check.severity(observed),
                hint=check.hint,
                level=check.level,
            )
        return [results[check.id] for check in checks if check.id in results]


def verdict(check: RowCheck, tally: Tally) -> CheckResult:
    """What the sums over all shards say of a row-wise check."""
    passed = tally.unexpected <= (1 - check.mostly) * tally.elements + 1e-6
    share = tally.unexpected / max(tally.elements, 1)
    observed = f"{tally.unexpected:,} of {tally.elements:,} rows break it"
    return CheckResult(
        id=check.id,
        name=check.name,
        table=check.table,
        observed=f"{observed} ({_percent(share)})" if tally.unexpected else f"all {tally.elements:,} rows keep it",
        limit=f"at most {_percent(1 - check.mostly)} of rows",
        passed=passed,
        severity=0.0 if passed else share,
        elements=tally.elements,
        unexpected=tally.unexpected,
        examples=tuple(tally.examples),
        hint=check.hint,
        level=check.level,
    )


def _unknown(check: SetCheck) -> CheckResult:
    return CheckResult(
        id=check.id,
        name=check.name,
        table=DATA_SET,
        observed="not known",
        limit=check.limit,
        passed=False,
        severity=0.0,
        hint=check.unknown,
        level="warn",
    )


def _result(item: Any, *, check: str) -> Mapping[str, Any]:
    """The result of one expectation; a rule that could not be evaluated is a defect, not a verdict."""
    info = item.exception_info or {}
    records = [info] if "raised_exception" in info else list(info.values())
    for record in records:
        if record.get("raised_exception"):
            raise RuntimeError(f"check {check} could not be evaluated: {record['exception_message']}")
    result: Mapping[str, Any] = item.result
    return result


def _example(values: pd.Series, *, columns: Sequence[str]) -> Example:
    key = values["key"] if isinstance(values["key"], str) else ""
    parts = [f"{name} {shown(values[name])}" if len(columns) > 1 else shown(values[name]) for name in columns]
    return Example(shard=values[SHARD], key=key, value=", ".join(parts), row=int(values[ROW]))


def _percent(share: float) -> str:
    return f"{share * 100:.3g}%"
