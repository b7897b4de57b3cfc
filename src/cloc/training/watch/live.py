"""Metrics to MLflow while training goes on."""

import os
import sys
import threading
import time

from cloc import tracking

_MOST_INTERVALS = 16


def live_run() -> "LiveRun | None":
    """The run of the stage that started this process; None where there is none."""
    reference, uri = os.environ.get(tracking.STAGE_RUN), os.environ.get(tracking.STAGE_URI)
    return LiveRun(reference, uri) if reference and uri else None


class LiveRun:
    """Sends rows of metrics to a run from a thread, which also imports mlflow: who logs never waits for the store.

    A store that does not answer costs one line on stderr; the rows are kept, on disk too, and sent when it answers
    again. What is left at the end the stage sends (`tracking.Run.log_result`), or whoever delivers what is left behind.

    Args:
        reference: of the run (`tracking.Run.reference`).
        uri: of its store or server.
        interval: seconds between batches; after failures up to 16 times as many.
    """

    def __init__(self, reference: str, uri: str, *, interval: float = 5.0) -> None:
        self._outbox, self._interval, self._failures = tracking.attach(reference, uri), interval, 0
        self._connected = False
        self._lock, self._over = threading.Lock(), threading.Event()
        self._ended: float | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")
        self._thread.start()

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the thread."""
        with self._lock:  # the thread's clock goes with it
            if self._ended is not None or self._thread.ident is None:
                return self._ended or 0.0
            return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def log(self, row: tracking.Row) -> None:
        """Takes a row, which must not change any more."""
        self._outbox.put({"op": "rows", "rows": [row]})

    def close(self, *, patience: float) -> None:
        """Sends what is left, for at most that many seconds; at once where there was no connection yet."""
        self._over.set()
        if self._connected:
            self._thread.join(patience)
            rows, left = self._outbox.rows
            if left:
                there = f"MLflow at {tracking.shown(self._outbox.uri)} has {rows - left:,} of {rows:,} rows of metrics"
                print(f"{there}; the end of the stage sends the rest", file=sys.stderr, flush=True)
        if not self._thread.is_alive():
            self._outbox.close(last_try=False)

    def _work(self) -> None:
        self._try()
        over = False
        while not over:
            over = self._over.wait(self._interval * min(2**self._failures, _MOST_INTERVALS))
            self._try()
        with self._lock:
            self._ended = time.thread_time()

    def _try(self) -> None:
        try:
            self._outbox.send()
        except Exception as error:
            # Whatever is wrong with MLflow: training goes on, and a line says it.
            self._failures += 1
            self._outbox.went_away(error)
            return
        self._connected, self._failures = True, 0
