"""TorchX's scheduler for this machine, but with time to save and with exit codes."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import psutil
from torchx.schedulers.api import DescribeAppResponse
from torchx.schedulers.local_scheduler import CWDImageProvider, LocalScheduler

_POLL_SECONDS = 0.1


class PatientLocalScheduler(LocalScheduler):
    """`local_cwd`. TorchX's own kills what it cancels after ten seconds, in the middle of a checkpoint.

    Args:
        grace: seconds that a cancelled job has to save.
        hurry: asked while it waits; True ends the waiting.
    """

    def __init__(self, session_name: str, *, grace: float, hurry: Callable[[], bool]) -> None:
        super().__init__(session_name, image_provider_class=CWDImageProvider)
        self._grace, self._hurry = grace, hurry
        self._processes: list[subprocess.Popen[bytes]] = []

    def run_local_job(self, *arguments: Any, **named: Any) -> "subprocess.Popen[bytes]":
        """Starts a replica, and keeps it."""
        process: subprocess.Popen[bytes] = super().run_local_job(*arguments, **named)
        self._processes.append(process)
        return process

    @property
    def exit_code(self) -> int | None:
        """Exit code of the replica that was started last (below zero: a signal); None while it runs."""
        return self._processes[-1].poll() if self._processes else None

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """A job's state; also where its folder takes no more files: TorchX leaves a note there at the end."""
        try:
            return super().describe(app_id)
        except OSError:
            return DescribeAppResponse(app_id=app_id, state=self._apps[app_id].state)

    def _cancel_existing(self, app_id: str) -> None:
        self.leave()
        super()._cancel_existing(app_id)

    def close(self) -> None:
        """Ends what still runs; after an exception, say."""
        self.leave()
        super().close()

    def leave(self) -> None:
        """Has the agents tell their ranks to save, and waits for them."""
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            os.kill(process.pid, signal.SIGTERM)
        end = time.monotonic() + self._grace
        while any(process.poll() is None for process in running):
            if time.monotonic() > end or self._hurry():
                _kill(running)
            time.sleep(_POLL_SECONDS)


def _kill(processes: "list[subprocess.Popen[bytes]]") -> None:
    """Kills agents with all that they started: ranks are in sessions of their own."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent = psutil.Process(process.pid)
            for item in [agent, *agent.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    item.kill()
