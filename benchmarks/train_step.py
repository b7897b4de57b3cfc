"""Training steps: our trainer's over bare loops of others, with their models, on the same batch.

    python benchmarks/train_step.py                            # on the processor: all tables below but the last
    python benchmarks/train_step.py parity regions --models b16 --rounds 9
    python benchmarks/train_step.py scaling --set train.optimizer=muon
    python benchmarks/train_step.py --device cuda              # `gpu` and `compile`; pip install open_clip_torch before

parity     our trainer with the region losses off over CLIPModel of transformers in a bare loop; the goal is 0.97
regions    CLOC with all its parts on over that bare loop; the goal is 0.85
precision  CLOC in bfloat16 over float32
compile    CLOC compiled over not
scaling    CLOC in two processes over one: the same global batch, and the same batch a process
gpu        CLIP and CLOC over the bare loops of transformers and (where it is installed) open_clip: at 4,096 images, at
           the most that fit, and with the loader

Both sides of a ratio take turns, step by step, so that a machine with other work disturbs them alike; a ratio is the
median over the rounds. On the processor it is one of processor seconds (the clock's beside it), on a GPU of seconds.
Captions have 45 tokens and region texts four, as the paper's labels have on average; a batch is random, decoded and in
memory but where it says `loader`. MFU counts the model's own FLOPs, by `cloc.training.flops`.
"""

import argparse
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step_tables import BARE, IMAGES, Bench, Table, Way

from cloc.training.distributed import Rank, leave, process_group, total

CLIP = Way("our trainer, CLIP", "clip")
CLOC = Way("our trainer, CLOC (pool: prompt)", "cloc", ("model.prompter.pool=prompt",))
CLOC_ALL = Way("our trainer, CLOC (pool: all)", "cloc", ("model.prompter.pool=all",))
ADAMW = "train.optimizer=adamw"  # as in the paper, and in the bare loops


def against(
    bench: Bench,
    table: Table,
    way: Way,
    *,
    model: str,
    images: int,
    settings: Sequence[str],
    library: str = "transformers",
    block: int = 1,
) -> None:
    """A bare loop, and a way of our trainer over it."""
    rows = bench.compare(
        partial(bench.bare, library, model, images, settings),
        partial(bench.ours, way, model, images, settings),
        block=block,
    )
    ours = bench.case(model, images, [*settings, *way.settings])
    table.add(model, rows, ways=[(bench.case(model, images, settings), "clip"), (ours, way.objective)])


def parity(bench: Bench) -> None:
    """CLIP over CLIP."""
    for precision in bench.options.precisions:
        table = Table(bench, f"parity, {precision}: the trainer with the region losses off over the bare loop")
        for model in bench.options.models:
            settings = (ADAMW, f"train.precision={precision}")
            against(bench, table, CLIP, model=model, images=bench.images(model), settings=settings)


def regions(bench: Bench) -> None:
    """CLOC over CLIP."""
    for precision in bench.options.precisions:
        table = Table(bench, f"regions, {precision}: CLOC with all its parts over the bare loop of CLIP")
        for model in bench.options.models:
            settings = (ADAMW, f"train.precision={precision}")
            for way in (CLOC, CLOC_ALL):  # one after the other: two models in memory at a time
                against(bench, table, way, model=model, images=bench.images(model), settings=settings)


def precision(bench: Bench) -> None:
    """bfloat16 over float32."""
    table = Table(bench, "precision: CLOC in bfloat16 (autocast) over float32")
    _variants(bench, table, {"float32": "train.precision=float32", "bfloat16": "train.precision=bfloat16"})


def compiled(bench: Bench) -> None:
    """Compiled over eager."""
    table = Table(bench, "compile: CLOC with torch.compile over without")
    _variants(bench, table, {"eager": "train.compile=false", "compiled": "train.compile=true"})


def _variants(bench: Bench, table: Table, variants: Mapping[str, str]) -> None:
    for model in bench.options.models:
        images = bench.images(model)
        settings = [[ADAMW, *CLOC.settings, variant] for variant in variants.values()]
        names = [replace(CLOC, name=f"{CLOC.name}, {name}") for name in variants]
        makes = [partial(bench.ours, way, model, images, each) for way, each in zip(names, settings, strict=True)]
        rows = bench.compare(*makes)
        table.add(model, rows, ways=[(bench.case(model, images, each), "cloc") for each in settings])


def scaling(bench: Bench) -> None:
    """Two processes over one, each measured in turn, again and again."""
    head = "| model | images a step | processes | s | CPU-s of all | efficiency (processor) | efficiency (clock) |"
    table = Table(bench, "scaling: CLOC in two processes over one", head)
    for model in bench.options.models:
        images = bench.images(model)
        for title, each in (("same global batch", images // 2), ("same batch a process", images)):
            runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
            for _ in range(bench.options.launches):
                for processes, count in ((1, images), (2, each)):
                    runs[processes].append(_launched(bench.options, model, count, processes))
            wall, cpu = (
                {n: statistics.median(run[key] for run in found) for n, found in runs.items()}
                for key in ("wall", "cpu")
            )
            work = 2 * each / images  # of two processes, over that of one
            for n, count in ((1, images), (2, 2 * each)):
                scaled = work if n == 2 else 1.0
                table.line(
                    f"| {model} | {count} ({title}) | {n} | {wall[n]:.3f} | {cpu[n]:.3f} | "
                    f"{scaled * cpu[1] / cpu[n]:.2f} | {scaled * wall[1] / (n * wall[n]):.2f} |"
                )


def _launched(options: argparse.Namespace, model: str, images: int, processes: int) -> dict[str, float]:
    """Medians of a step of one rank by the clock, and the processor seconds of all ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    own = [__file__, "rank", "--models", model, "--images", str(images), "--rounds", str(options.rounds)]
    own += ["--device", options.device, "--threads", str(options.threads), "--set", *options.set]
    done = subprocess.run([*launcher, *own], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"scaling: {processes} processes ended with {done.returncode}; see above")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_rank(options: argparse.Namespace) -> None:
    """A rank of `scaling`."""
    with process_group(options.device, timeout_seconds=600) as rank, tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, rank, Path(folder))
        (model,) = options.models
        (row,) = bench.compare(partial(bench.ours, CLOC, model, bench.images(model)))
        cpu = total(torch.tensor(statistics.median(row.cpu), device=rank.device))
        if rank.is_first:
            found = {"wall": statistics.median(row.seconds), "cpu": float(cpu)}
            print(json.dumps(found), file=sys.__stdout__, flush=True)
        torch.distributed.barrier()
        # Whoever leaves destructors to the interpreter may hang here (`leave`), and the folder must go.
    leave(0)


def gpu(bench: Bench) -> None:
    """Over the bare loops, at a given number of images and at the most that fit; then with the loader."""
    table, libraries = Table(bench, "gpu: the trainer over bare loops, bfloat16"), bench.options.libraries
    if "open_clip" not in libraries:
        table.note("Not over open_clip: left out, or not installed (pip install open_clip_torch).")
    for model in bench.options.models:
        for images in (*bench.options.at, 0):
            settings = [ADAMW, "train.precision=bfloat16"]
            chosen = images or _most(bench, table, libraries, model, settings)
            if images and not _all_fit(bench, libraries, model, images, settings):
                settings = [*settings, "train.gradient_checkpointing=true"]
                if not _all_fit(bench, libraries, model, images, settings):
                    table.note(f"{model}: {images} images do not fit, not even with gradient checkpointing.")
                    continue
                table.note(f"{model}, {images} images: they fit with gradient checkpointing alone; all rows have it.")
            table.again()
            for library in libraries:
                for way in (CLIP, CLOC, CLOC_ALL):
                    against(bench, table, way, model=model, images=chosen, settings=settings, library=library)
            loaded = [replace(way, name=f"{way.name}, loader", loader=True) for way in (CLIP, CLOC)]
            for way in loaded:
                against(bench, table, way, model=model, images=chosen, settings=settings, block=10)


def _makes(bench: Bench, libraries: Sequence[str], model: str, settings: Sequence[str]) -> Iterator[Any]:
    """Name and maker (by images) of all that `gpu` compares."""
    for library in libraries:
        yield library, lambda images, library=library: bench.bare(library, model, images, settings)
    for way in (CLIP, CLOC, CLOC_ALL):
        yield way.name, lambda images, way=way: bench.ours(way, model, images, settings)


def _all_fit(bench: Bench, libraries: Sequence[str], model: str, images: int, settings: Sequence[str]) -> bool:
    return all(bench.fits(partial(make, images)) for _, make in _makes(bench, libraries, model, settings))


def _most(bench: Bench, table: Table, libraries: Sequence[str], model: str, settings: Sequence[str]) -> int:
    """The most images that fit with every kind of step."""
    found = {name: bench.largest(make) for name, make in _makes(bench, libraries, model, settings)}
    said = ", ".join(f"{name} {images}" for name, images in found.items())
    table.note(f"{model}: nine tenths of the images that fit at once: {said}.")
    return min(found.values())


RUN: Mapping[str, Callable[[Bench], None]] = {
    "parity": parity, "regions": regions, "precision": precision, "compile": compiled, "scaling": scaling, "gpu": gpu,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(RUN)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", choices=IMAGES, help="demo and b16; on a GPU b16 and l14")
    parser.add_argument("--images", type=int, default=0, help="of a batch; 0: as fits the model on a processor")
    installed = [name for name in BARE if importlib.util.find_spec(name)]
    parser.add_argument("--libraries", nargs="+", choices=BARE, default=installed, help="of the table gpu")
    parser.add_argument("--at", type=int, nargs="*", default=[4096], help="images of the table gpu, beside the most")
    parser.add_argument("--limit", type=int, default=1 << 16, help="of the most images that fit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm", type=int, default=3, help="steps before the first that counts")
    parser.add_argument("--launches", type=int, default=3, help="of each number of processes (scaling)")
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1, help="of a process, on the processor")
    parser.add_argument("--files", type=int, default=256, help="different images that the loader reads")
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="settings of all steps")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    options.tables = options.tables or (["gpu", "compile"] if on_gpu else [name for name in RUN if name != "gpu"])
    options.models = options.models or (["b16", "l14"] if on_gpu else ["demo", "b16"])
    torch.set_num_threads(options.threads)
    with contextlib.redirect_stdout(sys.stderr):  # what the trainer says is no part of the tables
        if options.tables == ["rank"]:
            one_rank(options)
        if unknown := set(options.tables) - set(RUN):
            parser.error(f"unknown table: {', '.join(sorted(unknown))}; there are {', '.join(RUN)}")
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(options, Rank(0, 1, torch.device(options.device)), Path(folder))
            for name in options.tables:
                RUN[name](bench)


if __name__ == "__main__":
    main()
