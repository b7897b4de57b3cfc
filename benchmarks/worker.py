"""The labelling worker: how busy it keeps a model, and how much memory it takes, over many images.

    python benchmarks/worker.py                          # 10,000 images, 8 a batch, 60 ms a batch (about 3 minutes)
    python benchmarks/worker.py --images 2000 --batch-ms 50 100 200
    python benchmarks/worker.py --threads 1 2 4

The images are JPEGs of 640 x 480 pixels, prepared as OWLv2 takes them: decoded, resized, padded to 448, normalised. The
model is a wait of `--batch-ms`, which is what an accelerator looks like from its host. The baseline is the model alone,
on batches that are ready: its share of the worker's time is the efficiency. "serial" is the plain way, one image after
another and then the model. Each line runs in a fresh process; memory is its resident set.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
from PIL import Image, ImageFilter

from cloc.data.dataset import Dataset, write_manifest
from cloc.data.schema import Manifest
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import open_storage
from cloc.data.transforms import decode
from cloc.labeling.jobs import run_job
from cloc.labeling.worker import Item, Job, Labels

SIZE, PADDED = (640, 480), 448
PICTURES = 50  # different ones
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One measurement: `way` is worker or serial; `threads` prepare images."""

    way: str
    data: str
    threads: int
    batch_size: int
    batch_ms: float


@dataclass(frozen=True)
class Result:
    """Seconds by the clock; share of them that the model took; most MiB up to a tenth, half, all of the way."""

    seconds: float
    efficiency: float
    rss_early: float
    rss_middle: float
    rss_peak: float


class Waiting:
    """A labeler whose model is a wait."""

    in_flight = 1

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def prepare(self, item: Item) -> npt.NDArray[np.float32]:
        """Pixels (PADDED, PADDED, 3), float32."""
        image = item.image
        scale = PADDED / max(image.size)
        square = np.zeros((PADDED, PADDED, 3), dtype=np.float32)
        small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        square[: small.height, : small.width] = small
        square /= 255
        square -= 0.5
        return square

    def bucket(self, prepared: npt.NDArray[np.float32]) -> None:
        """All are of one size."""

    def label(self, batch: Sequence[npt.NDArray[np.float32]]) -> list[Labels]:
        """A row an image."""
        time.sleep(self._seconds)
        row = {"text": "a picture of something", "kind": "generated", "model": "wait"}
        return [Labels(rows=[row]) for _ in batch]


class Memory:
    """Resident memory over time, looked at ten times a second."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self.seen.append(process.memory_info().rss)
            time.sleep(0.1)

    def most(self, start: float, stop: float) -> float:
        """Most MiB between two shares of the time."""
        part = self.seen[int(start * len(self.seen)) : max(1, int(stop * len(self.seen)))]
        return max(part) / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batch-ms", type=float, nargs="+", default=[60.0])
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--ways", nargs="+", choices=["serial", "worker"], default=["serial", "worker"])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(asdict(measure(Case(**json.loads(arguments.case))))))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", arguments.images)
        print("| way | threads | ms a batch | images/s | model alone | efficiency | MiB to 1/10 | to 1/2 | peak |")
        print("|---|---|---|---|---|---|---|---|---|")
        for batch_ms in arguments.batch_ms:
            cases = [Case("serial", data, 1, arguments.batch_size, batch_ms)]
            cases += [Case("worker", data, threads, arguments.batch_size, batch_ms) for threads in arguments.threads]
            for case in [case for case in cases if case.way in arguments.ways]:
                print(row(case, in_new_process(case), images=arguments.images), flush=True)


def make_data(folder: Path, images: int) -> str:
    """A data set of photograph-like JPEGs, 1,000 a shard."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        noise = Image.fromarray(rng.integers(0, 256, (SIZE[1] // 4, SIZE[0] // 4, 3), dtype=np.uint8))
        stream = io.BytesIO()
        noise.resize(SIZE).filter(ImageFilter.GaussianBlur(2)).save(stream, format="JPEG", quality=90)
        pictures.append(stream.getvalue())
    storage, shards = open_storage(folder), []
    for first in range(0, images, 1000):
        writer = ShardWriter()
        for number in range(first, min(first + 1000, images)):
            writer.add(Sample(key=f"{number:08d}", image=pictures[number % PICTURES], suffix="jpg", meta={}))
        shards.append(writer.write(storage, f"{first // 1000:05d}"))
    write_manifest(storage, Manifest(shards=tuple(shards)))
    return str(folder)


def measure(case: Case) -> Result:
    """Labels the data set in the case's way."""
    memory, labeler = Memory(), Waiting(case.batch_ms / 1000)
    dataset = Dataset.open(case.data)
    images, started = dataset.manifest.images, time.monotonic()
    if case.way == "serial":
        batch = []
        for sample in dataset.read_all():
            batch.append(labeler.prepare(Item(decode(sample.sample.image), sample)))
            if len(batch) == case.batch_size:
                labeler.label(batch)
                batch = []
    else:
        with tempfile.TemporaryDirectory() as out:
            job = Job(
                stage="captioning", table="captions", data=case.data, captions="", output=out, reads=(), required=(),
                config_hash="", batch_size=case.batch_size, min_side=1, max_pixels=10**8, threads=case.threads,
            )  # fmt: skip
            result = run_job(job, lambda: labeler, processes=1, quarantine_limit=0.0, interval=1e9)
            assert result.totals.labelled == images
    seconds = time.monotonic() - started
    alone = images / case.batch_size * case.batch_ms / 1000
    return Result(
        seconds=seconds,
        efficiency=alone / seconds,
        rss_early=memory.most(0, 0.1),
        rss_middle=memory.most(0, 0.5),
        rss_peak=memory.most(0, 1),
    )


def in_new_process(case: Case) -> Result:
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Result(**json.loads(done.stdout))


def row(case: Case, result: Result, *, images: int) -> str:
    cells = [
        case.way,
        str(case.threads),
        f"{case.batch_ms:g}",
        f"{images / result.seconds:.0f}",
        f"{case.batch_size / case.batch_ms * 1000:.0f}",
        f"{result.efficiency:.0%}",
        *(f"{value:.0f}" for value in (result.rss_early, result.rss_middle, result.rss_peak)),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
