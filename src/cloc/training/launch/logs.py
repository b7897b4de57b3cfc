"""What the replicas of a job say, passed on as it comes; but reasons of failures are kept for the end."""

import threading
import time
from collections.abc import Iterable, Iterator

from kubernetes.client import ApiException
from torchx import specs
from torchx.runner import Runner
from torchx.schedulers.api import Stream
from urllib3.exceptions import HTTPError

from cloc.training.launch.app import ROLE
from cloc.training.ranks import ERROR, Errors
from cloc.training.watch.progress import Screen

_AGAIN_SECONDS = 2.0
_END_SECONDS = 30.0


class Follower:
    """Follows every stream of every replica of an application, in threads.

    Args:
        runner, handle: the application.
        app: what was started.
        scheduler: by whom.
        screen: where the lines are shown.
    """

    def __init__(self, runner: Runner, handle: str, app: specs.AppDef, *, scheduler: str, screen: Screen) -> None:
        self._screen = screen
        self._runner, self._handle, self.errors = runner, handle, Errors()
        self._over, self._lock = threading.Event(), threading.Lock()
        # Kubernetes has one stream for both.
        streams = [(None, False)] if scheduler == "kubernetes" else _BOTH
        follow = self._pods_lines if scheduler == "kubernetes" else self._lines
        self._threads = [
            threading.Thread(target=self._follow, args=(follow(replica, kind), is_error), daemon=True)
            for replica in range(app.roles[0].num_replicas)
            for kind, is_error in streams
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Waits for the last lines; the application has ended."""
        self._over.set()
        end = time.monotonic() + _END_SECONDS
        for thread in self._threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))

    def _follow(self, lines: Iterable[str], is_error: bool) -> None:
        for line in lines:
            with self._lock:
                if line.startswith(ERROR):
                    self.errors.add(line.removeprefix(ERROR))
                elif line:
                    self._screen.show(line, is_error=is_error)

    def _lines(self, replica: int, kind: Stream | None) -> Iterator[str]:
        try:
            yield from whole_lines(self._runner.log_lines(self._handle, ROLE, replica, should_tail=True, streams=kind))
        except RuntimeError:  # TorchX's: the job ended before there was a file
            yield f"replica {replica} has left no log of its {kind.name.lower() if kind else 'output'}"

    def _pods_lines(self, replica: int, kind: Stream | None) -> Iterator[str]:
        """Lines of a pod, and of those that take its place; a connection that ends is made again."""
        newest = ""
        while True:
            last_time = self._over.is_set()
            try:
                for line in whole_lines(
                    self._runner.log_lines(self._handle, ROLE, replica, should_tail=not last_time, streams=kind)
                ):
                    stamp, _, text = line.partition(" ")
                    if stamp[:1].isdigit() and stamp > newest:  # another container's lines begin with its name
                        newest = stamp
                        yield text
            except (ApiException, HTTPError, KeyError, specs.UnknownAppException):
                pass  # no phase or pod yet, or none any more, or the connection broke: the job's status tells which
            if last_time:
                return
            self._over.wait(_AGAIN_SECONDS)


_BOTH = [(Stream.STDOUT, False), (Stream.STDERR, True)]


def whole_lines(pieces: Iterable[str]) -> Iterator[str]:
    """Lines, without their ends, of text that comes in pieces of any length."""
    rest = ""
    for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        yield from lines
    if rest:
        yield rest
