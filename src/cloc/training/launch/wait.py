"""Orders that this process gets, and waiting for a job under them."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from kubernetes import client
from torchx import specs
from torchx.runner import Runner
from urllib3.exceptions import HTTPError

from cloc.errors import TrainingError

POLL_SECONDS = {"local_cwd": 0.3, "kubernetes": 5.0, "slurm": 5.0}
# So long a scheduler may be out of reach before the launcher gives up (the job goes on).
_PATIENCE_SECONDS = 900.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
UNREACHABLE = (client.ApiException, HTTPError, subprocess.CalledProcessError, OSError)
"""What asking a scheduler may raise."""


class Orders:
    """What this process was told by signals: to stop, and then to hurry.

    Attributes:
        asked: the signal that came first; None when there was none.
        hurry: whether Ctrl-C came again.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.hurry = False

    def take(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.asked is None:
            self.asked = signal.Signals(number)
        elif number == signal.SIGINT:
            self.hurry = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over; in another thread than the main one Python leaves them to that one."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.listen()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def listen(self) -> None:
        """Takes them, again where somebody else did meanwhile."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self.take)


class Wait:
    """Waits for the end of a job, says how its state changes, and cancels it when this process is told to stop.

    Args:
        runner, handle: the job.
        scheduler: whose it is.
        orders: of this process.
        grace: seconds that the ranks have to save.
        saves: whether a job that the scheduler calls cancelled still has running parts.
    """

    def __init__(
        self,
        runner: Runner,
        handle: str,
        *,
        scheduler: str,
        orders: Orders,
        grace: float,
        saves: Callable[[], bool],
    ) -> None:
        self._runner, self._handle, self._orders, self._grace, self._saves = runner, handle, orders, grace, saves
        self._poll, self._scheduler = POLL_SECONDS[scheduler], scheduler
        self._cancelled: float | None = None
        self._state: specs.AppState | None = None

    def end(self) -> specs.AppStatus | None:
        """The last status; None where the job is unknown (deleted).

        Raises:
            TrainingError: the scheduler cannot be asked.
        """
        answered = time.monotonic()
        while True:
            try:
                status = _status(self._runner, self._handle)
                if status is None or (status.is_terminal() and not self._is_saving()):
                    return status
                self._say(status.state)
                if self._orders.asked is not None and self._cancelled is None:
                    self._cancel()
                answered = time.monotonic()
            except UNREACHABLE as error:
                self._give_up(error, silent=time.monotonic() - answered)
            else:
                if self._orders.hurry or self._over_time():
                    return status
            self._sleep()

    def _cancel(self) -> None:
        assert self._orders.asked is not None
        print(
            f"told to stop by {self._orders.asked.name}: the ranks have {self._grace:.0f} s to save "
            "(Ctrl-C: stop at once)",
            flush=True,
        )
        self._runner.cancel(self._handle)
        self._cancelled = time.monotonic()

    def _over_time(self) -> bool:
        return self._cancelled is not None and time.monotonic() - self._cancelled > self._grace

    def _is_saving(self) -> bool:
        """Kubernetes calls a job aborted at once, and gives its pods time."""
        return self._cancelled is not None and not self._orders.hurry and not self._over_time() and self._saves()

    def _say(self, state: specs.AppState) -> None:
        if state != self._state:
            self._state = state
            print(f"training job is {state.name.lower()}", flush=True)

    def _give_up(self, error: Exception, *, silent: float) -> None:
        told = self._orders.asked is not None
        if not self._orders.hurry and silent < (self._grace if told else _PATIENCE_SECONDS):
            return
        raise TrainingError(
            f"{self._scheduler} has not answered for {silent:.0f} s ({reason_of(error)}); the job {self._handle} goes "
            "on without this command"
        ) from None

    def _sleep(self) -> None:
        """Until the next look, or an order."""
        end = time.monotonic() + self._poll
        while (left := end - time.monotonic()) > 0:
            if self._orders.hurry or (self._orders.asked is not None and self._cancelled is None):
                time.sleep(min(0.1, left))
                return
            time.sleep(min(0.1, left))


def _status(runner: Runner, handle: str) -> specs.AppStatus | None:
    try:
        return runner.status(handle)
    except KeyError:  # TorchX's: a job that Volcano has not looked at has no phase
        return specs.AppStatus(specs.AppState.PENDING)


def reason_of(error: Exception) -> str:
    """An error of a scheduler, short."""
    if isinstance(error, client.ApiException):
        return f"{error.status} {error.reason}".strip()
    return " ".join(str(error).split())[:300]
