"""Checkpoints in one process: whole or not there, checked when they are read, and what stays when a save fails."""

import json
import pickle
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from cloc.errors import TrainingError
from cloc.training.checkpoint import Checkpoints, TrainingState
from cloc.training.checkpoint.shelf import Retention, Shelf
from cloc.training.distributed import Rank

ONE = Rank(0, 1, torch.device("cpu"))


def made(folder: Path, *, keep: int = 5, keep_best: int = 0, asynchronous: bool = False) -> Checkpoints:
    return Checkpoints(str(folder), keep=keep, keep_best=keep_best, rank=ONE, asynchronous=asynchronous)


def state(step: int) -> TrainingState:
    return TrainingState(step, {"model": "tests"}, loader={"ranks": [{"unusable": 0}]}, judge={"mean": 0.25})


def held(fill: float) -> dict[str, Tensor]:
    return {"model.weight": torch.full((40, 30), float(fill)), "optimizer.step": torch.tensor(float(fill))}


def saved(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = made(folder)
    for step in steps:
        checkpoints.save(held(step), state(step))
    return checkpoints


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def data_file(folder: Path, step: int) -> Path:
    (found,) = folder.glob(f"step-{step:08d}/*.safetensors")
    return found


KINDS = {
    "float32": torch.randn(5, 7),
    "float64": torch.randn(3, dtype=torch.float64),
    "bfloat16": torch.randn(4, 3).bfloat16(),
    "float16": torch.randn(4).half(),
    "int64": torch.tensor(7),
    "uint8": torch.arange(9, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(1.5),
    "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
    "empty": torch.empty(0, 3),
    "transposed": torch.randn(6, 4).t(),
    "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "view": torch.randn(10, 10)[2:4, 3:5],
    "parameter": nn.Parameter(torch.randn(3, 3)),
    "complex": torch.randn(3, dtype=torch.complex64),
}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_kind_of_tensor_comes_back_bitwise(tmp_path: Path, asynchronous: bool) -> None:
    shared = torch.randn(8)
    tensors = KINDS | {"shared.one": shared, "shared.two": shared}
    checkpoints = made(tmp_path, asynchronous=asynchronous)
    checkpoints.save(tensors, state(3))
    checkpoints.wait()
    found = {name: torch.zeros_like(tensor).requires_grad_(tensor.requires_grad) for name, tensor in tensors.items()}
    assert made(tmp_path).load(found) == state(3)
    for name, tensor in tensors.items():
        assert found[name].stride() == torch.zeros_like(tensor).stride()
        assert pickle.dumps(found[name].tolist()) == pickle.dumps(tensor.tolist()), name  # NaN equals itself so


def test_files_are_safetensors_and_json_and_readable_by_others(tmp_path: Path) -> None:
    tensors = held(2.5)
    made(tmp_path).save(tensors, state(1))
    folder = tmp_path / "step-00000001"
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".safetensors"]
    by_library = load_file(data_file(tmp_path, 1))
    assert by_library.keys() == {*tensors, "rng.0.cpu"}
    assert torch.equal(by_library["model.weight"], tensors["model.weight"])
    by_torch = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load(by_torch, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert torch.equal(by_torch["model.weight"], tensors["model.weight"])


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    found = held(0)
    made(tmp_path).load(found)
    assert found["optimizer.step"] == 1


def test_what_training_changes_after_the_call_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written before the tensors have changed, twice: the memory for copies is used again."""
    changed, sweep = threading.Event(), Shelf.sweep

    def wait_and_sweep(shelf: Shelf) -> None:
        assert changed.wait(20)
        sweep(shelf)

    monkeypatch.setattr(Shelf, "sweep", wait_and_sweep)
    checkpoints = made(tmp_path, asynchronous=True)
    tensors = held(0)
    for step in (1, 2):
        changed.clear()
        for tensor in tensors.values():
            tensor.fill_(step)
        drawn = torch.get_rng_state()
        checkpoints.save(tensors, state(step))
        for tensor in tensors.values():
            tensor.fill_(-1)
        torch.rand(3)
        changed.set()
        checkpoints.wait()
        found = held(0)
        assert made(tmp_path).load(found).step == step
        assert all(bool((tensor == step).all()) for tensor in found.values())
        assert torch.equal(torch.get_rng_state(), drawn)


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(5, 8)).square().mean().backward()  # data and dropout from the global generator
        optimizer.step()


def live(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = dict(model.state_dict())
    for number, values in enumerate(optimizer.state.values()):
        found |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    return found


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_that_goes_on_ends_bitwise_equal(tmp_path: Path, asynchronous: bool) -> None:
    one = network()
    train(*one, 3)
    checkpoints = made(tmp_path, asynchronous=asynchronous)
    checkpoints.save(live(*one), state(3))
    train(*one, 3)
    checkpoints.wait()
    two = network()
    train(*two, 1)  # the optimiser has its state; values are another run's
    made(tmp_path).load(live(*two))
    train(*two, 3)
    for name, tensor in live(*one).items():
        assert torch.equal(tensor, live(*two)[name]), name


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 4
    path.write_bytes(body)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("pattern", "harm", "message"),
    [
        ("*.safetensors", flip, "has another checksum than when it was written"),
        ("*.safetensors", cut, "has 10,285 bytes of 10,292"),
        ("*.safetensors", lengthen, "has more than its"),
        ("*.safetensors", Path.unlink, "is missing"),
        ("tensors-*.json", flip, "has another checksum than when it was written"),
        ("tensors-*.json", Path.unlink, "is missing"),
        ("state.json", cut, "state.json is not whole"),
    ],
)
def test_a_damaged_checkpoint_is_left_for_the_one_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], pattern: str, harm: Callable[[Path], None], message: str
) -> None:
    saved(tmp_path, 1, 2)
    (victim,) = tmp_path.glob(f"step-00000002/{pattern}")
    harm(victim)
    checkpoints, found = made(tmp_path, keep=1), held(0)
    assert checkpoints.newest() is not None
    assert checkpoints.load(found) == state(1)
    assert bool((found["model.weight"] == 1).all())
    lines = set(capfd.readouterr().err.splitlines())
    assert len(lines) == 1
    assert message in lines.pop()
    # It counts no more: the checkpoint after it is the one that is kept.
    checkpoints.save(held(1.5), state(1))
    assert steps(tmp_path) == [1]
    assert made(tmp_path).load(found) == state(1)
    assert found["optimizer.step"] == 1.5


def test_no_checkpoint_is_whole(tmp_path: Path) -> None:
    assert made(tmp_path).newest() is None
    saved(tmp_path, 1, 2)
    for step in (1, 2):
        flip(data_file(tmp_path, step))
    with pytest.raises(TrainingError, match="no checkpoint in it is whole; remove it to start anew"):
        made(tmp_path).load(held(0))
    for step in (1, 2):
        (tmp_path / f"step-{step:08d}" / "state.json").write_text("{}")
    with pytest.raises(TrainingError, match="none of its 2 checkpoints can be read"):
        made(tmp_path).newest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.weight": torch.zeros(40, 31)}, "its model.weight is (40, 30), this run's (40, 31)"),
        ({"model.weight": torch.zeros(40, 30).half()}, "its model.weight is float32, this run's float16"),
        ({"model.bias": torch.zeros(40)}, "it lacks model.bias (40,)"),
        ({"optimizer.step": None}, "it has optimizer.step (), which this run has not"),
        ({f"model.{n}": torch.zeros(1) for n in range(5)}, "it lacks model.2 (1,) and 2 more; restore"),
    ],
)
def test_another_architecture_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Tensor | None], message: str
) -> None:
    saved(tmp_path, 1, 2)
    monkeypatch.setattr(Shelf, "opened", lambda *args: pytest.fail("a file was opened"))
    tensors = {name: tensor for name, tensor in (held(0) | change).items() if tensor is not None}
    with pytest.raises(TrainingError) as caught:
        made(tmp_path).load(tensors)
    assert f"{tmp_path}/step-00000002 is of another architecture or optimiser: " in str(caught.value)
    assert message in str(caught.value)


def test_retention() -> None:
    scores = {1: 0.5, 2: 0.9, 3: None, 4: 0.9, 5: 0.1, 6: 0.2, 9: 1.0}
    assert Retention(2, 0).leaves(scores, step=6) == {5, 6}
    assert Retention(1, 1).leaves(scores, step=6) == {4, 6}  # of equals the newer one
    assert Retention(2, 3).leaves(scores, step=6) == {1, 2, 4, 5, 6}
    assert Retention(1, 9).leaves(scores, step=6) == {1, 2, 4, 5, 6}


def test_the_newest_and_the_best_are_kept_also_by_a_run_that_goes_on(tmp_path: Path) -> None:
    for step, score in enumerate((0.1, 0.9, 0.3, None, 0.4, 0.2), start=1):
        made(tmp_path, keep=2, keep_best=2).save(held(step), state(step), score=score)
    assert steps(tmp_path) == [2, 5, 6]
    made(tmp_path, keep=1).save(held(7), state(7))
    assert steps(tmp_path) == [7]


def test_a_step_that_is_saved_again_replaces_its_checkpoint_only_when_it_is_whole(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with small_files():
        made(tmp_path).save(held(5), state(1))
    found = held(0)
    made(tmp_path).load(found)
    assert found["optimizer.step"] == 1
    made(tmp_path).save(held(5), state(1))
    made(tmp_path).load(found)
    assert found["optimizer.step"] == 5
    assert len(list((tmp_path / "step-00000001").iterdir())) == 3


def test_what_was_broken_off_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "state.json").unlink()
    (tmp_path / "step-00000003" / "cloc-abc").mkdir(parents=True)
    (tmp_path / "step-00000003" / "cloc-abc" / "00000.safetensors").write_bytes(b"half")
    (tmp_path / "step-00000004").mkdir()
    (tmp_path / "step-00000004" / ".tmp-abc").write_bytes(b"half")
    (tmp_path / "notes").mkdir()  # the user's own
    checkpoints = made(tmp_path)
    assert checkpoints.newest() == state(1)
    checkpoints.save(held(5), state(5))
    assert steps(tmp_path) == [1, 5]
    assert (tmp_path / "notes").is_dir()


@contextmanager
def small_files() -> Iterator[None]:
    """The system lets this process write no file of more than 4 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_leaves_the_last_checkpoint_and_training_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], asynchronous: bool
) -> None:
    checkpoints = made(tmp_path, keep=1, asynchronous=asynchronous)
    checkpoints.save(held(1), state(1))
    checkpoints.wait()
    with small_files():
        checkpoints.save(held(2), state(2))
        checkpoints.close()  # raises nothing
        with pytest.raises(TrainingError) as caught:
            checkpoints.wait()
    (line,) = capfd.readouterr().err.splitlines()
    assert "checkpoint of step 2 could not be written: disk full: " in str(caught.value)
    assert "the last good checkpoint, step 1, stays; free some space" in str(caught.value)
    assert line == f"warning: {caught.value}; training goes on, and the next save tries again"
    assert steps(tmp_path) == [1]  # the room is given back
    checkpoints.save(held(3), state(3))
    checkpoints.wait()
    found = held(0)
    assert checkpoints.load(found) == state(3)
    assert steps(tmp_path) == [3]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_three_failures_in_a_row_end_the_run(tmp_path: Path, asynchronous: bool) -> None:
    checkpoints = made(tmp_path, asynchronous=asynchronous)
    failing = 4 if asynchronous else 3  # it is known when the next one begins
    with small_files():
        for step in range(1, failing):
            checkpoints.save(held(step), state(step))
        with pytest.raises(TrainingError, match=r"step 3 could not be written: disk full: .* no checkpoint yet"):
            checkpoints.save(held(failing), state(failing))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_defect_keeps_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool) -> None:
    def defect(shelf: Shelf) -> None:
        raise LookupError("a defect")

    checkpoints = made(tmp_path, asynchronous=asynchronous)
    monkeypatch.setattr(Shelf, "sweep", defect)
    checkpoints.save(held(1), state(1))
    with pytest.raises(LookupError, match="a defect"):
        checkpoints.save(held(2), state(2))


def test_another_number_of_ranks_leaves_the_seed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    second = Checkpoints(str(tmp_path), keep=1, rank=Rank(1, 2, torch.device("cpu")))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    second.load(held(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_of_another_version_is_named(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    marker = tmp_path / "step-00000001" / "state.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"format": 2}))
    with pytest.raises(TrainingError, match="can be read"):
        made(tmp_path).newest()
