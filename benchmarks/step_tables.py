"""How `train_step.py` measures and prints: steps that take turns, their times, and tables of them."""

import argparse
import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from training_steps import (
    REGION_TOKENS,
    Case,
    OpenClip,
    OurTrainer,
    Steps,
    TransformersClip,
    write_data,
    write_tokenizer,
)

from cloc.config import apply_overrides, parse
from cloc.config.load import load_preset
from cloc.model import factory
from cloc.training.distributed import Rank
from cloc.training.flops import Costs, Load, peak_flops
from cloc.training.task import Objective

TOKENS = 45
SIZES: Mapping[str, dict[str, Any]] = {
    "tiny": {
        "embed_dim": 16,
        "vision": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "heads": 2},
        "text": {"width": 16, "layers": 1, "heads": 2, "vocab_size": 1024},
    },
    "s16": {"embed_dim": 384, "vision": {"width": 384, "heads": 6}, "text": {"width": 384, "heads": 6}},
    "b16": {},
    "l14": {
        "embed_dim": 768,
        "vision": {"image_size": 336, "patch_size": 14, "width": 1024, "layers": 24, "heads": 16},
        "text": {"width": 768, "heads": 12},
    },
}
IMAGES = {"tiny": 8, "demo": 32, "s16": 16, "b16": 8, "l14": 2}  # on the processor
BARE = {"transformers": TransformersClip, "open_clip": OpenClip}


@dataclass(frozen=True)
class Way:
    """A kind of step of our trainer.

    Attributes:
        name: in the table.
        objective: "clip" or "cloc".
        settings: what it changes, as "section.key=value".
        loader: whether batches are loaded.
    """

    name: str
    objective: Objective
    settings: tuple[str, ...] = ()
    loader: bool = False


@dataclass(frozen=True)
class Row:
    """A measured kind of step.

    Attributes:
        name: of the step.
        seconds, cpu: of a step, in each round.
        gib: of the GPU's memory at its peak; 0 on the processor.
    """

    name: str
    seconds: Sequence[float]
    cpu: Sequence[float]
    gib: float


class Bench:
    """Builds steps and measures them.

    Args:
        options: of the command.
        rank: this process.
        folder: to write in.
    """

    def __init__(self, options: argparse.Namespace, rank: Rank, folder: Path) -> None:
        self.options, self.rank, self.folder = options, rank, folder
        self.on_gpu = rank.device.type == "cuda"

    def case(self, model: str, images: int, settings: Sequence[str] = (), *, loader: bool = False) -> Case:
        """What a step works on; its files are written when they are first asked for."""
        tree = load_preset("demo").model_dump(mode="json") if model == "demo" else {"model": SIZES[model]}
        # A run that goes on for ever, in this process.
        fixed = (f"train.batch_size={images * self.rank.world_size}", "train.steps=1000000", "train.stall_seconds=0")
        config = parse(apply_overrides(tree, [*fixed, *settings, *self.options.set]), source="benchmark")
        folder, files = self.folder / model, 2 * images if loader else 1
        data = folder / f"data-{files}"
        if not folder.exists():
            write_tokenizer(folder / "tokenizer", config)
        if not data.exists():
            write_data(data, config, images=files, different=self.options.files)
        return Case(config, images, TOKENS, self.rank, folder, data, loader=loader)

    def ours(self, way: Way, model: str, images: int, settings: Sequence[str] = ()) -> Steps:
        """Steps of our trainer."""
        case = self.case(model, images, [*settings, *way.settings], loader=way.loader)
        return OurTrainer(way.name, case, way.objective)

    def bare(self, library: str, model: str, images: int, settings: Sequence[str] = ()) -> Steps:
        """Steps of a bare loop."""
        return BARE[library](self.case(model, images, settings))

    def images(self, model: str) -> int:
        """Of a batch, where a table names none."""
        return int(self.options.images or IMAGES[model])

    def compare(self, *makes: Callable[[], Steps], block: int = 1) -> list[Row]:
        """All of them, taking turns in blocks of steps, of which all but the first fifth count."""
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(self._running(make)) for make in makes]
            times: list[list[tuple[float, float]]] = [[] for _ in running]
            order = list(zip(running, times, strict=True))
            for number in range(self.options.rounds):
                for (steps, _), found in order if number % 2 else order[::-1]:
                    found.append(self._block(steps, block))
            return [
                Row(steps.name, [wall for wall, _ in found], [cpu for _, cpu in found], gib)
                for (steps, gib), found in order
            ]

    @contextlib.contextmanager
    def _running(self, make: Callable[[], Steps]) -> Iterator[tuple[Steps, float]]:
        """Steps that are warm, and the GiB of the GPU that they take beyond what others hold, weights included."""
        held = torch.cuda.memory_allocated() if self.on_gpu else 0
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with make() as steps:
            for _ in range(self.options.warm):
                steps.step()
            self._wait()
            yield steps, (torch.cuda.max_memory_allocated() - held) / 2**30 if self.on_gpu else 0.0

    def _block(self, steps: Steps, block: int) -> tuple[float, float]:
        """Seconds and processor seconds of a step."""
        for _ in range(block // 5):
            steps.step()
        self._wait()
        wall, cpu, counted = time.perf_counter(), time.process_time(), block - block // 5
        for _ in range(counted):
            steps.step()
        self._wait()
        return (time.perf_counter() - wall) / counted, (time.process_time() - cpu) / counted

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def largest(self, make: Callable[[int], Steps]) -> int:
        """Images that fit, nine tenths of them: others keep their weights on the GPU beside it. At most `--limit`."""
        low, high = 0, 32 if self.on_gpu else 2
        while high <= self.options.limit and self.fits(partial(make, high)):
            low, high = high, 2 * high
        while high - low > max(1, low // 16):
            middle = (low + high) // 2
            if middle <= self.options.limit and self.fits(partial(make, middle)):
                low = middle
            else:
                high = middle
        return max(1, low * 9 // 10)

    def fits(self, make: Callable[[], Steps]) -> bool:
        """Whether two steps end without running out of memory."""
        try:
            with make() as steps:
                steps.step()
                steps.step()
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            if self.on_gpu:
                torch.cuda.empty_cache()
        return True


class Table:
    """Prints rows, each over the first one.

    Args:
        bench: that measured them.
        title: above it.
        head: names of the columns; None: those of `add`.
    """

    def __init__(self, bench: Bench, title: str, head: str | None = None) -> None:
        self._bench = bench
        by = "clock" if bench.on_gpu else "processor"
        self._head = head or (
            f"| model | images | step | ms ({by}) | images/s | over | of all rounds | by the clock | MFU | GiB |"
        )
        self.line(f"\n## {title}\n")
        self.again()

    def line(self, text: str) -> None:
        """A line as it is."""
        print(text, file=sys.__stdout__, flush=True)

    def again(self) -> None:
        """The head, as after a note."""
        self.line(f"{self._head}\n{'|---' * (self._head.count('|') - 1)}|")

    def note(self, text: str) -> None:
        """A line between rows."""
        self.line(f"\n{text}\n")

    def add(self, model: str, rows: Sequence[Row], *, ways: Sequence[tuple[Case, Objective]]) -> None:
        """The first row is the one that the others are over."""
        on_gpu = self._bench.on_gpu
        for row, (case, objective) in zip(rows, ways, strict=True):
            measure = "seconds" if on_gpu else "cpu"
            seconds = statistics.median(getattr(row, measure))
            ratios = _ratios(getattr(rows[0], measure), getattr(row, measure))
            clock = statistics.median(_ratios(rows[0].seconds, row.seconds))
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            # A processor's peak is measured by the clock, which counts other work, too.
            mfu = f"{_mfu(case, objective, seconds):.0%} | {row.gib:.1f}" if on_gpu else " | "
            self.line(
                f"| {model} | {case.images} | {row.name} | {1e3 * seconds:.1f} | {case.images / seconds:.1f} | "
                f"{statistics.median(ratios):.3f} | {spread} | {clock:.3f} | {mfu} |"
            )


def _ratios(base: Sequence[float], other: Sequence[float]) -> list[float]:
    """Speed over the base's, round by round."""
    return [a / b for a, b in zip(base, other, strict=True)]


def _mfu(case: Case, objective: Objective, seconds: float) -> float:
    config, regions = case.config, objective == "cloc"
    costs = Costs(factory.architecture(config.model), objective=objective, loss=config.loss, train=config.train)
    lengths = [(case.images, case.tokens), (case.texts, REGION_TOKENS)] if regions else [(case.images, case.tokens)]
    load = Load(
        images=case.images,
        image_size=config.model.vision.image_size,
        texts=sum(count for count, _ in lengths),
        tokens=sum(count * length for count, length in lengths),
        squares=sum(count * length * length for count, length in lengths),
        regions=case.images * config.loss.max_regions if regions else 0,
    )
    device = case.rank.device
    return costs.step(load).total / seconds / _peak(device, factory.uses_bfloat16(config.train.precision, device))


@cache
def _peak(device: torch.device, bfloat16: bool) -> float:
    return peak_flops(device, bfloat16=bfloat16).flops
