"""The detector: images a second of OWLv2's public shapes, alone and over the whole path from JPEG to regions.

    python benchmarks/detector.py                                     # base and large at 448 and 960, bfloat16
    python benchmarks/detector.py --shapes large --sizes 448 --batch-size 32 --images 4096
    python benchmarks/detector.py --quick                             # for a CPU: base at 448, 8 images

Runs on the GPU where there is one. Weights are random, set so that some 30 boxes an image pass the threshold; captions
hold about eight phrases of 255 different ones. Ways, each over the same images:

- model: the network alone, on tensors that are on the device already, queries encoded: the baseline.
- detect: on images that are prepared: transfer, network, threshold, suppression; their queries are known by then.
- stage: everything, by the worker: reading, decoding and preparing in threads, detection, the tables.

"Share" is the baseline's time over that of the way: how busy the device is kept. "GPU" is what nvidia-smi says of it
meanwhile, "wait" the worker's own count of the time in which the detector had no images. A size that is no multiple of
the patches is rounded down to one. Without a GPU, seconds are CPU-seconds: its cores are rarely free.
"""

import argparse
import io
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil, PreTrainedTokenizerFast

from cloc.config import Config
from cloc.config.schema import GroundingConfig
from cloc.data.dataset import Dataset, write_manifest
from cloc.data.schema import Manifest
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import open_storage
from cloc.data.tables import write_table
from cloc.data.transforms import decode
from cloc.labeling.detector_owl import OwlNetwork
from cloc.labeling.detector_transformers import Prepared, TransformersDetector
from cloc.labeling.detectors import QUERIES
from cloc.labeling.grounding import RegionLabeler
from cloc.labeling.jobs import decode_threads, run_job
from cloc.labeling.worker import Item, Job

PICTURES = 24  # different ones
PICTURE_SIZES = ((640, 480), (480, 640), (1024, 683))
COLORS = """
    red green blue yellow black white brown grey pink orange purple golden silver old new
""".split()  # noqa: SIM905 (a list of words reads best as words)
THINGS = """
    box ball key apple cup chair table lamp door window car truck bicycle dog cat horse bird
""".split()  # noqa: SIM905 (a list of words reads best as words)
PASSING = 30  # boxes an image that score more than 0.1
SHARD = 256


@dataclass(frozen=True)
class Shape:
    """A public checkpoint's sizes."""

    patch: int
    own_size: int
    width: int
    layers: int
    heads: int
    text_width: int
    text_heads: int


SHAPES = {
    "base": Shape(patch=16, own_size=960, width=768, layers=12, heads=12, text_width=512, text_heads=8),
    "large": Shape(patch=14, own_size=1008, width=1024, layers=24, heads=16, text_width=768, text_heads=12),
}


@dataclass(frozen=True)
class Speed:
    """Images a second; percent of the GPU's time and share of waiting, where they are known."""

    images_per_second: float
    gpu: float | None = None
    wait: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--sizes", type=int, nargs="+", default=[448, 960])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0, help="that decode and prepare; 0: as data.decode_threads")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--quick", action="store_true", help="base at 448, 8 images, 4 a batch")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shapes, arguments.sizes, arguments.images, arguments.batch_size = ["base"], [448], 8, 4
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder) / "data", arguments.images)
        print(f"{device_name()}, torch {torch.__version__}, {arguments.dtype}, batches of {arguments.batch_size}\n")
        print("| shape | pixels | way | images/s | share | GPU | wait |\n|---|---|---|---|---|---|---|")
        for shape in arguments.shapes:
            model = save_model(Path(folder) / shape, SHAPES[shape], dtype=arguments.dtype)
            for size in arguments.sizes:
                config = GroundingConfig(
                    model=model,
                    image_size=size - size % SHAPES[shape].patch,
                    dtype=arguments.dtype,
                    batch_size=arguments.batch_size,
                )
                for way, speed, share in measure(config, data, threads=decode_threads(arguments.threads)):
                    print(row(shape, config.image_size, way, speed, share=share), flush=True)


def make_data(folder: Path, images: int) -> str:
    """A data set of photograph-like JPEGs with generated captions."""
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(PICTURES):
        width, height = PICTURE_SIZES[number % len(PICTURE_SIZES)]
        noise = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
        stream = io.BytesIO()
        noise.resize((width, height)).filter(ImageFilter.GaussianBlur(2)).save(stream, format="JPEG", quality=90)
        pictures.append(stream.getvalue())
    storage, shards = open_storage(folder), []
    for first in range(0, images, SHARD):
        writer, rows = ShardWriter(), []
        for number in range(first, min(first + SHARD, images)):
            key = f"{number:08d}"
            names = [f"a {rng.choice(COLORS)} {rng.choice(THINGS)}" for _ in range(8)]
            rows.append({"key": key, "text": ", ".join(names), "kind": "generated", "model": "m"})
            writer.add(Sample(key=key, image=pictures[number % PICTURES], suffix="jpg", meta={}))
        name = f"{first // SHARD:05d}"
        shards.append(writer.write(storage, name))
        write_table(storage, "captions", name, rows)
    write_manifest(storage, Manifest(shards=tuple(shards)))
    return str(folder)


def save_model(folder: Path, shape: Shape, *, dtype: str) -> str:
    """A checkpoint of a public one's shape, with random weights and a vocabulary of the captions' words."""
    torch.manual_seed(0)
    config = Owlv2Config(
        text_config={
            "hidden_size": shape.text_width,
            "intermediate_size": 4 * shape.text_width,
            "num_attention_heads": shape.text_heads,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
        vision_config={
            "hidden_size": shape.width,
            "intermediate_size": 4 * shape.width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "patch_size": shape.patch,
            "image_size": shape.own_size,
        },
        projection_dim=shape.text_width,
    )
    model = Owlv2ForObjectDetection(config)
    with torch.no_grad():  # every patch on one scale, whose zero `calibrate` sets
        for layer, value in ((model.class_head.logit_scale, 9.0), (model.class_head.logit_shift, 0.0)):
            layer.weight.zero_()
            layer.bias.fill_(value)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    start, end, pad, unknown = "<|startoftext|>", "<|endoftext|>", "!", "<unk>"
    words = {word: number for number, word in enumerate([pad, unknown, *COLORS, *THINGS])}
    tokenizer = Tokenizer(models.WordLevel(words | {start: 49406, end: 49407}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 49406), (end, 49407)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=pad, unk_token=unknown
    ).save_pretrained(folder)
    Owlv2ImageProcessorPil(size={"height": shape.own_size, "width": shape.own_size}).save_pretrained(folder)
    return str(folder)


def measure(config: GroundingConfig, data: str, *, threads: int) -> list[tuple[str, Speed, float]]:
    """Each way with its speed and its share of the baseline's."""
    detector = TransformersDetector(config, QUERIES[config.phrases](config))
    network = detector._network
    assert isinstance(network, OwlNetwork)
    with_images = Dataset.open(data)
    samples = [sample for _, sample in zip(range(config.batch_size), with_images.read_all(), strict=False)]
    batch = [detector.prepare(Item(decode(sample.sample.image), sample)) for sample in samples]
    calibrate(network, batch)
    images = with_images.manifest.images
    batches = images // config.batch_size
    alone = timed(model_alone(network, batch), times=batches, images=len(batch))
    detect = timed(lambda: detector.detect(batch), times=batches, images=len(batch))
    stage = whole_path(config, data, detector, threads=threads)
    return [
        (way, speed, speed.images_per_second / alone.images_per_second)
        for way, speed in (("model", alone), ("detect", detect), ("stage", stage))
    ]


def calibrate(network: OwlNetwork, batch: list[Prepared]) -> None:
    """Shifts all logits so that `PASSING` boxes an image score more than 0.1."""
    pixels = [image.pixels for image in batch if image.pixels is not None]
    found = network.predict(pixels, [image.phrases for image in batch], threshold=0.0)
    scores = np.concatenate([some.scores for some in found])
    threshold = float(np.sort(scores)[-PASSING * len(batch)])
    wanted = np.log(0.1 / 0.9) - np.log(threshold / (1 - threshold))
    head = network._model.class_head
    with torch.no_grad():
        head.logit_shift.bias += wanted / (torch.nn.functional.elu(head.logit_scale.bias) + 1)


def model_alone(network: OwlNetwork, batch: list[Prepared]) -> Callable[[], None]:
    """The network on tensors that are on the device."""
    model = network._model
    with torch.inference_mode():
        pixels_BCHW = network._checkpoint.normalised([image.pixels for image in batch if image.pixels is not None])
        asked = network._encoder.ask([image.phrases for image in batch])
        queries_BQD = asked.embeddings_ND[asked.places_BQ]

    @torch.inference_mode()
    def run() -> None:
        map_BHWD, _ = model.image_embedder(pixel_values=pixels_BCHW, interpolate_pos_encoding=network._resized)
        features_BPD = map_BHWD.flatten(1, 2)
        model.class_predictor(features_BPD, queries_BQD, asked.mask_BQ)
        model.box_head(features_BPD)

    return run


def timed(work: Callable[[], object], *, times: int, images: int) -> Speed:
    """Of the median of repetitions, after one that does not count."""
    seconds = []
    with Utilisation() as gpu:
        for _ in range(times + 1):
            synchronise()
            started = clock()
            work()
            synchronise()
            seconds.append(clock() - started)
    return Speed(images / statistics.median(seconds[1:]), gpu=gpu.percent())


def whole_path(config: GroundingConfig, data: str, detector: TransformersDetector, *, threads: int) -> Speed:
    """The stage's worker over the data set, with a detector that is loaded and warm."""
    limits = Config().data
    with tempfile.TemporaryDirectory() as out, Utilisation() as gpu:
        job = Job(
            stage="grounding", table="regions", data=data, captions="", output=out, reads=("captions",),
            required=("captions",), config_hash="", batch_size=config.batch_size, min_side=limits.min_side,
            max_pixels=limits.max_pixels, threads=threads,
        )  # fmt: skip
        labeler = RegionLabeler(detector, min_box_side=config.min_box_side, names=None)
        started = clock()
        done = run_job(job, lambda: labeler, processes=1, quarantine_limit=0.0, interval=1e9)
        synchronise()
        seconds = clock() - started
    assert done.totals.labelled > 0, "no image has a region: the weights are not calibrated"
    return Speed(done.totals.images / seconds, gpu=gpu.percent(), wait=done.data_wait)


class Utilisation:
    """What nvidia-smi says of the GPU five times a second; nothing without a GPU."""

    def __enter__(self) -> "Utilisation":
        self._process, self._seen = None, ""
        if torch.cuda.is_available() and shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            self._process = subprocess.Popen([*query, "-i", visible], stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._seen, _ = self._process.communicate()

    def percent(self) -> float | None:
        """The mean; None when nothing was seen."""
        values = [float(line) for line in self._seen.split() if line.strip().isdecimal()]
        return statistics.mean(values) if values else None


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock() -> float:
    return time.monotonic() if torch.cuda.is_available() else time.process_time()


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def row(shape: str, size: int, way: str, speed: Speed, *, share: float) -> str:
    gpu = "-" if speed.gpu is None else f"{speed.gpu:.0f} %"
    wait = "-" if speed.wait is None else f"{speed.wait:.0%}"
    return f"| {shape} | {size} | {way} | {speed.images_per_second:.2f} | {share:.2f} | {gpu} | {wait} |"


if __name__ == "__main__":
    main()
