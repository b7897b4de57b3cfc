"""Run by test_checkpoint_ranks.py as each of four processes: `checkpoint_ranks.py FOLDER NUMBER`.

First two of them are two ranks, then all are four: starting Python is what takes long.

Every tensor's values follow from its name and the step, so that any number of ranks knows what it must find.
"""

import json
import resource
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from cloc.errors import TrainingError
from cloc.training.checkpoint import Checkpoints, TrainingState
from cloc.training.distributed import Rank, leave

PLAIN = {f"plain.{number}": (32, 24) for number in range(4)}
PLAIN |= {"plain.odd": (3, 5, 7), "plain.scalar": (), "plain.empty": (0, 4)}
ALONE = {f"alone.{number}": (30, 10 + number) for number in range(5)}  # each on one rank, another one with more ranks
SHARDED = {"sharded.even": (64, 16), "sharded.odd": (7, 3), "sharded.few": (2, 5)}
REPLICATED = {"replicated.weight": (9, 9)}
IDENTITY = {"model": "tests"}


def value(name: str, shape: tuple[int, ...], step: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode()))
    return torch.randn(shape, generator=generator)


def tensors(rank: Rank, *, step: int) -> dict[str, Tensor]:
    """What this rank holds after a step; step 0 is all zeros."""

    def full(name: str, shape: tuple[int, ...]) -> Tensor:
        return value(name, shape, step) if step else torch.zeros(shape)

    found = {name: full(name, shape) for name, shape in PLAIN.items()}
    found |= {
        name: full(name, shape)
        for number, (name, shape) in enumerate(ALONE.items())
        if number % rank.world_size == rank.rank
    }
    whole = {name: full(name, shape) for name, shape in (SHARDED | REPLICATED).items()}
    if not dist.is_initialized():
        return found | whole
    mesh = init_device_mesh("cpu", (rank.world_size,))
    return found | {
        name: distribute_tensor(tensor, mesh, [Replicate() if name in REPLICATED else Shard(0)])
        for name, tensor in whole.items()
    }


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def assert_is_step(found: dict[str, Tensor], rank: Rank, step: int) -> None:
    expected = tensors(rank, step=step)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(local(found[name]), local(tensor)), name


def draws(folder: Path, step: int, rank: int) -> Path:
    return folder / f"draw-{step}-{rank}.json"


def go_on(folder: Path, rank: Rank) -> None:
    """Loads the newest checkpoint and checks it, then saves the next step's, which changes right after the call."""
    checkpoints = Checkpoints(str(folder / "checkpoints"), keep=10, rank=rank, asynchronous=True)
    state = checkpoints.newest()
    if state:
        found = tensors(rank, step=0)
        torch.manual_seed(0)
        assert checkpoints.load(found) == state
        assert_is_step(found, rank, state.step)
        if (drawn := draws(folder, state.step, rank.rank)).exists():
            assert torch.rand(3).tolist() == json.loads(drawn.read_text())
    step = state.step + 1 if state else 1
    held = tensors(rank, step=step)
    torch.manual_seed(1000 * step + rank.rank)
    checkpoints.save(held, TrainingState(step, IDENTITY, loader={"ranks": list(range(rank.world_size))}))
    for tensor in held.values():
        local(tensor).fill_(-1)
    draws(folder, step, rank.rank).write_text(json.dumps(torch.rand(3).tolist()))
    total = torch.ones(())
    for _ in range(20):  # training's own collectives, while the checkpoint is written
        if dist.is_initialized():
            dist.all_reduce(total)
    assert total == float(rank.world_size) ** (20 if dist.is_initialized() else 0)
    checkpoints.wait()


@contextmanager
def small_files(rank: int, *, only: int) -> Iterator[None]:
    """The system lets one rank write no file of more than 4 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == only:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def trouble(folder: Path, rank: Rank) -> None:
    """What each rank is told when something goes wrong on one of them, as JSON."""
    told: dict[str, str] = {}
    url = str(folder / "checkpoints")
    checkpoints = Checkpoints(url, keep=10, rank=rank, asynchronous=True)
    for step in (1, 2):
        checkpoints.save(tensors(rank, step=step), TrainingState(step, IDENTITY))
    checkpoints.wait()
    with small_files(rank.rank, only=1):
        checkpoints.save(tensors(rank, step=3), TrainingState(3, IDENTITY))
        told["full"] = failure(checkpoints.wait)
    assert checkpoints.newest() == TrainingState(2, IDENTITY)
    told["left"] = " ".join(sorted(path.name for path in Path(url).iterdir()))
    dist.barrier()
    checkpoints.save(tensors(rank, step=3), TrainingState(3, IDENTITY))
    checkpoints.wait()

    other = tensors(rank, step=0)
    if rank.rank == 1:
        other["plain.odd"] = torch.zeros(3, 5, 8)
        del other["alone.1"]
        other["plain.more"] = torch.zeros(2)
    told["architecture"] = failure(lambda: Checkpoints(url, keep=10, rank=rank).load(other))

    if rank.is_first:
        (victim,) = Path(url).glob("step-00000003/00001-*.safetensors")
        body = bytearray(victim.read_bytes())
        body[-1] ^= 1
        victim.write_bytes(body)
    dist.barrier()
    found = tensors(rank, step=0)
    assert checkpoints.load(found).step == 2
    assert_is_step(found, rank, 2)
    (folder / f"told-{rank.rank}.json").write_text(json.dumps(told))


def failure(call: object) -> str:
    assert callable(call)
    try:
        call()
    except TrainingError as error:
        return str(error)
    raise AssertionError("it did not fail")


@contextmanager
def joined(folder: Path, number: int, ranks: int) -> Iterator[Rank]:
    meet = f"file://{folder}/meet-{ranks}"  # and no port that another test may take
    dist.init_process_group("gloo", init_method=meet, rank=number, world_size=ranks)
    yield Rank(number, ranks, torch.device("cpu"))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    if number < 2:
        with joined(folder, number, 2) as rank:
            go_on(folder / "chain", rank)
            trouble(folder / "trouble", rank)
    with joined(folder, number, 4) as rank:
        go_on(folder / "chain", rank)
    leave(0)


if __name__ == "__main__":
    main()
