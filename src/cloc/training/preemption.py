"""Being told to stop: the step is ended, a checkpoint written, and the process left with its own code.

SIGTERM is how schedulers preempt; Ctrl-C (SIGINT) reaches every process of a terminal and means the same.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from cloc.errors import TrainingError

PREEMPTED = 75
"""Exit code of a rank that saved and left because it was told to (EX_TEMPFAIL: try again later)."""


_FOLLOW_SECONDS = 0.5


class Stopped(TrainingError):  # noqa: N818 (an order, not a fault)
    """A job was told to stop and did; the same command goes on from its last checkpoint."""

    exit_code = PREEMPTED


class Preempted(Exception):  # noqa: N818 (an order, not a fault)
    """Training was told to stop and has saved."""


class Preemption:
    """Notes SIGTERM and SIGINT; training looks at it between steps.

    Attributes:
        asked: whether this process was told to stop.
    """

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Takes the signals over, for the rest of the process."""
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def follow_parent(act: Callable[[], object]) -> None:
    """Has `act` called once the process that started this one is gone: else it would train on, alone and unheard."""
    parent = os.getppid()

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(_FOLLOW_SECONDS)
        act()

    threading.Thread(target=follow, daemon=True, name="follow-parent").start()
