"""Contrastive losses, forward and backward: the whole matrix of logits (naive) against tiles.

    python benchmarks/loss.py                                    # the table: 2k to 64k, one thread (about 15 minutes)
    python benchmarks/loss.py --sizes 2048 4096 --losses image   # some of it
    python benchmarks/loss.py --full --threads 2                 # 131,072 x 131,072 region logits, the paper's batch
    python benchmarks/loss.py --tiles 256 512 1024 2048 --sizes 8192     # which tile

Each line runs in a fresh process. CPU-s is the least of a few repetitions. Extra memory is the peak of resident memory
in the first one (VmHWM, reset after the inputs exist and a small case has loaded the libraries) beyond what was
resident then and beyond the gradients of both inputs, which any loss has to return. During that one malloc gives large
blocks back as they are freed: otherwise the peak is what it hoards, up to twice as much and never twice the same. Needs
Linux with glibc.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cloc.model import losses

LIBC = ctypes.CDLL("libc.so.6")
M_MMAP_THRESHOLD = -3  # of malloc.h; by itself malloc moves it up to 32 MiB as larger blocks are freed
FULL = 131_072
DISTINCT_TEXTS = 2000
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        loss: image (InfoNCE), region (InfoNCE with filter) or sigmoid (SigLIP).
        way: naive or tiled.
        rows: B; the logits are B x B.
        tile: rows of a tile; 0: the package's.
        seconds: repeat for at least so long.
    """

    loss: str
    way: str
    rows: int
    width: int
    tile: int
    scale: float
    threads: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """Of one forward and backward: CPU-seconds, elapsed seconds, bytes beyond inputs and gradients; the loss."""

    cpu_s: float
    elapsed_s: float
    extra_bytes: int
    loss: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--losses", nargs="+", choices=["image", "region", "sigmoid"], default=["image", "region"])
    parser.add_argument("--tiles", type=int, nargs="+", default=[0], help="rows of a tile (0: the package's)")
    parser.add_argument("--naive-limit", type=int, default=16384, help="largest size of the naive loss (5 GiB at 16k)")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--scale", type=float, default=100.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="repeat a case for at least so long")
    parser.add_argument("--full", action="store_true", help=f"the region loss of {FULL} rows alone")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(asdict(measure(Case(**json.loads(arguments.case))))))
        return
    print("| loss | B | tile | CPU-s naive | tiled | ratio | elapsed tiled | extra MiB naive | tiled |")
    print("|---|---|---|---|---|---|---|---|---|")
    for line in lines(arguments):
        print(line, flush=True)


def lines(arguments: argparse.Namespace) -> Iterator[str]:
    """Lines of the table, each once it is measured."""
    names, sizes = (["region"], [FULL]) if arguments.full else (arguments.losses, arguments.sizes)
    shared = {name: getattr(arguments, name) for name in ("width", "scale", "threads", "seconds")}
    for loss in names:
        for rows in sizes:
            fits = rows <= arguments.naive_limit
            naive = in_new_process(Case(loss=loss, way="naive", rows=rows, tile=0, **shared)) if fits else None
            for tile in arguments.tiles:
                tiled = in_new_process(Case(loss=loss, way="tiled", rows=rows, tile=tile, **shared))
                if naive is not None and abs(naive.loss - tiled.loss) > 1e-4 * abs(naive.loss):
                    raise SystemExit(f"{loss} at {rows}: naive gives {naive.loss}, tiled {tiled.loss}")
                yield row(loss, rows, tile, naive, tiled)


def row(loss: str, rows: int, tile: int, naive: Result | None, tiled: Result) -> str:
    cells = [
        loss,
        f"{rows:,}",
        str(tile) if tile else "default",
        f"{naive.cpu_s:.2f}" if naive else "-",
        f"{tiled.cpu_s:.2f}",
        f"{tiled.cpu_s / naive.cpu_s:.2f}" if naive else "-",
        f"{tiled.elapsed_s:.2f} s",
        f"{naive.extra_bytes / MIB:,.0f}" if naive else "-",
        f"{tiled.extra_bytes / MIB:,.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def in_new_process(case: Case) -> Result:
    """Measures a case where nothing was before."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(case.threads), "MKL_NUM_THREADS": str(case.threads)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return Result(**json.loads(done.stdout))


def measure(case: Case) -> Result:
    """Runs forward and backward of a case until its time is up."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    loss = _LOSSES[case.way](case)

    def inputs(rows: int) -> list[torch.Tensor]:
        a_KE = torch.nn.functional.normalize(torch.randn(rows, case.width), dim=-1)
        texts_UE = torch.nn.functional.normalize(torch.randn(DISTINCT_TEXTS, case.width), dim=-1)
        b_KE = texts_UE[torch.randint(DISTINCT_TEXTS, (rows,))] if case.loss == "region" else torch.randn_like(a_KE)
        b_KE = torch.nn.functional.normalize(b_KE, dim=-1)
        return [a_KE.requires_grad_(), b_KE.requires_grad_(), torch.tensor(case.scale, requires_grad=True)]

    def step(leaves: list[torch.Tensor]) -> float:
        value = loss(*leaves)
        torch.autograd.grad(value, leaves)
        return value.item()

    LIBC.mallopt(M_MMAP_THRESHOLD, MIB)
    step(inputs(64))
    leaves = inputs(case.rows)
    before = settled_memory()
    cpu, elapsed, value, extra, began = [], [], 0.0, 0, time.perf_counter()
    while not cpu or time.perf_counter() - began < case.seconds:
        cpu_start, start = time.process_time(), time.perf_counter()
        value = step(leaves)
        cpu.append(time.process_time() - cpu_start)
        elapsed.append(time.perf_counter() - start)
        if len(cpu) == 1:
            extra = memory("VmHWM") - before - sum(leaf.numel() * leaf.element_size() for leaf in leaves)
            LIBC.mallopt(M_MMAP_THRESHOLD, 32 * MIB)
    return Result(cpu_s=min(cpu), elapsed_s=min(elapsed), extra_bytes=extra, loss=value)


def settled_memory() -> int:
    """Resident bytes after freed memory went back to the system; the peak starts anew from here."""
    LIBC.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _tiled(case: Case) -> Callable[..., torch.Tensor]:
    def loss(a_KE, b_KE, scale):
        return losses.contrastive(
            a_KE,
            b_KE,
            scale=scale,
            bias=scale.detach() * 0 if case.loss == "sigmoid" else None,
            kind="sigmoid" if case.loss == "sigmoid" else "infonce",
            similar_text_threshold=0.9 if case.loss == "region" else 1.0,
            tile=case.tile or losses.TILE,
        ).loss

    return loss


def _naive(case: Case) -> Callable[..., torch.Tensor]:
    def loss(a_KE, b_KE, scale):
        logits_KK = scale * (a_KE @ b_KE.T)
        if case.loss == "sigmoid":
            signs_KK = 2 * torch.eye(len(a_KE)) - 1
            return -torch.nn.functional.logsigmoid(signs_KK * logits_KK).sum() / len(a_KE)
        positives_K = logits_KK.diagonal()
        if case.loss == "region":
            with torch.no_grad():
                dropped_KK = (b_KE @ b_KE.T > 0.9).fill_diagonal_(False)
            logits_KK = logits_KK.masked_fill(dropped_KK, float("-inf"))
        return ((logits_KK.logsumexp(1) + logits_KK.logsumexp(0)) / 2 - positives_K).mean()

    return loss


_LOSSES = {"naive": _naive, "tiled": _tiled}


if __name__ == "__main__":
    main()
