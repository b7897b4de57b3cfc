"""A rank's process, whatever it trains: from its start by the agent to its exit code."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeVar

from cloc.config import Config, parse
from cloc.training.distributed import Rank, leave, process_group
from cloc.training.failures import Section, report
from cloc.training.preemption import PREEMPTED, Preempted, Preemption, follow_parent


class Job(Protocol):
    """What is known of a job before it begins."""

    @property
    def config(self) -> dict[str, Any]:
        """All settings."""
        ...


J = TypeVar("J", bound=Job)


def run_rank(
    load: Callable[[str], J], train: Callable[[J, Config, Rank, Preemption], object], *, section: Section
) -> NoReturn:
    """Does the job in the output that the command line names, and leaves.

    Args:
        load: reads the job.
        train: does this rank's part of it.
        section: of the settings, that says what is trained and on which device.
    """
    preemption, config = Preemption(), None
    preemption.listen()
    # Ranks that an agent left behind would train beside those of the next attempt.
    follow_parent(lambda: leave(1))
    try:
        job = load(sys.argv[1])
        config = parse(job.config, source="training job")
        device, patience = getattr(config, section).device, config.train.timeout_seconds
        with process_group(device, timeout_seconds=patience, section=section) as rank:
            train(job, config, rank, preemption)
    except Preempted:
        leave(PREEMPTED)
    except BaseException as error:
        leave(report(error, config, section=section, stopping=lambda: preemption.asked))
    leave(0)
