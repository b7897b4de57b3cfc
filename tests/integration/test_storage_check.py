"""`cloc storage check` on folders and endpoints, good and bad."""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloc.cli import cloc
from cloc.data.storage_check import Outcome, StorageReport, check_storage
from cloc.errors import DataError
from tests.faulty_proxy import Fault, FaultyProxy
from tests.s3_server import SECRET, Server, free_port, needs_server, serving_s3, use_endpoint

STEPS = ["write", "read back", "ranged read", "list", "overwrite is whole", "multipart", "streaming", "throughput"]
STEPS += ["delete", "clock difference"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as running:
        use_endpoint(monkeypatch, running.endpoint)
        monkeypatch.setenv("CLOC_S3_PATIENCE", "0.5")
        monkeypatch.setenv("CLOC_S3_TIMEOUT", "5")
        yield running


def outcomes(report: StorageReport) -> dict[str, Outcome]:
    return {check.name: check.outcome for check in report.checks}


def check(*arguments: str) -> str:
    result = CliRunner().invoke(cloc, ["storage", "check", *arguments])
    assert result.exception is None, result.exception
    return result.stdout


def test_a_good_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new/data"
    report = check_storage(str(folder))
    assert report.failure is None
    assert outcomes(report) == dict.fromkeys(["reach", *STEPS, "free space"], Outcome.PASSED)
    assert all(0 <= check.seconds < 30 for check in report.checks)
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"
    folder.mkdir(parents=True)
    (folder / "mine").write_text("x")
    lines = check(str(folder), "--quick").splitlines()
    assert lines[0] == str(folder)
    assert lines[-1] == f"{folder} will do"
    assert [line.startswith("✓ ") for line in lines[1:-1]] == [True] * 11
    assert "MiB/s" in next(line for line in lines if "throughput" in line)
    assert [item.name for item in folder.iterdir()] == ["mine"]


def test_a_folder_that_may_not_be_written() -> None:
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "closed"
        folder.mkdir()
        for item in (folder, Path(outer)):
            item.chmod(0o555)
        # A fork: what is installed may not be readable for the user that it becomes.
        with multiprocessing.get_context("fork").Pool(1) as pool:
            output, error, code = pool.apply(_check_as_nobody, (str(folder),))
        Path(outer).chmod(0o755)
    assert code == DataError.exit_code
    assert "✗ write" in output
    assert "- read back" in output
    assert error.startswith(f"storage check: write: {folder}/cloc-check-")
    assert "Permission denied; give this user the right" in error


def _check_as_nobody(folder: str) -> tuple[str, str, int]:
    if os.getuid() == 0:  # who may write everywhere
        os.setuid(65534)
    result = CliRunner().invoke(cloc, ["storage", "check", folder])
    assert isinstance(result.exception, DataError)
    return result.stdout, str(result.exception), result.exception.exit_code


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    report = check_storage(str(tmp_path / "file/data"))
    assert report.failure is not None
    assert (report.failure.name, "is a file" in report.failure.detail) == ("reach", True)


@needs_server
def test_a_good_server(server: Server, proxy: FaultyProxy) -> None:
    report = check_storage("s3://bucket/data")
    assert report.failure is None, report.failure
    assert outcomes(report) == dict.fromkeys(["reach", "credentials", "bucket", *STEPS], Outcome.PASSED)
    assert sum("partNumber" in item for item in proxy.requests) == 3, "12 MiB in parts of 5"
    assert not [path for path in (server.root / "bucket").rglob("*") if path.is_file()]
    found = json.loads(check("s3://bucket/data", "--quick", "--json"))
    assert (found["url"], found["ok"], found["reason"]) == ("s3://bucket/data", True, "")
    assert [item["name"] for item in found["checks"] if item["outcome"] != "passed"] == []
    assert "multipart" not in [item["name"] for item in found["checks"]]


@needs_server
@pytest.mark.timeout(110)  # less than what a request that fails is tried for
@pytest.mark.parametrize(
    ("changes", "url", "name", "reason"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "no"}, "s3://bucket/x", "credentials", "access denied by http"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "s3://bucket/x", "credentials", "access denied by http"),
        ({}, "s3://nobody-s/x", "bucket", "there is no bucket 'nobody-s'"),
        ({"AWS_ENDPOINT_URL": "dead"}, "s3://bucket/x", "reach", "cannot reach http"),
        ({"AWS_ENDPOINT_URL": "web"}, "s3://bucket/x", "reach", "does not answer like S3"),
    ],
)
def test_endpoints_that_will_not_do(
    changes: dict[str, str], url: str, name: str, reason: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in changes.items():
        monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}" if value == "dead" else value)
    if changes.get("AWS_ENDPOINT_URL") == "web":
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.faults = [Fault("status", status=200, code="", headers={"Content-Type": "text/html"})]
    result = CliRunner().invoke(cloc, ["storage", "check", url])
    assert isinstance(result.exception, DataError)
    message = str(result.exception)
    assert message.startswith(f"storage check: {name}: s3://")
    assert reason in message
    assert SECRET not in message + result.stdout
    marks = {line[2:20].strip(): line[0] for line in result.stdout.splitlines()[1:]}
    assert marks[name] == "✗"
    assert marks["write"] == "-"


@needs_server
def test_clock_difference_is_shown_though_it_stops_the_rest(proxy: FaultyProxy) -> None:
    proxy.faults = [Fault("skew", times=1000, seconds=7200)]
    report = check_storage("s3://bucket/x")
    assert report.failure is not None
    assert report.failure.name == "credentials"
    assert "clock is 7" in report.failure.detail
    clock = report.checks[-1]
    assert (clock.name, clock.outcome) == ("clock difference", Outcome.FAILED)


@needs_server
def test_a_server_without_ranges_deletes_and_parts(proxy: FaultyProxy, server: Server) -> None:
    proxy.faults = [
        Fault("status", times=1000, status=501, code="NotImplemented", method="POST"),
        Fault("status", times=1000, status=403, code="AccessDenied", method="DELETE"),
    ]
    report = check_storage("s3://bucket/limited")
    failed = [check.name for check in report.checks if check.outcome is Outcome.FAILED]
    assert failed == ["multipart", "delete", "clean up"]
    assert outcomes(report)["streaming"] is Outcome.PASSED, "it goes on after what the rest does not need"
    assert "remove it by hand" in report.checks[-2].detail
