"""An ingest whose processes are killed outright: nothing is left behind, and running it again completes it."""

import contextlib
import io
import os
import random
import secrets
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cloc.data.dataset import Dataset
from cloc.data.storage import open_storage
from tests.s3_server import Server, needs_server, serving_s3, use_endpoint

SHARDS, IN_SHARD = 12, 3
SCRIPT = """
import sys
from cloc.config import parse
from cloc.data.ingest.stage import Inputs, Outputs, run
if __name__ == "__main__":
    config = parse({"data": {"processes": int(sys.argv[3]), "images_per_shard": 3}}, source="test")
    source, where = sys.argv[1].split("=")
    inputs = Inputs(images=where) if source == "folder" else Inputs(source="tars", tars=where)
    run(config, inputs=inputs, outputs=Outputs(data=sys.argv[2]))
"""


@dataclass(frozen=True)
class Ingest:
    """An ingest to run: what it reads, and the folder (on disk, also of a data set on S3) and URL it writes to."""

    source: str
    folder: Path
    url: str

    def command(self, processes: int) -> list[str]:
        return [sys.executable, "-c", SCRIPT, self.source, self.url, str(processes)]

    def complete(self, processes: int = 1) -> None:
        subprocess.run(self.command(processes), check=True, stdout=subprocess.DEVNULL)

    def finished(self) -> int:
        """Shards that are finished."""
        return len([path for path in self.folder.glob("stats/*.json") if not path.name.startswith(".tmp-")])

    def files(self) -> dict[str, bytes]:
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {
            str(path.relative_to(self.folder)): path.read_bytes() for path in found if not path.name.startswith(".tmp-")
        }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_s3(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that take a while to check."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(SHARDS * IN_SHARD):
        picture = Image.fromarray(generator.integers(0, 255, (400, 600, 3), dtype=np.uint8))
        picture.save(folder / f"p{index:03d}.jpg")
    return folder


@pytest.fixture(scope="module")
def tars(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures as img2dataset would leave them."""
    folder = tmp_path_factory.mktemp("tars")
    pictures = sorted(images.glob("*.jpg"))
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index, path in enumerate(pictures[shard * IN_SHARD : (shard + 1) * IN_SHARD]):
                key, body = f"{shard:05d}{index:04d}", path.read_bytes()
                for name, content in ((f"{key}.jpg", body), (f"{key}.json", b'{"caption": "a b"}')):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def children(pid: int) -> list[Path]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{child}") for child in listed]


def runs(process: Path) -> bool:
    """Whether a process is there and not merely waiting for its exit status to be read."""
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_and_kill(ingest: Ingest, *, after: int, later: float) -> None:
    """Kills an ingest and its workers once `after` shards are finished, and `later` seconds have passed."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(ingest.command(2), stdout=quiet, stderr=quiet, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while ingest.finished() < after and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(later)
        with contextlib.suppress(ProcessLookupError):  # it was faster
            os.killpg(process.pid, signal.SIGKILL)


def kill_at_random_and_compare(killed: Ingest, whole: Ingest) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # pytest shows it when the test fails
    moments = random.Random(seed)
    done = 0
    for _ in range(3):
        run_and_kill(killed, after=done + moments.randint(0, 2), later=moments.uniform(0, 0.3))
        done = killed.finished()
        if (killed.folder / "manifest.json").exists():
            assert done == SHARDS, f"seed {seed}: a manifest of an unfinished data set"
    killed.complete()
    whole.complete()
    assert killed.files() == whole.files(), f"seed {seed}"
    assert Dataset.open(killed.url).manifest.images == SHARDS * IN_SHARD


def test_workers_end_with_their_parent(images: Path, tmp_path: Path) -> None:
    ingest = Ingest(f"folder={images}", tmp_path / "out", str(tmp_path / "out"))
    quiet = subprocess.DEVNULL
    with subprocess.Popen(ingest.command(2), stdout=quiet, stderr=quiet) as process:
        deadline = time.monotonic() + 60
        while not ingest.finished() and time.monotonic() < deadline:
            time.sleep(0.01)
        workers = children(process.pid)
        process.kill()
    deadline = time.monotonic() + 20
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    assert not [worker for worker in workers if runs(worker)], "workers outlived the ingest"
    assert not (tmp_path / "out/manifest.json").exists()


def test_files_to_a_folder(images: Path, tmp_path: Path) -> None:
    source = f"folder={images}"
    kill_at_random_and_compare(
        Ingest(source, tmp_path / "out", str(tmp_path / "out")),
        Ingest(source, tmp_path / "whole", str(tmp_path / "whole")),
    )


def test_tars_as_they_are(tars: Path, tmp_path: Path) -> None:
    source = f"tars={tars}"
    kill_at_random_and_compare(
        Ingest(source, tmp_path / "out", str(tmp_path / "out")),
        Ingest(source, tmp_path / "whole", str(tmp_path / "whole")),
    )


@needs_server
@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_on_s3(kind: str, images: Path, tars: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a folder, and tars on S3 that are streamed, into data sets on S3."""
    use_endpoint(monkeypatch, server.endpoint)
    source = f"folder={images}"
    if kind == "tars":
        bucket = open_storage("s3://bucket/tars")
        for path in tars.glob("*.tar"):
            bucket.write_bytes(path.name, path.read_bytes())
        source = "tars=s3://bucket/tars"
    kill_at_random_and_compare(
        *(Ingest(source, server.root / f"bucket/{kind}/{name}", f"s3://bucket/{kind}/{name}") for name in ("a", "b"))
    )


@needs_server
def test_changed_tar_on_s3_is_noticed(tars: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, server.endpoint)
    bucket, body = open_storage("s3://bucket/changing"), (tars / "00000.tar").read_bytes()
    bucket.write_bytes("00000.tar", body)
    bucket.write_bytes("00001.tar", (tars / "00001.tar").read_bytes())
    ingest = Ingest("tars=s3://bucket/changing", server.root / "bucket/set", "s3://bucket/set")
    ingest.complete()
    before = ingest.files()
    ingest.complete()
    assert ingest.files() == before
    bucket.write_bytes("00000.tar", body.replace(b'"a b"', b'"c d"'))
    ingest.complete()
    captions = [row["text"] for item in Dataset.open("s3://bucket/set").read_all() for row in item.captions]
    assert captions == ["c d"] * IN_SHARD + ["a b"] * IN_SHARD
    assert ingest.files()["stats/00001.json"] == before["stats/00001.json"]
