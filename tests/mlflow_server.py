"""A real `mlflow server` for tests, that can be killed and started again on its port."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pytest

from tests.s3_server import free_port

VARIABLES = ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT", "CLOC_RUN_KEY", "DVC_ROOT")
VARIABLES += ("CLOC_OUTBOX", "CLOC_MLFLOW_RUN_ID")


class MlflowServer:
    """A server with a folder of its own; as a context it serves.

    Attributes:
        port: that it has, alive or dead.
    """

    def __init__(self, folder: Path, *, store: str = "", environment: Mapping[str, str] = os.environ) -> None:
        self.port, self._folder, self._process = free_port(), folder, None
        self._store, self._environment = store or f"sqlite:///{folder}/server.db", environment

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serves, when it returns."""
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        options += ["--backend-store-uri", self._store, "--serve-artifacts"]
        options += ["--artifacts-destination", str(self._folder / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", *options]
        environment = {**self._environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("ab") as log:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError((self._folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        """Kills it and its workers at once."""
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def forget_surroundings(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The environment names no run and no store, and outbox and database lie in this folder."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
