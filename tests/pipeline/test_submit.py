"""Submitting to a Kubeflow server: the real client against servers that are not there, are none, or answer."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cloc.errors import ConfigError
from pipelines import submit as module
from pipelines.submit import SubmitError, submit
from tests.pipeline import toy

EXPERIMENT = {"experiment_id": "e1", "display_name": "cloc", "namespace": "kubeflow"}


@contextmanager
def _server(answers: dict[str, Any], requests: list[tuple[str, str, Any]]) -> Iterator[str]:
    """An HTTP server that answers "METHOD /path" with JSON, the next of a list of answers, or text as HTML."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            path = self.path.partition("?")[0]
            requests.append((self.command, path, body))
            answer = answers.get(f"{self.command} {path}", answers.get("*", (404, {"message": "no such thing"})))
            if isinstance(answer, list):
                answer = answer.pop(0) if len(answer) > 1 else answer[0]
            status, content = answer if isinstance(answer, tuple) else (200, answer)
            html = isinstance(content, str)
            payload = content.encode() if html else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if html else "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = _answer

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _kubeflow(*states: dict[str, Any]) -> dict[str, Any]:
    run = {"run_id": "r1", "display_name": "cloc", "experiment_id": "e1"}
    return {
        "GET /apis/v2beta1/healthz": {"multi_user": False},
        "GET /apis/v2beta1/experiments": {"experiments": [EXPERIMENT], "total_size": 1},
        "POST /apis/v2beta1/runs": {**run, "state": "PENDING"},
        "GET /apis/v2beta1/runs/r1": [{**run, **state} for state in states] or [run],
    }


def _submit(host: str | None, **more: Any) -> str:
    return submit(
        toy.config(), host=host, namespace=None, experiment="cloc", data="s3://bucket/photos", **{"wait": False, **more}
    )


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # the client keeps a context in the home folder
    monkeypatch.delenv("KFP_ENDPOINT", raising=False)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr("kfp.client.client.time.sleep", lambda seconds: None)  # its pauses between attempts


def test_starts_a_run_with_these_settings() -> None:
    requests: list[tuple[str, str, Any]] = []
    with _server(_kubeflow(), requests) as host:
        assert _submit(host, image="registry.example/cloc-python:1") == "r1"
    body = next(body for method, path, body in requests if (method, path) == ("POST", "/apis/v2beta1/runs"))
    values = body["runtime_config"]["parameters"]
    assert values["data"] == "s3://bucket/photos"
    assert values["training_steps"] == 4
    assert "train.log_every=1" in values["other_settings"]
    assert "registry.example/cloc-python:1" in json.dumps(body["pipeline_spec"])
    assert "cloc-python:0.1.0" not in json.dumps(body["pipeline_spec"])


def test_waits_for_success() -> None:
    with _server(_kubeflow({"state": "RUNNING"}, {"state": "SUCCEEDED"}), []) as host:
        assert _submit(host, wait=True) == "r1"


def test_failed_run_is_an_error_with_its_reason() -> None:
    ended = {"state": "FAILED", "error": {"code": 1, "message": "validation: 1 of 31 checks failed"}}
    with (
        _server(_kubeflow({"state": "RUNNING"}, ended), []) as host,
        pytest.raises(SubmitError, match=r"run r1 on .* ended as FAILED: validation: 1 of 31"),
    ):
        _submit(host, wait=True)


def test_no_server_named() -> None:
    with pytest.raises(ConfigError, match=r"give --host or set KFP_ENDPOINT"):
        _submit(None)


def test_server_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SubmitError, match=rf"there is no Kubeflow server at http://127.0.0.1:{port}") as told:
        _submit(f"http://127.0.0.1:{port}")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "answer", [(200, "<html>a login page</html>"), (403, {"message": "forbidden"}), (500, "<html>oops</html>")]
)
def test_server_is_another_or_refuses(answer: tuple[int, Any]) -> None:
    with _server({"*": answer}, []) as host, pytest.raises(SubmitError) as told:
        _submit(host)
    assert host in str(told.value)
    assert "\n" not in str(told.value)
