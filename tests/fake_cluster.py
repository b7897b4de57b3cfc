"""A Kubernetes API server for tests, as far as a Volcano job needs one: over HTTP, with the real client before it.

with fake_cluster() as cluster:
    cluster.phases = ["Pending", "Running", "Completed"]
    run_app(app, config, log_dir=tmp_path, api=cluster.client())
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client


@dataclass
class FakePod:
    """A pod, whose end and words are given.

    Attributes:
        phase: "Running", "Succeeded" or "Failed".
        code: exit code; None while it runs.
        lines: its log.
        reason: of its container's end.
    """

    phase: str = "Running"
    code: int | None = None
    lines: tuple[str, ...] = ()
    reason: str = ""

    def body(self, name: str, job: str) -> dict[str, Any]:
        ended = {"exitCode": self.code, "reason": self.reason or ("Error" if self.code else "Completed")}
        state = {"running": {}} if self.code is None else {"terminated": ended}
        container = {"name": "trainer", "image": "i", "imageID": "i", "ready": True, "restartCount": 0, "state": state}
        return {
            "metadata": {"name": name, "labels": {"volcano.sh/job-name": job}},
            "spec": {"containers": [{"name": name.removeprefix(f"{job}-").removesuffix("-0")}]},
            "status": {"phase": self.phase, "podIP": "10.0.0.1", "containerStatuses": [container]},
        }


@dataclass
class Cluster:
    """What the server knows and was asked.

    Attributes:
        port: of the server.
        phases: the job's phases, one a look; the last one stays. "" is a job that Volcano has not seen.
        pods: by number of the replica.
        counts: whether the job's status counts its pods.
        refusal: HTTP status that a new job is refused with; 0 takes it.
        jobs: what was created, by name.
        aborted: whether the job was cancelled.
    """

    port: int = 0
    phases: list[str] = field(default_factory=lambda: ["Running", "Completed"])
    pods: dict[int, FakePod] = field(default_factory=dict)
    counts: bool = True
    refusal: int = 0
    jobs: dict[str, Any] = field(default_factory=dict)
    aborted: bool = False

    def client(self) -> client.ApiClient:
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{self.port}"
        configuration.retries = 0
        return client.ApiClient(configuration)

    def status(self) -> dict[str, Any]:
        phase = "Aborted" if self.aborted else self.phases.pop(0) if len(self.phases) > 1 else self.phases[0]
        counts = {f"trainer-{number}": {"phase": {pod.phase: 1}} for number, pod in self.pods.items()}
        return {"state": {"phase": phase} if phase else {}, **({"taskStatusCount": counts} if self.counts else {})}

    def named(self) -> dict[str, FakePod]:
        (job,) = self.jobs
        return {f"{job}-trainer-{number}-0": pod for number, pod in self.pods.items()}


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.cluster.refusal:
            self._answer({"message": "no"}, status=self.cluster.refusal)
            return
        self.cluster.jobs[body["metadata"]["name"]] = body
        self._answer(body)

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.cluster.aborted = body["status"]["state"]["phase"] == "Aborted"
        self._answer(body)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        if parts[0] == "apis":
            (job,) = self.cluster.jobs.values()
            self._answer({**job, "status": self.cluster.status()})
            return
        pods = self.cluster.named()
        (job_name,) = self.cluster.jobs
        if parts[-1] == "pods":
            assert parse_qs(url.query)["labelSelector"] == [f"volcano.sh/job-name={job_name}"]
            self._answer({"items": [pod.body(name, job_name) for name, pod in pods.items()]})
        elif parts[-1] == "log" and parts[-2] in pods:
            pod = pods[parts[-2]]
            text = [f"2026-01-01T00:00:{number:02d}.000000001Z {line}" for number, line in enumerate(pod.lines)]
            self._answer("\n".join([*text, ""]).encode())
        elif parts[-1] in pods:
            self._answer(pods[parts[-1]].body(parts[-1], job_name))
        else:
            self._answer({"message": "not found"}, status=404)

    def _answer(self, body: Any, *, status: int = 200) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, bytes) else "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@contextmanager
def fake_cluster() -> Iterator[Cluster]:
    """Runs a server, in threads."""
    cluster = Cluster()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    cluster.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
