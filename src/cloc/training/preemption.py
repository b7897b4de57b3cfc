"""Being told to stop: at SIGTERM the step is ended, a checkpoint written, and the process left with its own code."""

import signal
from types import FrameType

PREEMPTED = 75
"""Exit code of a rank that saved and left because it was told to (EX_TEMPFAIL: try again later)."""


class Preempted(Exception):  # noqa: N818 (an order, not a fault)
    """Training was told to stop and has saved."""


class Preemption:
    """Notes SIGTERM; training looks at it between steps.

    Attributes:
        asked: whether this process was told to stop.
    """

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Takes SIGTERM over, for the rest of the process."""
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
