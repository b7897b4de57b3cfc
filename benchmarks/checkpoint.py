"""Checkpoints: how long training stands still for one, how long one takes, and the memory beyond the state itself.

    python benchmarks/checkpoint.py                          # ViT-B/16 CLIP with AdamW in float32: 1.8 GB
    python benchmarks/checkpoint.py --layers 2 --rounds 5    # smaller
    python benchmarks/checkpoint.py --folder /mnt/run

One rank, a folder. Ways, in turn, each round:

- torch: `torch.distributed.checkpoint.save` and `load` with torch's own files, the reference: no checksums.
- sync, async: `Checkpoints.save` as the trainer calls it.

"Blocks" is the time in the call, "whole" until the checkpoint is on the disk.

"Extra" is the most resident memory beyond what there was before, by samples of 5 ms; the copy that `async` writes from
is made by its first save and stays.
"""

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from cloc.training.checkpoint import Checkpoints, TrainingState
from cloc.training.distributed import Rank

MIB = 2**20


@dataclass
class Way:
    """Seconds in the call and until the end, of saves; seconds of loads; extra MiB of each."""

    blocks: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    saving: list[float] = field(default_factory=list)
    loading: list[float] = field(default_factory=list)


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Parameters of a CLIP: vision width 768, text width 512, 49,408 tokens."""
    found: dict[str, tuple[int, ...]] = {"token": (49408, 512), "position": (77, 512), "patch": (768, 3, 16, 16)}
    for tower, width in (("vision", 768), ("text", 512)):
        for layer in range(layers):
            name = f"{tower}.{layer}"
            found |= {f"{name}.{part}": (width, width) for part in ("query", "key", "value", "out")}
            found |= {f"{name}.fc1": (4 * width, width), f"{name}.fc2": (width, 4 * width)}
            found |= {f"{name}.{part}": (width,) for part in ("bias", "norm1", "norm2")}
        found[f"{tower}.projection"] = (512, width)
    return found


def state_of(layers: int) -> dict[str, Tensor]:
    """Weights and AdamW's two moments."""
    return {
        f"{kind}.{name}": torch.rand(shape)
        for name, shape in shapes(layers).items()
        for kind in ("model", "exp_avg", "exp_avg_sq")
    }


@contextmanager
def extra(found: list[float]) -> Iterator[None]:
    """Adds the most MiB that the block took."""
    process, done = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        found.append((most - before) / MIB)


def measure(way: Way, save: Callable[[], None], wait: Callable[[], None], load: Callable[[], None]) -> None:
    """One save, waited for, and one load."""
    with extra(way.saving):
        start = time.perf_counter()
        save()
        way.blocks.append(time.perf_counter() - start)
        wait()
        way.whole.append(time.perf_counter() - start)
    with extra(way.loading):
        start = time.perf_counter()
        load()
        way.loads.append(time.perf_counter() - start)


def round_of(ways: dict[str, Way], kept: dict[str, Checkpoints], tensors: dict[str, Tensor], *, folder: Path) -> None:
    """Every way once."""
    target = folder / "torch"
    shutil.rmtree(target, ignore_errors=True)
    measure(
        ways["torch"],
        lambda: dcp.save(tensors, checkpoint_id=str(target), no_dist=True),
        lambda: None,
        lambda: dcp.load(tensors, checkpoint_id=str(target), no_dist=True),
    )
    for name, checkpoints in kept.items():
        state = TrainingState(len(ways[name].whole) + 1, {})
        measure(
            ways[name],
            lambda checkpoints=checkpoints, state=state: checkpoints.save(tensors, state),
            checkpoints.wait,
            lambda checkpoints=checkpoints: checkpoints.load(tensors),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="of each tower")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where checkpoints go; a temporary folder when not given")
    options = parser.parse_args()
    tensors = state_of(options.layers)
    size = sum(tensor.nbytes for tensor in tensors.values())
    print(f"{len(tensors)} tensors, {size / 1e9:.2f} GB, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rank = Rank(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        kept = {
            name: Checkpoints(f"{folder}/{name}", keep=1, rank=rank, asynchronous=name == "async")
            for name in ("sync", "async")
        }
        ways = {name: Way() for name in ("torch", *kept)}
        for _ in range(options.rounds):
            round_of(ways, kept, tensors, folder=Path(folder))
    report(ways)


def report(ways: dict[str, Way]) -> None:
    """Prints medians; of memory the most."""
    reference = statistics.median(ways["sync"].blocks)
    print("way    blocks s  over sync  first s  whole s  load s  extra MiB saving  loading")
    for name, way in ways.items():
        blocks, whole, loads = (statistics.median(values) for values in (way.blocks, way.whole, way.loads))
        memory = f"{max(way.saving):17.0f} {max(way.loading):8.0f}"
        print(
            f"{name:6} {blocks:8.3f} {blocks / reference:10.3f} {way.blocks[0]:8.3f} {whole:8.2f} {loads:7.2f} {memory}"
        )


if __name__ == "__main__":
    main()
