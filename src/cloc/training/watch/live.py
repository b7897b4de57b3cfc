"""Metrics to MLflow while training goes on."""

import os
import sys
import threading
import time

from cloc import tracking

_MOST_INTERVALS = 16


def live_run() -> "LiveRun | None":
    """The run of the stage that started this process (`tracking.live_environment`); None where there is none."""
    run_id, uri = os.environ.get(tracking.STAGE_RUN), os.environ.get(tracking.STAGE_URI)
    return LiveRun(run_id, uri) if run_id and uri else None


class LiveRun:
    """Sends rows of metrics to a run from a thread, which also imports mlflow: who logs never waits.

    A store that does not answer costs one line on stderr; the rows are kept and sent when it answers again. What is
    left at the end the stage logs (`tracking.Run.log_result`).

    Args:
        run_id: of a run that exists.
        uri: of its store or server.
        interval: seconds between batches; after failures up to 16 times as many.
    """

    def __init__(self, run_id: str, uri: str, *, interval: float = 5.0) -> None:
        self._run_id, self._uri, self._interval = run_id, uri, interval
        self._rows, self._failures = list[tracking.Row](), 0
        self._run: tracking.Run | None = None
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
        self._rows.append(row)

    def close(self, *, patience: float) -> None:
        """Sends what is left, for at most that many seconds; at once where there was no connection yet."""
        self._over.set()
        if self._run is None:
            return
        self._thread.join(patience)
        if self._rows:
            print(
                f"MLflow at {self._uri} did not take the last {len(self._rows)} rows of metrics; the end of the stage "
                "logs them",
                file=sys.stderr,
                flush=True,
            )

    def _work(self) -> None:
        # Trying again is done here, and seen: not for minutes inside a request.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self._try()
        over = False
        while not over:
            over = self._over.wait(self._interval * min(2**self._failures, _MOST_INTERVALS))
            self._try()
        with self._lock:
            self._ended = time.thread_time()

    def _try(self) -> None:
        try:
            self._run = self._run or tracking.attach(self._run_id, self._uri)
            for batch in tracking.row_batches(list(self._rows)):
                self._run.log_rows(batch)
                del self._rows[: len(batch)]
        except Exception as error:
            # Whatever is wrong with MLflow: training goes on, and this line says it.
            self._failures += 1
            if self._failures == 1:
                self._say(f"takes no metrics ({_reason(error)}); they are kept and sent when it does")
            return
        if self._failures:
            self._say("takes metrics again")
        self._failures = 0

    def _say(self, text: str) -> None:
        print(f"MLflow at {self._uri} {text}", file=sys.stderr, flush=True)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
