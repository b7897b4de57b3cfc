"""Validation of a million rows: time, rows a second, and memory that does not grow with the number of shards.

    python benchmarks/validation.py                      # a million rows, then four times the shards (a few minutes)
    python benchmarks/validation.py --images 10000 --times 1 2 --processes 1 2

An image has two captions and eight detected regions; a shard has 1,000 images. The images are tiny, so that the tables
are what is measured. "stage" is the whole pass of the stage: tar headers read, Great Expectations' suites a few shards
at a time, statistics and sketches summed, in `--processes` processes. The baseline, "pandas", reads the same tables
with pyarrow and computes the row-wise rules alone, as plain column expressions in one process: no sums of texts, no
examples, no headers of images, and a regular expression where the stage judges encodings. Each line runs in a fresh
process, its start included; memory is the most that it and its children had resident together.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from PIL import Image

from cloc.config import Config
from cloc.config.schema import ValidationConfig
from cloc.data.dataset import Dataset, write_manifest
from cloc.data.schema import Manifest
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import open_storage
from cloc.data.tables import read_table, write_table

SHARD, CAPTIONS, REGIONS = 1000, 2, 8
ROWS = CAPTIONS + REGIONS  # an image
BOX = ["x1", "y1", "x2", "y2"]
LOOKS = ("red", "small", "wooden", "striped", "old", "shiny", "open", "blue")
THINGS = ("dog", "bicycle", "umbrella", "bottle", "chair", "kite", "boat", "suitcase", "lantern", "clock")
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One measurement: `way` is stage or pandas."""

    way: str
    data: str
    processes: int


@dataclass(frozen=True)
class Result:
    """Seconds by the clock and of processors, most MiB resident over all processes, rows that were looked at."""

    seconds: float
    cpu_seconds: float
    rss: float
    rows: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4], help="multiples of the images")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(asdict(measure(Case(**json.loads(arguments.case))))))
        return
    with tempfile.TemporaryDirectory() as folder:
        print("| rows | shards | way | processes | s | CPU-s | rows/s | over pandas (CPU) | MiB |")
        print("|---|---|---|---|---|---|---|---|---|")
        for times in arguments.times:
            data = make_data(Path(folder) / str(times), arguments.images * times)
            baseline = in_new_process(Case("pandas", data, 1))
            print(line("pandas", 1, baseline, baseline), flush=True)
            for processes in arguments.processes:
                result = in_new_process(Case("stage", data, processes))
                print(line("stage", processes, result, baseline), flush=True)


def make_data(folder: Path, images: int) -> str:
    """A data set by the contract."""
    storage, shards = open_storage(folder), []
    stream = BytesIO()
    Image.new("RGB", (32, 24), "gray").save(stream, format="JPEG")
    for number in range(images // SHARD):
        name, writer = f"{number:05d}", ShardWriter()
        for place in range(SHARD):
            writer.add(Sample(key=f"{number:05d}-{place:04d}", image=stream.getvalue(), suffix="jpg", meta={}))
        shards.append(writer.write(storage, name))
        write_rows(folder, name, seed=number)
    write_manifest(storage, Manifest(shards=tuple(shards)))
    return str(folder)


def write_rows(folder: Path, name: str, *, seed: int) -> None:
    """A shard's captions and regions."""
    rng, storage = np.random.default_rng(seed), open_storage(folder)
    looks, things = rng.choice(LOOKS, (SHARD, REGIONS)), rng.choice(THINGS, (SHARD, REGIONS))
    sides = rng.uniform(0.05, 0.5, (SHARD, REGIONS, 2))
    corners = rng.uniform(0, 1, (SHARD, REGIONS, 2)) * (1 - sides)
    scores = rng.beta(2, 4, (SHARD, REGIONS))
    captions, regions = [], []
    for place in range(SHARD):
        key = f"{name}-{place:04d}"
        phrases = [f"{look} {thing}" for look, thing in zip(looks[place], things[place], strict=True)]
        texts = (f"a {' next to a '.join(phrases[:4])}", f"a photo of a {' and a '.join(phrases[4:])}.")
        captions += [{"key": key, "text": text, "kind": "generated", "model": "benchmark"} for text in texts]
        for number, phrase in enumerate(phrases):
            box = [*corners[place, number], *(corners[place, number] + sides[place, number])]
            regions.append(
                {"key": key, **dict(zip(BOX, box, strict=True)), "text": phrase, "score": scores[place, number],
                 "source": "benchmark", "label": phrase.split()[1]}
            )  # fmt: skip
    write_table(storage, "captions", name, captions)
    write_table(storage, "regions", name, regions)


class Memory:
    """Resident memory of this process and its children, looked at ten times a second."""

    def __init__(self) -> None:
        self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._ended.wait(0.1):
            total = 0
            for item in (process, *process.children(recursive=True)):
                try:
                    total += item.memory_info().rss
                except psutil.NoSuchProcess:
                    continue  # ended between the listing and the look
            self.most = max(self.most, total)

    def stop(self) -> None:
        """Ends the looking."""
        self._ended.set()
        self._thread.join()


def measure(case: Case) -> Result:
    """Validates the data set in the case's way."""
    memory, started = Memory(), time.monotonic()
    rows = run_stage(case) if case.way == "stage" else run_pandas(case)
    seconds = time.monotonic() - started
    memory.stop()
    times = psutil.Process().cpu_times()
    cpu = times.user + times.system + times.children_user + times.children_system
    return Result(seconds=seconds, cpu_seconds=cpu, rss=memory.most / MIB, rows=rows)


def run_stage(case: Case) -> int:
    """The stage's pass over the shards, and its verdicts."""
    from cloc.validation.engine import Engine, verdict
    from cloc.validation.passes import check_shards
    from cloc.validation.suites import suites

    config = Config(validation=ValidationConfig(processes=case.processes))
    sums = check_shards(config, Dataset.open(case.data)).sums
    checks = suites(config)
    results = [*Engine().check_set(checks.data_set, sums.summary.numbers())]
    results += [verdict(check, sums.tallies[check.id]) for check in checks.rows]
    broken = [result.id for result in results if result.fatal]
    assert not broken, broken
    return sums.summary.captions + sums.summary.regions


def run_pandas(case: Case) -> int:
    """The row-wise rules as column expressions, a shard at a time."""
    dataset, rows = Dataset.open(case.data), 0
    for shard in dataset.manifest.shards:
        captions = read_table(dataset.captions, "captions", shard.name).to_pandas()
        regions = read_table(dataset.regions, "regions", shard.name).to_pandas()
        keys = {sample.key for sample in dataset.read_samples(shard)}
        broken = [text_rules(frame, keys) for frame in (captions, regions)]
        broken.append(box_rules(regions))
        broken.append(int((~captions["kind"].isin(["alt_text", "generated", "human"])).sum()))
        broken.append(int(captions["text"].str.contains(r"(?:,|\b(?:a|an|the|of|and))\s*$").sum()))
        assert sum(broken) == 0, broken
        rows += len(captions) + len(regions)
    return rows


def text_rules(frame: pd.DataFrame, keys: set[str]) -> int:
    """Rows without a known key, without text, with too many words, with odd characters, or twice; summed."""
    words = frame["text"].str.split().str.len()
    odd = frame["text"].str.contains(r"[\x00-\x08\x7f]|</?[a-zA-Z][^<>]*>|&[a-z]+;|https?://|\ufffd|Ã|â€")
    missing = frame["key"].isna() | ~frame["key"].isin(keys) | ~frame["text"].str.contains(r"\S")
    columns = [name for name in frame.columns if name not in ("score", "source", "label")]
    return int((missing | (words > 300) | (words < 1) | odd | frame.duplicated(columns, keep=False)).sum())


def box_rules(frame: pd.DataFrame) -> int:
    """Boxes that are not finite, outside, out of order or tiny, and scores out of range; summed."""
    boxes = frame[BOX].to_numpy()
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    good = np.isfinite(boxes).all(axis=1) & (boxes >= 0).all(axis=1) & (boxes <= 1).all(axis=1) & (sides >= 0.01)
    return int((~good | ~frame["score"].between(0, 1)).sum())


def in_new_process(case: Case) -> Result:
    """Runs a case by itself."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def line(way: str, processes: int, result: Result, baseline: Result) -> str:
    """A row of the table."""
    cells: Sequence[str] = (
        f"{result.rows:,}",
        str(result.rows // ROWS // SHARD),
        way,
        str(processes),
        f"{result.seconds:.1f}",
        f"{result.cpu_seconds:.1f}",
        f"{result.rows / result.seconds:,.0f}",
        f"{result.cpu_seconds / baseline.cpu_seconds:.2f}",
        f"{result.rss:.0f}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
