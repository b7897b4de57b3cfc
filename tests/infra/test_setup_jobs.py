"""The Jobs that make MinIO's bucket and MLflow's user: what they ask for, and that they may run again."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.infra.manifests import K8S, golden, named
from tests.s3_server import free_port

BUCKET_SCRIPT = K8S / "components" / "minio" / "bucket.sh"
USER_SCRIPT = K8S / "base" / "services" / "mlflow_user.py"

MC = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
"admin policy create"*) cat "$6" > "$POLICY" ;;
"admin user info"*) echo "$INFO" ;;
"$FAILS"*) exit 1 ;;
esac
"""


def make_bucket(folder: Path, *, info: str, fails: str = "nothing") -> tuple[int, list[str]]:
    tool = folder / "mc"
    tool.write_text(MC)
    tool.chmod(0o755)
    log = folder / "log"
    log.write_text("")
    variables = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "LOG": str(log),
        "POLICY": str(folder / "policy.json"),
        "INFO": info,
        "FAILS": fails,
        "ENDPOINT": "http://minio:9000",
        "BUCKET": "cloc",
        "ROOT_USER": "root",
        "ROOT_PASSWORD": "root-password",
        "ACCESS_KEY": "key",
        "SECRET_KEY": "secret",
    }
    done = subprocess.run([shutil.which("sh") or "sh", str(BUCKET_SCRIPT)], env=variables, check=False)
    return done.returncode, log.read_text().splitlines()


def test_bucket_and_its_user_are_made(tmp_path: Path) -> None:
    code, calls = make_bucket(tmp_path, info='{"status":"success","accessKey":"key","userStatus":"enabled"}')
    assert code == 0
    assert calls == [
        "alias set minio http://minio:9000 root root-password",
        "mb --ignore-existing minio/cloc",
        "admin policy create minio cloc /tmp/policy.json",
        "admin user add minio key secret",
        "admin user info minio key --json",
        "admin policy attach minio cloc --user key",
    ]
    policy = json.loads((tmp_path / "policy.json").read_text())
    assert [item["Resource"] for item in policy["Statement"]] == [["arn:aws:s3:::cloc"], ["arn:aws:s3:::cloc/*"]]
    actions = [action for item in policy["Statement"] for action in item["Action"]]
    assert {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"} <= set(actions)
    assert not [action for action in actions if "*" in action or action.startswith(("s3:DeleteBucket", "s3:PutBucket"))]


def test_a_user_that_has_the_policy_is_left_alone(tmp_path: Path) -> None:
    code, calls = make_bucket(tmp_path, info='{"status":"success","accessKey":"key","policyName":"cloc"}')
    assert code == 0
    assert not [call for call in calls if call.startswith("admin policy attach")]


@pytest.mark.parametrize("fails", ["alias set", "mb", "admin user add", "admin policy attach"])
def test_what_fails_fails_the_job(tmp_path: Path, fails: str) -> None:
    code, calls = make_bucket(tmp_path, info="{}", fails=fails)
    assert code != 0
    assert calls[-1].startswith(fails)


class _Users(BaseHTTPRequestHandler):
    """MLflow's users, as far as its administrator makes and changes them."""

    users: dict[str, str]

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        self._change("/api/2.0/mlflow/users/create", exists=False)

    def do_PATCH(self) -> None:
        self._change("/api/2.0/mlflow/users/update-password", exists=True)

    def _change(self, path: str, *, exists: bool) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        who = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
        status = 200
        if who != "admin:admin-password":
            status = 401
        elif self.path != path:
            status = 404
        elif (body["username"] in self.users) != exists or len(body["password"]) < 12:
            status = 400
        else:
            self.users[body["username"]] = body["password"]
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def mlflow() -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a server, and the users that it has."""
    users: dict[str, str] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Users,), {"users": users}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", users
    server.shutdown()
    server.server_close()


def make_user(uri: str, password: str, *, admin: str = "admin-password") -> "subprocess.CompletedProcess[str]":
    variables = {
        "MLFLOW_TRACKING_URI": uri,
        "ADMIN_USERNAME": "admin",
        "ADMIN_PASSWORD": admin,
        "USERNAME": "cloc",
        "PASSWORD": password,
    }
    return subprocess.run(
        [sys.executable, str(USER_SCRIPT)], env=variables, capture_output=True, text=True, check=False
    )


def test_user_is_made_and_made_again(mlflow: tuple[str, dict[str, str]]) -> None:
    uri, users = mlflow
    for password in ("a-long-password", "a-long-password", "another-password"):
        done = make_user(uri, password)
        assert (done.returncode, done.stderr) == (0, "")
        assert users == {"cloc": password}


def test_a_user_that_cannot_be_made_is_one_line(mlflow: tuple[str, dict[str, str]]) -> None:
    uri, users = mlflow
    for done, line in (
        (make_user(uri, "short"), "error: MLflow answers 400; see the log of its server\n"),
        (make_user(uri, "a-long-password", admin="no"), "error: MLflow answers 401; see the log of its server\n"),
    ):
        assert (done.returncode, done.stderr) == (1, line)
    done = make_user(f"http://127.0.0.1:{free_port()}", "a-long-password")
    assert done.returncode == 1
    assert done.stderr.startswith("error: MLflow does not answer yet: ")
    assert users == {}


def test_jobs_run_these_scripts_and_give_what_they_read() -> None:
    items = golden("local")
    for job, script, file in (
        ("minio-bucket", BUCKET_SCRIPT, "bucket.sh"),
        ("mlflow-user", USER_SCRIPT, "mlflow_user.py"),
    ):
        assert named(items, f"ConfigMap/cloc/{job}")["data"] == {file: script.read_text()}
        (container,) = named(items, f"Job/cloc/{job}")["spec"]["template"]["spec"]["containers"]
        assert container["command"][-1] == f"/scripts/{file}"
        given = {variable["name"] for variable in container["env"]}
        read = {name for name in given if name in script.read_text()}
        assert given - read <= {"MC_CONFIG_DIR"}
