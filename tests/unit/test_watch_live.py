"""Rows that are sent to MLflow by a thread: what happens when it is slow or away."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cloc import tracking
from cloc.tracking import outbox
from cloc.tracking.identity import Identity
from cloc.tracking.troubles import Away
from cloc.training.watch import live
from cloc.training.watch.live import LiveRun, live_run


class FakeTeller:
    """A connection that takes rows when it may."""

    def __init__(self, identity: Identity, uri: str, *, fresh: bool) -> None:
        self.rows: list[dict[str, Any]] = []
        self.tries, self.away, self.work, self.run_id = 0, False, 0.0, identity.run_id
        self.ready = threading.Event()
        self.ready.set()

    def open(self) -> None:
        self.ready.wait(30)

    def tell(self, records: Sequence[dict[str, Any]]) -> None:
        self.tries += 1
        end = time.thread_time() + self.work
        while time.thread_time() < end:
            pass
        if self.away:
            raise Away("connection refused")
        self.rows += [row for record in records for row in record["rows"]]


@pytest.fixture
def teller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTeller:
    fake = FakeTeller(Identity(run_id="abc"), "http://mlflow", fresh=False)
    monkeypatch.setattr(outbox, "Teller", lambda identity, uri, fresh: fake)
    monkeypatch.setenv("CLOC_OUTBOX", str(tmp_path / "outbox"))
    return fake


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def row(step: int) -> dict[str, float]:
    return {"step": step, "loss/total": 3.0}


def kept(folder: Path) -> list[int]:
    """Steps in the journals of an outbox."""
    lines = [json.loads(line) for path in folder.rglob("journal.jsonl") for line in path.read_text().splitlines()]
    return [each["step"] for line in lines for each in line.get("rows", ())]


def test_rows_are_sent_while_it_runs_and_at_the_end(teller: FakeTeller, tmp_path: Path) -> None:
    sender = LiveRun("abc", "http://mlflow", interval=0.01)
    sender.log(row(1))
    until(lambda: len(teller.rows) == 1)
    sender.log(row(2))
    sender.log(row(3))
    sender.close(patience=30)
    assert [each["step"] for each in teller.rows] == [1, 2, 3]
    assert not (tmp_path / "outbox").exists()


def test_rows_are_on_disk_until_they_are_taken(teller: FakeTeller, tmp_path: Path) -> None:
    """What a process that is killed leaves."""
    teller.away = True
    sender = LiveRun("abc", "http://mlflow", interval=1000)
    until(lambda: sender._thread.is_alive())
    sender.log(row(1))
    sender.log(row(2))
    assert kept(tmp_path / "outbox") == [1, 2]
    sender.close(patience=30)
    assert kept(tmp_path / "outbox") == [1, 2]


def test_a_server_that_is_away_costs_one_line(teller: FakeTeller, capsys: pytest.CaptureFixture[str]) -> None:
    teller.away = True
    sender = LiveRun("abc", "http://mlflow", interval=0.002)
    sender.log(row(1))
    until(lambda: teller.tries >= 3)
    sender.log(row(2))
    teller.away = False
    until(lambda: len(teller.rows) == 2)
    sender.close(patience=30)
    assert [each["step"] for each in teller.rows] == [1, 2]
    assert capsys.readouterr().err.splitlines() == [
        "MLflow at http://mlflow takes no records (connection refused); they are kept and sent when it does",
        "MLflow at http://mlflow takes records again",
    ]


def test_a_server_that_stays_away_does_not_keep_the_end(teller: FakeTeller, capsys: pytest.CaptureFixture[str]) -> None:
    sender = LiveRun("abc", "http://mlflow", interval=0.002)
    sender.log(row(1))
    until(lambda: len(teller.rows) == 1 and sender._connected)
    teller.away = True
    sender.log(row(2))
    sender.close(patience=30)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "MLflow at http://mlflow has 1 of 2 rows of metrics; the end of the stage sends the rest"
    )


def test_an_end_before_there_was_a_connection_waits_for_nothing(teller: FakeTeller) -> None:
    teller.ready.clear()
    sender = LiveRun("abc", "http://mlflow")
    sender.log(row(1))
    sender.close(patience=1000)
    assert not teller.rows
    teller.ready.set()


def test_a_folder_that_cannot_be_written_costs_nothing_while_the_server_answers(
    teller: FakeTeller, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outbox").touch()
    sender = LiveRun("abc", "http://mlflow", interval=0.002)
    sender.log(row(1))
    until(lambda: len(teller.rows) == 1)
    sender.close(patience=30)
    assert capsys.readouterr().err == ""


def test_its_processor_time_is_known_while_it_works_and_afterwards(teller: FakeTeller) -> None:
    teller.work = 0.1
    sender = LiveRun("abc", "http://mlflow", interval=0.01)
    sender.log(row(1))
    until(lambda: sender.cpu_seconds > 0.05)
    until(lambda: len(teller.rows) == 1)
    sender.close(patience=30)
    assert sender.cpu_seconds >= 0.1


def test_without_a_run_in_the_environment_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    monkeypatch.delenv(tracking.STAGE_RUN, raising=False)
    assert live_run() is None


def test_intervals_grow_up_to_a_limit(teller: FakeTeller) -> None:
    waits = list[float]()
    teller.away = True
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
