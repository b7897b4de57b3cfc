"""The training loader: images a second and core, over bare decoding (the limit) and over webdataset's own pipeline.

    python benchmarks/loader.py                          # about 5 minutes on one core
    python benchmarks/loader.py --batches 10 --rounds 3  # quicker, noisier
    python benchmarks/loader.py --images PHOTOS --instances INSTANCES.json --captions CAPTIONS.json

COCO photographs are ingested into a temporary data set and streamed again and again, at 224 pixels. "bare" decodes,
resizes and pads the same files from memory with the loader's own functions, and does nothing else. "webdataset" reads
the same tars by WebDataset and WebLoader and shuffles as many samples; labels come from a dictionary that is ready, and
batches are made by the loader's own `BatchMaker`: what differs is the pipeline. All ways are warm and take turns on one
core, their processes with them; a way's rate is over processor seconds, or over the clock where it says so. Medians of
the rounds, ratios within a round.

The steps are timed alone, one after another, on one thread.
"""

import argparse
import gc
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import webdataset

from cloc.config import load_preset
from cloc.config.schema import AugmentationConfig
from cloc.data.augmentation import random_retouch, random_view
from cloc.data.batches import Batch, BatchMaker, BatchSettings, Drawn
from cloc.data.dataset import Dataset
from cloc.data.ingest.stage import Inputs, Outputs, run
from cloc.data.join import Labels, ShardLabels
from cloc.data.loader import LoaderSettings, TrainLoader
from cloc.data.reading import Record
from cloc.data.transforms import Picture
from cloc.model.processing import CLOCProcessor, train_tokenizer

SIZE, REGIONS, CONTEXT = 224, 4, 77
COCO = Path(__file__).parents[2] / "shared" / "data" / "coco_val2017_dev"
WARM = 8  # batches that are taken before a measurement: more than any way makes ahead
AUGMENTED = AugmentationConfig(min_crop_area=0.4, flip=0.5, color_jitter=0.2)


@dataclass(frozen=True)
class Source:
    """What is read: the data set, its tokenizer, and its records in memory."""

    dataset: Dataset
    processor: CLOCProcessor
    records: list[Record]
    settings: LoaderSettings

    @property
    def maker(self) -> BatchMaker:
        own = self.settings
        settings = BatchSettings(
            image_size=own.image_size,
            batch_size=own.batch_size,
            max_regions=own.max_regions,
            alt_text_share=own.alt_text_share,
            point_share=own.point_share,
            augmentation=own.augmentation,
            seed=own.seed,
        )
        return BatchMaker(settings, tokenize=self.processor.tokenize)


def prepare(arguments: argparse.Namespace, folder: Path) -> Source:
    """Ingests the photographs and reads them back."""
    config = load_preset("demo")
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"images_per_shard": 250, "processes": 1, "min_side": 16})}
    )
    inputs = Inputs(
        source="coco",
        images=str(arguments.images),
        coco_instances=str(arguments.instances),
        coco_captions=str(arguments.captions),
    )
    run(config, inputs=inputs, outputs=Outputs(data=str(folder)))
    dataset = Dataset.open(folder)
    records = []
    for number, shard in enumerate(dataset.manifest.shards):
        labels = ShardLabels(dataset, shard)
        with closing(dataset.open_images(shard)) as images:
            for index, (key, image) in enumerate(images.read(labels.wants)):
                records.append(Record(key, number, index, image, labels.of(key)))
    texts = (text for record in records for text in (*record.labels.captions, *record.labels.texts))
    tokenizer = train_tokenizer(texts, vocab_size=8192, context_length=CONTEXT)
    settings = LoaderSettings(
        image_size=SIZE,
        batch_size=arguments.batch_size,
        max_regions=REGIONS,
        alt_text_share=0.5,
        seed=0,
        buffer=arguments.buffer,
    )
    return Source(dataset, CLOCProcessor(tokenizer, image_size=SIZE, context_length=CONTEXT), records, settings)


def bare(source: Source) -> Iterator[Any]:
    """Batches of pixels, and nothing else."""
    pixels_BSS3 = np.empty((source.settings.batch_size, SIZE, SIZE, 3), dtype=np.uint8)
    bodies = itertools.cycle([record.image for record in source.records])
    while True:
        for out in pixels_BSS3:
            Picture(next(bodies)).letterbox(SIZE, out=out)
        yield pixels_BSS3


def loader(source: Source, *, workers: int, streams: int = 1) -> Iterator[Batch]:
    """The loader; several streams are what a rank reads that goes on for several."""
    settings = replace(source.settings, workers=workers, streams=streams)
    return TrainLoader(source.dataset, settings, tokenize=source.processor.tokenize).batches()


class MakeBatch:
    """From webdataset's samples to a batch; goes to its workers by pickle."""

    def __init__(self, maker: BatchMaker, labels: dict[str, Labels]) -> None:
        self._maker, self._labels = maker, labels

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        return self._maker.make(
            [
                Drawn(0, Record(sample["__key__"], 0, number, sample["jpg"], self._labels[sample["__key__"]]))
                for number, sample in enumerate(samples)
            ]
        )


def wds(source: Source, *, workers: int) -> Iterator[Batch]:
    """webdataset's pipeline."""
    root = source.dataset.images.url
    urls = [f"{root}/{shard.path}" for shard in source.dataset.manifest.shards]
    labels = {record.key: record.labels for record in source.records}
    buffer = source.settings.buffer
    stream = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False, nodesplitter=None)
        .repeat()
        .shuffle(buffer, initial=buffer)
        .batched(source.settings.batch_size, collation_fn=list, partial=False)
        .map(MakeBatch(source.maker, labels))
    )
    # One batch at a time in the process itself; a worker makes two ahead, as the loader's do.
    ahead = {"prefetch_factor": 2, "multiprocessing_context": "spawn"} if workers else {}
    return iter(webdataset.WebLoader(stream, batch_size=None, num_workers=workers, **ahead))


@dataclass(frozen=True)
class Rate:
    """Images a second of processor time, and by the clock."""

    processor: float
    clock: float


def cpu_seconds() -> float:
    """Of this process and its children so far."""
    times = [psutil.Process().cpu_times()]
    times += [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system for each in times)


def measure(batches: Iterator[Any], *, count: int, images: int) -> Rate:
    """The rate in the steady state: what was made ahead is taken first."""
    for _ in range(WARM):
        next(batches)
    began, spent = time.monotonic(), cpu_seconds()
    for _ in range(count):
        next(batches)
    spent, lasted = cpu_seconds() - spent, time.monotonic() - began
    return Rate(processor=count * images / spent, clock=count * images / lasted)


def microseconds(work: Callable[[Record], Any], records: list[Record]) -> float:
    """Processor time of a step, an image: the median of five passes."""
    passes = []
    for _ in range(5):
        began = time.process_time()
        for record in records:
            work(record)
        passes.append((time.process_time() - began) / len(records) * 1e6)
    return statistics.median(passes)


def steps(source: Source) -> dict[str, float]:
    """Microseconds an image of each step alone."""
    dataset, records, size = source.dataset, source.records, source.settings.batch_size
    shards = dataset.manifest.shards
    out = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    batches = [records[first : first + size] for first in range(0, len(records) - size + 1, size)]

    def read(_: Any) -> None:
        for shard in shards:
            with closing(dataset.open_images(shard)) as images:
                for _item in images.read(lambda key: True):
                    pass

    def join(_: Any) -> None:
        opened = [ShardLabels(dataset, shard) for shard in shards]
        for record in records:
            opened[record.shard].of(record.key)

    def decode(record: Record) -> None:
        Picture(record.image).rgb(at_least=SIZE)

    def letterbox(record: Record) -> None:
        Picture(record.image).letterbox(SIZE, out=out)

    def augmented(record: Record) -> None:
        picture, rng = Picture(record.image), np.random.default_rng(record.index)
        view = random_view(record.labels.boxes_R4, size=picture.size, config=AUGMENTED, rng=rng)
        picture.letterbox(SIZE, crop=view.crop, retouch=random_retouch((), config=AUGMENTED, rng=rng), out=out)

    def tokenize(_: Any) -> None:
        for batch in batches:
            source.processor.tokenize([record.labels.captions[0] for record in batch])
            texts = {text for record in batch for text in record.labels.texts[:REGIONS]}
            source.processor.tokenize(sorted(texts))

    def make(_: Any) -> None:
        for batch in batches:
            source.maker.make([Drawn(0, record) for record in batch])

    whole, made = records[:1], sum(map(len, batches))
    found = {
        "read": microseconds(read, whole) / len(records),
        "join": microseconds(join, whole) / len(records),
        "decode": microseconds(decode, records),
    }
    found["resize"] = microseconds(letterbox, records) - found["decode"]
    found["tokenise"] = microseconds(tokenize, whole) / made
    found["choose, collate"] = microseconds(make, whole) / made - sum(
        found[name] for name in ("decode", "resize", "tokenise")
    )
    found["augment (off by default)"] = microseconds(augmented, records) - found["decode"] - found["resize"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=COCO / "images")
    parser.add_argument("--instances", type=Path, default=COCO / "instances.json")
    parser.add_argument("--captions", type=Path, default=COCO / "captions.json")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=20, help="batches a measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--buffer", type=int, default=512, help="samples that are shuffled together")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        source = prepare(arguments, Path(folder))
        regions = sum(len(record.labels.texts) for record in source.records)
        print(f"{len(source.records)} images, {regions} regions, {arguments.batch_size} a batch", flush=True)
        ways = {
            "bare": bare(source),
            "loader, 0 workers": loader(source, workers=0),
            "loader, 1 worker": loader(source, workers=1),
            "loader, 4 streams, 0 workers": loader(source, workers=0, streams=4),
            "loader, 4 streams, 1 worker": loader(source, workers=1, streams=4),
            "webdataset, 0 workers": wds(source, workers=0),
            "webdataset, 1 worker": wds(source, workers=1),
        }
        rounds = []
        for _ in range(arguments.rounds):
            gc.collect()
            rounds.append(
                {name: measure(way, count=arguments.batches, images=arguments.batch_size) for name, way in ways.items()}
            )
        print("| way | images/s (processor) | over bare | images/s (clock) | over bare |\n|---|---|---|---|---|")
        for name in ways:
            row = [
                statistics.median(found[name].processor for found in rounds),
                statistics.median(found[name].processor / found["bare"].processor for found in rounds),
                statistics.median(found[name].clock for found in rounds),
                statistics.median(found[name].clock / found["bare"].clock for found in rounds),
            ]
            print(f"| {name} | {row[0]:.0f} | {row[1]:.2f} | {row[2]:.0f} | {row[3]:.2f} |")
        found = steps(source)
        total = sum(value for name, value in found.items() if "augment" not in name)
        print("\n| step | µs an image | share |\n|---|---|---|")
        for name, value in found.items():
            print(f"| {name} | {value:.0f} | {100 * value / total:.1f} % |")
        for way in ways.values():
            if hasattr(way, "close"):
                way.close()


if __name__ == "__main__":
    main()
