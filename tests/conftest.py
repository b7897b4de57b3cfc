"""Shared fixtures. `make_dataset` writes a small, complete data set by the contract.

def test_it(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "train", 8, shard_size=4)
"""

import io
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import psutil
import pytest
from PIL import Image

from cloc.data.dataset import write_manifest
from cloc.data.schema import Manifest, Shard
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import open_storage
from cloc.data.tables import write_table

# Tests share few cores: more threads only make them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["CLOC_CACHE"] = "none"  # tests of the cache name one of their own
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "yellow": (230, 210, 50)}
THINGS = ("box", "ball", "key", "apple")
SIZES = ((64, 48), (48, 64), (56, 56))


def children(of: psutil.Process | None = None, *, recursive: bool = False) -> list[psutil.Process]:
    """A process's children, without the one that multiprocessing keeps for itself as long as its parent lives."""
    every = (of or psutil.Process()).children(recursive=recursive)
    return [child for child in every if "multiprocessing.resource_tracker" not in " ".join(child.cmdline())]


def write_dataset(
    path: str | Path,
    n: int,
    *,
    shard_size: int = 4,
    seed: int = 0,
    sizes: Collection[tuple[int, int]] = SIZES,
    captions: bool = True,
    regions: bool = True,
    broken: Collection[int] = (),
) -> str:
    """Writes `n` random images, each with two coloured rectangles that its captions and regions name.

    Args:
        path: folder or URL of the new data set.
        n: number of images; their keys are 000000, 000001, ...
        shard_size: images a shard.
        sizes: (width, height) of the images, taken in turn.
        captions: whether to write a captions table: one human caption and the alt-text, an image.
        regions: whether to write a regions table: two human boxes with label and text, an image.
        broken: numbers of the images whose JPEG is truncated.

    Returns:
        The path as a string.
    """
    storage = open_storage(path)
    rng = np.random.default_rng(seed)
    shards: list[Shard] = []
    for first in range(0, n, shard_size):
        name, writer = f"{len(shards):05d}", ShardWriter()
        caption_rows: list[dict[str, Any]] = []
        region_rows: list[dict[str, Any]] = []
        for number in range(first, min(n, first + shard_size)):
            size = tuple(sizes)[number % len(sizes)]
            _add(writer, number, size, rng, caption_rows, region_rows, broken=number in broken)
        shards.append(writer.write(storage, name))
        if captions:
            write_table(storage, "captions", name, caption_rows)
        if regions:
            write_table(storage, "regions", name, region_rows)
    manifest = Manifest(shards=tuple(shards), classes=THINGS, made_by={"tool": "tests", "seed": seed})
    write_manifest(storage, manifest)
    return str(path)


def _add(
    writer: ShardWriter,
    number: int,
    size: tuple[int, int],
    rng: np.random.Generator,
    caption_rows: list[dict[str, Any]],
    region_rows: list[dict[str, Any]],
    *,
    broken: bool,
) -> None:
    key, (width, height) = f"{number:06d}", size
    pixels = rng.integers(90, 140, (height, width, 3), dtype=np.uint8)
    names: list[str] = []
    for side in (0, 1):  # one thing in the left half, one in the right
        color, label = str(rng.choice(list(COLORS))), str(rng.choice(THINGS))
        x1, x2 = 0.5 * side + rng.uniform(0.02, 0.1), 0.5 * side + rng.uniform(0.3, 0.48)
        y1, y2 = rng.uniform(0.05, 0.3), rng.uniform(0.6, 0.95)
        pixels[int(y1 * height) : int(y2 * height), int(x1 * width) : int(x2 * width)] = COLORS[color]
        box = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        names.append(f"{color} {label}")
        region_rows.append({"key": key, **box, "text": names[-1], "score": 1.0, "source": "human", "label": label})
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=90)
    body = stream.getvalue()
    alt_text = f"free download photo {names[0]}"
    meta = {"alt_text": alt_text, "source": "tests", "licence": "Apache-2.0", "width": width, "height": height}
    writer.add(Sample(key=key, image=body[: len(body) // 2] if broken else body, suffix="jpg", meta=meta))
    text = f"a {names[0]} left of a {names[1]}"
    caption_rows.append({"key": key, "text": text, "kind": "human", "model": ""})
    caption_rows.append({"key": key, "text": alt_text, "kind": "alt_text", "model": ""})


@pytest.fixture
def make_dataset() -> Callable[..., str]:
    """The function `write_dataset(path, n, ...) -> path`."""
    return write_dataset


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: small models, and tests that run beside others."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny CLOC encoder for adapters."""
    from tests.tiny_adapters import save_encoder

    return save_encoder(tmp_path_factory.mktemp("encoder"))


def assert_same(one: Any, other: Any) -> None:
    """Tensors are equal but for the last bits, which depend on the processor and on where a tensor lies."""
    import torch

    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
