"""Evaluation of COCO's size: minutes, and memory that does not grow with the number of images.

    python benchmarks/evaluation.py                                # 1,000 and 5,000 images, one demo-size CLOC
    python benchmarks/evaluation.py --images 200 400 --models 2 --workers 2

5,000 images have 36,000 labelled boxes of 80 classes with a text, and five captions each, as COCO's val2017. Pictures
are noise of 640 x 480 pixels; weights are random, which costs as much as trained ones. Each line is the whole stage
(all protocols, readers and figures, report with pictures) in a fresh process, its start included: "first" with an empty
cache of features, "again" with all of them there. Memory is the most that it and its children had resident together.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

SHARD, CLASSES, CAPTIONS, BOXES = 500, 80, 5, 7.2  # boxes an image, on average
WORDS = ("red", "small", "wooden", "striped", "old", "shiny", "open", "blue", "left", "near", "large", "green")
PICTURES = 32  # distinct ones
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One measurement: a stage over `data` with models by name."""

    data: str
    models: dict[str, str]
    cache: str
    workers: int
    out: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--models", type=int, default=1, help="demo-size models side by side")
    parser.add_argument("--workers", type=int, default=0, help="evaluation.workers")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        run(Case(**json.loads(options.case)))
        return
    print(f"{'images':>7} {'boxes':>7} {'':>6} {'minutes':>8} {'CPU-min':>8} {'MiB':>6}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        models = {
            f"CLOC {number}": make_model(root / f"model{number}", seed=number) for number in range(options.models)
        }
        for images in options.images:
            boxes = make_data(root / f"data{images}", images)
            cache, out = str(root / f"cache{images}"), str(root / f"report{images}")
            case = Case(str(root / f"data{images}"), models, cache, options.workers, out)
            for what in ("first", "again"):
                seconds, processor, resident = measure(case)
                line = f"{images:7,} {boxes:7,} {what:>6} {seconds / 60:8.1f} {processor / 60:8.1f} {resident:6,.0f}"
                print(line, flush=True)


def measure(case: Case) -> tuple[float, float, float]:
    """Seconds by the clock and of processors, and the most MiB resident over all processes."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    process = psutil.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            peak[0] = max(peak[0], resident(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"the evaluation failed:\n{output}")
    return time.monotonic() - started, float(output.split()[-1]), peak[0]


def resident(process: psutil.Process) -> float:
    """MiB that a process and its children have resident."""
    total = 0
    try:
        for item in (process, *process.children(recursive=True)):
            total += item.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total / MIB


def run(case: Case) -> None:
    """The stage; prints the seconds that processors took."""
    from cloc.config import parse
    from cloc.evaluation import stage

    config = parse({"evaluation": {"cache": case.cache, "workers": case.workers}}, source="benchmark")
    inputs = stage.Inputs(data=case.data, models=case.models)
    stage.run(config, inputs=inputs, outputs=stage.Outputs(report=case.out))
    import os

    times = os.times()
    print(times.user + times.system + times.children_user + times.children_system)


def make_model(folder: Path, *, seed: int) -> str:
    """A demo-size CLOC with random weights, as pre-training leaves it."""
    import torch

    from cloc.config import load_preset
    from cloc.model import factory
    from cloc.model.processing import train_tokenizer

    torch.manual_seed(seed)
    config, texts = load_preset("demo"), [" ".join(WORDS), *(f"thing {number}" for number in range(CLASSES))]
    tokenizer = train_tokenizer(texts, vocab_size=700, context_length=config.model.text.context_length)
    tokenizer.save_pretrained(str(folder))
    model, processor = factory.create(config.model, config.loss, tokenizer=str(folder))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"objective": "cloc", "steps": 0, "cpu_seconds": 0}))
    return str(folder)


def make_data(folder: Path, images: int) -> int:
    """A data set of that many images; returns the number of its boxes."""
    from cloc.data.dataset import write_manifest
    from cloc.data.schema import Manifest
    from cloc.data.shards import Sample, ShardWriter
    from cloc.data.storage import open_storage
    from cloc.data.tables import write_table

    rng, storage, shards, boxes = np.random.default_rng(0), open_storage(folder), [], 0
    names = tuple(f"thing {number}" for number in range(CLASSES))
    pictures = [picture(rng) for _ in range(PICTURES)]
    for first in range(0, images, SHARD):
        writer, captions, regions = ShardWriter(), [], []
        for number in range(first, min(images, first + SHARD)):
            key = f"{number:06d}"
            meta = {"alt_text": "", "source": "benchmark", "licence": "none", "width": 640, "height": 480}
            writer.add(Sample(key=key, image=pictures[number % PICTURES], suffix="jpg", meta=meta))
            texts = (" ".join(rng.choice(WORDS, 10)) for _ in range(CAPTIONS))
            captions += [{"key": key, "text": text, "kind": "human", "model": ""} for text in texts]
            for _ in range(rng.poisson(BOXES)):
                x, y = rng.uniform(0, 0.7, 2)
                width, height = rng.uniform(0.03, 0.3, 2)
                label = names[int(CLASSES * rng.random() ** 2)]
                box = {"x1": x, "y1": y, "x2": x + width, "y2": y + height}
                text = f"{rng.choice(WORDS)} {rng.choice(WORDS)} {label}"
                regions.append({"key": key, **box, "text": text, "score": 1.0, "source": "human", "label": label})
        shards.append(writer.write(storage, f"{len(shards):05d}"))
        write_table(storage, "captions", shards[-1].name, captions)
        write_table(storage, "regions", shards[-1].name, regions)
        boxes += len(regions)
    write_manifest(storage, Manifest(shards=tuple(shards), classes=names, made_by={"tool": "benchmark"}))
    return boxes


def picture(rng: np.random.Generator) -> bytes:
    """A JPEG of smooth noise."""
    small = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
    stream = BytesIO()
    small.resize((640, 480), Image.Resampling.BICUBIC).save(stream, format="JPEG", quality=90)
    return stream.getvalue()


if __name__ == "__main__":
    main()
