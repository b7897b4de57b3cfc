"""Checkpoints when the process is killed while it saves, and on S3."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cloc.data.storage import StorageError, open_storage
from cloc.errors import TrainingError
from cloc.training.checkpoint import Checkpoints, TrainingState
from cloc.training.distributed import Rank
from tests.integration import checkpoint_killed
from tests.s3_server import Server, needs_server, serving_s3, use_endpoint

ONE = Rank(0, 1, torch.device("cpu"))
URL = "s3://bucket/run/checkpoints"


def test_a_process_that_is_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(checkpoint_killed.__file__)), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == checkpoint_killed.KILLS
    last = int(done.stdout.splitlines()[-1])
    Checkpoints(str(tmp_path), keep=1, rank=ONE).save(checkpoint_killed.held(1), TrainingState(last + 1, {}))
    (only,) = tmp_path.iterdir()  # the next save clears up
    assert len(list(only.iterdir())) == 3


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving_s3(tmp_path) as running:
        use_endpoint(monkeypatch, running.endpoint)
        monkeypatch.setenv("CLOC_S3_PATIENCE", "0.2")
        yield running


def made(**settings: int) -> Checkpoints:
    return Checkpoints(URL, rank=ONE, asynchronous=True, **{"keep": 2, **settings})


def held(fill: float) -> dict[str, Tensor]:
    return {"weight": torch.full((1000, 600), float(fill)), "step": torch.tensor(float(fill))}


@needs_server
def test_on_s3(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    storage = open_storage(URL)
    assert made().newest() is None
    checkpoints = made(keep_best=1)
    for step, score in enumerate((0.3, 0.1, 0.2, 0.2), start=1):
        checkpoints.save(held(step), TrainingState(step, {}), score=score)
    checkpoints.wait()
    assert [path[:13] for path in storage.list("") if path.endswith("state.json")] == [
        "step-00000001",
        "step-00000003",
        "step-00000004",
    ]
    assert len(storage.list("")) == 9
    found = held(0)
    assert made().load(found) == TrainingState(4, {})
    assert bool((found["weight"] == 4).all())

    (victim,) = (path for path in storage.list("step-00000004") if path.endswith(".safetensors"))
    storage.write_bytes(victim, storage.read_bytes(victim)[:-1] + b"x")
    assert made().load(found) == TrainingState(3, {})
    assert "has another checksum" in capfd.readouterr().err
    storage.delete("step-00000003/state.json")  # killed before it was written
    assert made().load(found) == TrainingState(1, {})


@needs_server
def test_what_was_broken_off_on_s3_goes_with_the_next_save(server: Server) -> None:
    storage = open_storage(URL)
    storage.write_bytes("step-00000009/00000-abc.safetensors", b"half")
    checkpoints = made()
    checkpoints.save(held(1), TrainingState(1, {}))
    checkpoints.wait()
    assert {path.split("/")[0] for path in storage.list("")} == {"step-00000001"}


@needs_server
def test_a_server_that_is_gone_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_s3(tmp_path) as running:
        use_endpoint(monkeypatch, running.endpoint)
        monkeypatch.setenv("CLOC_S3_PATIENCE", "0.2")
        checkpoints = made()
        checkpoints.save(held(1), TrainingState(1, {}))
        checkpoints.wait()
    checkpoints.save(held(2), TrainingState(2, {}))
    with pytest.raises(
        TrainingError, match=r"step 2 could not be written: .*; the last good checkpoint, step 1, stays"
    ):
        checkpoints.wait()
    with pytest.raises(StorageError, match=running.endpoint):
        made().load(held(0))
