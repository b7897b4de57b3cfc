"""What this machine does, measured in less than a minute: a training step, decoding, reading."""

import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor

from cloc.config import Config
from cloc.data.batches import Batch
from cloc.data.transforms import Picture
from cloc.model import factory
from cloc.training.flops import Load, costs_of, peak_flops
from cloc.training.plan.figures import Figure, Origin
from cloc.training.plan.sizes import Sizes
from cloc.training.task import CLOCTask, Objective

GIB = 1 << 30
_READ_BYTES = 256 << 20
_DECODE_S, _STEP_S = 3.0, 20.0
_CAPTION_TOKENS, _REGION_TOKENS = 77, 12


@dataclass(frozen=True)
class Machine:
    """This machine.

    Attributes:
        name: of its GPU, or of its processor.
        devices: GPUs; on processors the processes that share them.
        bfloat16: whether training computes in it here.
        processors: whether it has no GPU, so that the model and the loader share cores.
        eager: whether attention keeps its weights.
        figures: what was measured, by name; without those of the model where a step would take too long.
    """

    name: str
    devices: int
    bfloat16: bool
    processors: bool
    eager: bool
    figures: dict[str, Figure]


def measure(config: Config, sizes: Sizes, *, objective: Objective) -> Machine:
    """Measures this machine with the model of these settings."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    processors, bfloat16 = device.type == "cpu", factory.uses_bfloat16(config.train.precision, device)
    devices = config.train.processes if processors else torch.cuda.device_count()
    name = f"{torch.get_num_threads()} threads" if processors else torch.cuda.get_device_name(device)
    peak = peak_flops(device, bfloat16=bfloat16)
    cores = len(os.sched_getaffinity(0)) / devices
    memory = psutil.virtual_memory().total / devices
    if not processors:
        memory = torch.cuda.get_device_properties(device).total_memory
    share = devices if processors else 1
    figures = {
        "gpu_memory": _found(memory / GIB, "GiB", "memory of a process", name),
        "gpu_peak": _found(peak.flops / share / 1e12, "TFLOP/s", "matrix products of a process", peak.source),
        "cores": _found(cores, "", "processor cores a process", "os.sched_getaffinity"),
        "decode": _decode(config),
        "storage_read": _read(),
        "context": _found(0.4 if processors else 1.5, "GiB", "libraries of a process", "torch and transformers loaded"),
        "gpu_link": Figure(10 if processors else 50, "GB/s", "between processes", "memory or PCIe of one machine"),
        "network": Figure(10, "Gbit/s", "between machines", "a usual network card"),
    }
    attention = factory.attention(config.train.precision, device)
    utilisation = _step(config, sizes, device, attention, objective=objective, peak=peak.flops)
    if utilisation:
        figures["utilisation"] = utilisation
    return Machine(name, devices, bfloat16, processors, attention == "eager", figures)


def _found(value: float, unit: str, what: str, source: str) -> Figure:
    return Figure(value, unit, what, source, Origin.MEASURED)


def _decode(config: Config) -> Figure:
    """JPEGs like photographs (smooth, with noise), decoded and resized on one core."""
    rng, size = np.random.default_rng(0), config.model.vision.image_size
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (512, 384), Image.Resampling.BICUBIC
    )
    noisy = np.clip(np.asarray(smooth, dtype=np.int16) + rng.normal(0, 12, (384, 512, 1)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy).save(stream, format="JPEG", quality=90)
    body = stream.getvalue()
    count, began = 0, time.process_time()
    while (spent := time.process_time() - began) < _DECODE_S:
        Picture(body).letterbox(size)
        count += 1
    what = "decoded and resized by a core"
    return _found(count / spent, "images/s", what, f"a JPEG of 512 x 384, {len(body) / 1000:.0f} kB, to {size} px")


def _read() -> Figure:
    """A file in the working directory, written, dropped from memory, and read."""
    with tempfile.NamedTemporaryFile(dir=Path.cwd(), prefix=".cloc-plan-") as file:
        file.write(os.urandom(1 << 20) * (_READ_BYTES >> 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began = time.perf_counter()
        while file.read(1 << 20):
            pass
        spent = time.perf_counter() - began
    return _found(_READ_BYTES / spent / 1e6, "MB/s", "read from the storage by a machine", f"256 MiB in {Path.cwd()}")


def _step(
    config: Config, sizes: Sizes, device: torch.device, attention: str, *, objective: Objective, peak: float
) -> Figure | None:
    """Share of the peak that forward and backward reach; None where three steps would take longer than 20 s."""
    shape = factory.architecture(config.model)
    whole = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": 0})})
    costs = costs_of(whole, objective=objective)
    an_image = costs.step(_load(config, sizes, 1, objective)).hardware
    images = min(64, config.train.batch_size, int(_STEP_S / 3 * 0.3 * peak / an_image))
    if images < 2:
        return None
    batch = _batch(config, sizes, images).to(device)
    shape._attn_implementation = attention
    shape.cloc = (shape.cloc or {}) | {"points": bool(config.loss.point_share)}
    task = CLOCTask(factory.from_architecture(shape).to(device), config.loss, objective=objective).to(device)

    def run() -> None:
        with factory.autocast(config.train.precision, device):
            total: Tensor = task(batch).total
        total.backward()

    seconds = _seconds(run, device)
    flops = costs.step(_load(config, sizes, images, objective)).hardware
    source = f"forward and backward of {images} images: {seconds:.2f} s"
    return _found(flops / seconds / peak, "", "share of the peak that a step reaches", source)


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """Of the faster of two calls, after one to warm up."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found[1:])


def _load(config: Config, sizes: Sizes, images: int, objective: Objective) -> Load:
    caption, text = _lengths(sizes)
    places = images * config.loss.max_regions if objective == "cloc" else 0
    return Load.of(images, image_size=sizes.image_size, caption=caption, regions=places, text=text)


def _lengths(sizes: Sizes) -> tuple[int, int]:
    """Tokens of a caption and of a region's text; SigLIP's are padded to the full length."""
    longest = sizes.text.tokens
    if sizes.family == "siglip":
        return longest, longest
    return min(_CAPTION_TOKENS, longest), min(_REGION_TOKENS, longest)


def _batch(config: Config, sizes: Sizes, images: int) -> Batch:
    """Random images, texts and boxes."""
    regions, size = config.loss.max_regions, sizes.image_size
    captions, length = _lengths(sizes)
    corners = torch.rand(images, regions, 2, 2).sort(dim=2).values.flatten(2)
    return Batch(
        keys=tuple(map(str, range(images))),
        pixels_BSS3=torch.randint(256, (images, size, size, 3), dtype=torch.uint8),
        caption_ids_BL=torch.randint(3, 300, (images, captions)),
        boxes_BM4=corners,
        points_BM2=corners[..., :2],
        pointed_BM=torch.zeros(images, regions, dtype=torch.bool),
        present_BM=torch.ones(images, regions, dtype=torch.bool),
        text_ids_UL=torch.randint(3, 300, (images * regions, length)),
        text_index_BM=torch.arange(images * regions).view(images, regions),
    )
