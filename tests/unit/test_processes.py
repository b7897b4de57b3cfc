"""Work spread over processes: results in order, and one clear line where a process dies."""

import os
import time

import pytest

from cloc.data.processes import in_order
from cloc.errors import ClocError, DataError


def double(number: int) -> tuple[int, int]:
    return 2 * number, os.getpid()


def dies_at_two(number: int) -> int:
    if number == 2:
        os._exit(9)
    return number


def refuses_two(number: int) -> int:
    if number == 2:
        raise DataError("shard 2 is broken")
    return number


def spread(work, items, *, processes=2):
    return in_order(work, items, processes=processes, what="stage", setting="data.processes")


def test_results_are_in_the_order_of_items_and_come_from_other_processes() -> None:
    found = list(spread(double, range(9)))
    assert [value for value, _ in found] == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert os.getpid() not in {process for _, process in found}


@pytest.mark.parametrize(("items", "processes"), [((), 2), ((3,), 2), ((3, 4), 1)])
def test_little_work_is_done_here(items, processes) -> None:
    assert list(spread(double, items, processes=processes)) == [(2 * item, os.getpid()) for item in items]


def test_a_process_that_dies_is_one_line() -> None:
    with pytest.raises(ClocError, match=r"^stage: a process died .*set data\.processes lower and run again$"):
        list(spread(dies_at_two, range(6)))


def test_an_error_is_the_callers() -> None:
    found = spread(refuses_two, range(6))
    with pytest.raises(DataError, match="shard 2 is broken"):
        list(found)


@pytest.mark.timeout(120)
def test_an_error_that_is_known_when_work_is_given_out_ends_the_pool() -> None:
    """The last item is given out in the moment before the error of an earlier one is met."""
    found = spread(refuses_two, range(6))
    for expected in (0, 1):
        assert next(found) == expected
        time.sleep(0.5)  # whatever was given out is done
    with pytest.raises(DataError, match="shard 2 is broken"):
        next(found)


def test_what_is_not_asked_for_is_not_waited_for() -> None:
    found = spread(double, range(1000))
    assert next(found)[0] == 0
    found.close()
