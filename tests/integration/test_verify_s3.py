"""Very large data: a collection on S3 of which DVC tracks the manifest alone, on servers with and without versions."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from cloc.cli import main
from cloc.config import dump
from cloc.data.storage import open_storage
from cloc.data.verify.check import Request, verify
from cloc.data.verify.record import Record
from cloc.data.verify.report import Kind, Report, Way
from tests.conftest import write_dataset
from tests.pipeline import toy
from tests.s3_server import ACCESS, SECRET, free_port, needs_server, serving_s3, use_endpoint

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DATA = "s3://bucket/photos/train"
SHARDS = 3
RAN = re.compile(r"^Running stage '([^']+)':$", re.MULTILINE)


@contextlib.contextmanager
def serving_versions() -> Iterator[str]:
    """Runs an S3 server that keeps versions, with an empty bucket that has them on; gives its endpoint."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.1)
            endpoint = f"http://127.0.0.1:{port}"
            client = s3(endpoint)
            client.create_bucket(Bucket="bucket")
            client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
            yield endpoint
        finally:
            process.terminate()


def s3(endpoint: str) -> Any:
    keys = {"aws_access_key_id": ACCESS, "aws_secret_access_key": SECRET}
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection's split as it is uploaded: a folder."""
    return Path(write_dataset(tmp_path_factory.mktemp("photos") / "train", 4 * SHARDS))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving_versions() as found:
        use_endpoint(monkeypatch, found)
        yield found


def upload(folder: Path, *, without: str = "no shard") -> None:
    storage = open_storage(DATA)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and without not in path.name:
            storage.write_bytes(path.relative_to(folder).as_posix(), path.read_bytes())


def flipped(path: Path) -> bytes:
    body = bytearray(path.read_bytes())
    body[700] ^= 1
    return bytes(body)


def check(record: Path | None = None, *, fresh: bool = False, **options: Any) -> Report:
    with Record(record, of=DATA, forget=fresh) as kept:
        return verify(Request(data=DATA, threads=4, fresh=fresh, **options), record=kept)


def test_by_reading_then_by_etag(folder: Path, endpoint: str, tmp_path: Path) -> None:
    upload(folder)
    record = tmp_path / "record.jsonl"
    assert check(record).ways == {Way.READ: SHARDS}
    again = check(record)
    assert again.ok
    assert (again.ways, again.read_bytes) == ({Way.RECORD: SHARDS}, 0)
    open_storage(DATA).write_bytes("images/00001.tar", flipped(folder / "images/00001.tar"))
    report = check(record)
    assert [(item.kind, item.path) for item in report.differences] == [(Kind.SHA256, "images/00001.tar")]
    assert report.ways == {Way.RECORD: SHARDS - 1}, "the others were read again"


def test_a_version_that_was_overwritten_or_deleted_is_found(folder: Path, endpoint: str) -> None:
    upload(folder)
    client, storage = s3(endpoint), open_storage(DATA)
    key = "photos/train/images/0000{}.tar"
    first = {n: client.head_object(Bucket="bucket", Key=key.format(n))["VersionId"] for n in range(SHARDS)}
    for body in (b"x" * (folder / "images/00000.tar").stat().st_size, flipped(folder / "images/00000.tar")):
        storage.write_bytes("images/00000.tar", body)
    storage.write_bytes("images/00001.tar", b"short")
    storage.delete("images/00002.tar")
    report = check()
    found = {item.path: item for item in report.differences}
    kinds = {path: item.kind for path, item in found.items()}
    assert kinds == {
        "images/00000.tar": Kind.SHA256,
        "images/00001.tar": Kind.SIZE,
        "images/00002.tar": Kind.MISSING,
    }
    for number, item in enumerate(found[path] for path in sorted(found)):
        assert f"version {first[number]} of " in item.detail
        assert item.detail.endswith("is the one of the manifest")
    by_size = {item.path: item.detail for item in check(hashed=0, reads_tables=False).differences}
    assert by_size["images/00002.tar"].endswith("has the right size"), "a version was read"


def test_by_the_hash_that_the_store_keeps(folder: Path, endpoint: str) -> None:
    upload(folder)
    client = s3(endpoint)
    for number, body in ((0, (folder / "images/00000.tar").read_bytes()), (1, flipped(folder / "images/00001.tar"))):
        client.put_object(
            Bucket="bucket", Key=f"photos/train/images/0000{number}.tar", Body=body, ChecksumAlgorithm="SHA256"
        )
    report = check(reads_tables=False)
    assert report.ways == {Way.STORE: 1, Way.READ: 1}
    assert report.read_bytes == (folder / "images/00002.tar").stat().st_size
    assert [(item.kind, item.path) for item in report.differences] == [(Kind.SHA256, "images/00001.tar")]
    assert check(reads_tables=False, fresh=True).ways == {Way.READ: 2}, "--fresh believes nobody"


@needs_server
def test_a_server_without_versions_and_hashes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving_s3(tmp_path) as server:
        use_endpoint(monkeypatch, server.endpoint)
        upload(folder)
        assert check(tmp_path / "record.jsonl").ways == {Way.READ: SHARDS}
        assert check(tmp_path / "record.jsonl").ways == {Way.RECORD: SHARDS}
        open_storage(DATA).write_bytes("images/00001.tar", flipped(folder / "images/00001.tar"))
        (found,) = check(tmp_path / "record.jsonl").differences
        assert (found.kind, found.path) == (Kind.SHA256, "images/00001.tar")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        monkeypatch.setattr("sys.argv", ["cloc", "data", "verify", DATA])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert "access denied" in line


# --- the manifest under DVC


def run(clone: Path, *command: str, fails: bool = False) -> str:
    """Runs a command in a clone, as from an activated environment; returns what it printed."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(clone / "src"),
        "AWS_DEFAULT_REGION": "us-east-1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(clone.parent / "dvc-site"),
        "CLOC_CACHE": str(clone.parent / "cloc-cache"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{clone.parent}/mlflow.db",
        **{f"GIT_{who}_{what}": "tests@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == fails, f"{' '.join(command)}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def commit(clone: Path) -> None:
    run(clone, "git", "add", "-A")
    run(clone, "git", "commit", "-qm", "state")


@pytest.fixture
def clone(tmp_path: Path, endpoint: str) -> Path:
    """A repository with the pipeline for collections on S3, and nothing of the collection."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "src", clone / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copyfile(ROOT / "pipelines/on_s3/dvc.yaml", clone / "dvc.yaml")
    (clone / "params.yaml").write_text(dump(toy.config()))
    (clone / "manifests").mkdir()
    run(clone, "git", "init", "-q")
    run(clone, "dvc", "init", "-q")
    run(clone, "dvc", "remote", "add", "-q", "photos", "s3://bucket/photos")
    run(clone, "dvc", "remote", "modify", "photos", "endpointurl", endpoint)
    commit(clone)
    return clone


@pytest.mark.slow
def test_dvc_tracks_the_manifest_alone(folder: Path, endpoint: str, clone: Path) -> None:
    upload(folder, without="00002")
    first = json.loads((folder / "manifest.json").read_text())
    last = first["shards"].pop()
    first["images"] -= last["images"]
    open_storage(DATA).write_bytes("manifest.json", json.dumps(first).encode())
    run(clone, "dvc", "import-url", "--version-aware", "remote://photos/train/manifest.json", "manifests/train.json")
    assert RAN.findall(run(clone, "dvc", "repro", "captioning")) == ["verification", "captioning"]
    commit(clone)
    assert not list(clone.rglob("*.tar")), "nothing of the collection is here"

    # Nothing changed: the collection is looked at, by its listing, and nothing follows.
    printed = run(clone, "dvc", "repro", "captioning")
    assert RAN.findall(printed) == ["verification"]
    assert "2 of 2 shards are verified by the record" in printed

    # A shard more: DVC sees it in the manifest, and that shard alone is labelled.
    upload(folder)
    assert "update available" in run(clone, "dvc", "status", "manifests/train.json.dvc")
    run(clone, "dvc", "update", "manifests/train.json.dvc")
    assert RAN.findall(run(clone, "dvc", "repro", "captioning")) == ["verification", "captioning"]
    labels = open_storage("s3://bucket/labels/captions")
    tables = labels.list("captions")
    assert tables == [f"captions/0000{number}.parquet" for number in range(SHARDS)]
    assert [list(labels.past(path)) for path in tables] == [[], [], []], "a table was written again"
    assert json.loads((clone / "work/captions.json").read_text())["captions"]["shards"] == SHARDS
    commit(clone)

    # The manifest of before is got from S3 by its version, without a remote of DVC's own.
    run(clone, "git", "checkout", "-q", "HEAD~1", "--", "manifests/train.json.dvc")
    assert yaml.safe_load((clone / "manifests/train.json.dvc").read_text())["deps"][0]["version_id"]
    shutil.rmtree(clone / ".dvc/cache")
    run(clone, "dvc", "pull", "manifests/train.json")
    assert json.loads((clone / "manifests/train.json").read_text()) == first
    run(clone, "git", "checkout", "-q", "HEAD", "--", "manifests/train.json.dvc")
    run(clone, "dvc", "pull", "manifests/train.json")

    # A shard is overwritten in place: the next run stops before anything is made of it, and says which it is.
    before = s3(endpoint).head_object(Bucket="bucket", Key="photos/train/images/00001.tar")["VersionId"]
    open_storage(DATA).write_bytes("images/00001.tar", flipped(folder / "images/00001.tar"))
    printed = run(clone, "dvc", "repro", "captioning", fails=True)
    assert RAN.findall(printed) == ["verification"]
    assert re.search(
        rf"^sha256 +images/00001\.tar: .*version {before} of .* is the one of the manifest$", printed, re.M
    )
    assert "1 difference from manifests/train.json (1 sha256)" in printed
