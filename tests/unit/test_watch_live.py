"""Rows that are sent to MLflow by a thread: what happens when it is slow or away."""

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from cloc import tracking
from cloc.training.watch import live
from cloc.training.watch.live import LiveRun, live_run


class FakeRun:
    """A run that takes rows when it may."""

    def __init__(self) -> None:
        self.rows: list[tracking.Row] = []
        self.tries, self.away, self.work = 0, False, 0.0

    def log_rows(self, rows: Sequence[tracking.Row]) -> None:
        self.tries += 1
        end = time.thread_time() + self.work
        while time.thread_time() < end:
            pass
        if self.away:
            raise ConnectionError("connection refused\nand more")
        self.rows += rows


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    fake = FakeRun()
    monkeypatch.setattr(tracking, "attach", lambda run_id, uri: fake)
    # What the thread sets for mlflow goes with the test.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    return fake


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def row(step: int) -> dict[str, float]:
    return {"step": step, "loss/total": 3.0}


def test_rows_are_sent_while_it_runs_and_at_the_end(run: FakeRun) -> None:
    sender = LiveRun("abc", "http://mlflow", interval=0.01)
    sender.log(row(1))
    until(lambda: len(run.rows) == 1)
    sender.log(row(2))
    sender.log(row(3))
    sender.close(patience=30)
    assert [each["step"] for each in run.rows] == [1, 2, 3]


def test_a_server_that_is_away_costs_one_line(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.away = True
    sender = LiveRun("abc", "http://mlflow", interval=0.002)
    sender.log(row(1))
    until(lambda: run.tries >= 3)
    sender.log(row(2))
    run.away = False
    until(lambda: len(run.rows) == 2)
    sender.close(patience=30)
    assert [each["step"] for each in run.rows] == [1, 2]
    assert capsys.readouterr().err.splitlines() == [
        "MLflow at http://mlflow takes no metrics (connection refused); they are kept and sent when it does",
        "MLflow at http://mlflow takes metrics again",
    ]


def test_a_server_that_stays_away_does_not_keep_the_end(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    sender = LiveRun("abc", "http://mlflow", interval=0.002)
    until(lambda: sender._run is not None)
    run.away = True
    sender.log(row(1))
    sender.close(patience=30)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "MLflow at http://mlflow did not take the last 1 rows of metrics; the end of the stage logs them"
    )


def test_an_end_before_there_was_a_connection_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = threading.Event()

    def slow(run_id: str, uri: str) -> FakeRun:
        imported.wait(30)
        return FakeRun()

    monkeypatch.setattr(tracking, "attach", slow)
    sender = LiveRun("abc", "http://mlflow")
    sender.log(row(1))
    sender.close(patience=1000)
    assert not imported.is_set()
    imported.set()


def test_its_processor_time_is_known_while_it_works_and_afterwards(run: FakeRun) -> None:
    run.work = 0.1
    sender = LiveRun("abc", "http://mlflow", interval=0.01)
    sender.log(row(1))
    until(lambda: sender.cpu_seconds > 0.05)
    until(lambda: len(run.rows) == 1)
    sender.close(patience=30)
    assert sender.cpu_seconds >= 0.1


def test_without_a_run_in_the_environment_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    monkeypatch.delenv(tracking.STAGE_RUN, raising=False)
    assert live_run() is None


def test_intervals_grow_up_to_a_limit(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = list[float]()
    run.away = True
    sender = LiveRun("abc", "http://mlflow", interval=1000)
    sender._over.set()
    sender._thread.join(30)
    sender.log(row(1))

    class Over:
        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            return len(waits) == 7

    sender._over = Over()  # type: ignore[assignment] (stands in for the event)
    sender._work()
    assert waits == [2000, 4000, 8000, 16000, 16000, 16000, 16000]
    assert live._MOST_INTERVALS == 16
