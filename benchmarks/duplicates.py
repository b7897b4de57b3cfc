"""Fingerprints: what they cost, the search for duplicates over a million of them, and what they tell apart.

    python benchmarks/duplicates.py speed --images 1000000 --bits 6
    python benchmarks/duplicates.py threshold --images ../shared/data/coco_val2017_dev/images
    python benchmarks/duplicates.py check --images ../shared/data/coco_val2017_dev/images

`speed` makes a data set of random hashes with planted duplicates and blank pages, searches it, and takes the time of
two plain ways: a dict for equal files, and comparing each hash with all earlier ones (of a sample, times the images).
`threshold` counts, over a folder of photographs that are all different, the pairs that each distance would call
duplicates, and how many copies it finds: compressed hard, halved, and cropped.
`check` takes the processor's time of the check at ingest, of bare decoding, and of the perceptual hash here and there.
"""

import argparse
import io
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from cloc.data import fingerprints
from cloc.data.dataset import Dataset, write_manifest
from cloc.data.duplicates.search import MEMORY, search
from cloc.data.images import as_seen, check_image, perceptual_hash
from cloc.data.schema import Manifest, Shard
from cloc.data.storage import open_storage

_PER_SHARD = 10_000
_SAMPLE = 3000  # images that are compared with all before them
_CHECKED, _ROUNDS = 300, 5
_DISTANCES = range(0, 17, 2)  # pHash has as many ones as zeros: distances are even


def make_set(folder: str, *, images: int, rng: np.random.Generator) -> Dataset:
    """A data set of fingerprints alone: 1 % equal files, 5 % near pictures, 5 % blank pages."""
    phash = rng.integers(0, 1 << 63, images, dtype=np.uint64) << np.uint64(1)
    sha256 = rng.integers(0, 1 << 63, (images, 4), dtype=np.uint64)
    of, copies = rng.integers(0, images, (2, images // 20))
    phash[copies] = phash[of] ^ (np.uint64(1) << rng.integers(0, 64, len(of), dtype=np.uint64))
    of, copies = rng.integers(0, images, (2, images // 100))
    phash[copies], sha256[copies] = phash[of], sha256[of]
    phash[rng.integers(0, images, images // 20)] = 1 << 63
    storage, shards = open_storage(folder), []
    for number, start in enumerate(range(0, images, _PER_SHARD)):
        stop = min(start + _PER_SHARD, images)
        shard = Shard(f"{number:05d}", f"images/{number:05d}.tar", stop - start, 1, f"{number:064x}")
        rows = [
            {"key": f"{index:09d}", "sha256": sha256[index].tobytes(), "phash": int(phash[index])}
            for index in range(start, stop)
        ]
        fingerprints.write(storage, shard, rows)
        shards.append(shard)
    write_manifest(storage, Manifest(shards=tuple(shards)))
    return Dataset.open(folder)


def speed(images: int, bits: int, memory: int) -> None:
    """Prints the search's time and peak memory, and those of the plain ways."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_set(folder, images=images, rng=np.random.default_rng(0))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        found = [duplicate for _, rows in search(dataset, bits=bits, memory=memory) for duplicate in rows]
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        exact = sum(duplicate.exact for duplicate in found)
        print(f"search: {images} images, {bits} bits, {seconds:.1f} s, peak {peak >> 10} MiB ({before >> 10} before)")
        print(f"        {exact} exact, {len(found) - exact} near")
        prints = [fingerprints.read(dataset, shard) for shard in dataset.manifest.shards]
        _baselines([item.sha256_N4 for item in prints], np.concatenate([item.phash_N for item in prints]), bits)


def _baselines(sha256: list[npt.NDArray[np.uint64]], phash_N: npt.NDArray[np.uint64], bits: int) -> None:
    started = time.perf_counter()
    first: dict[bytes, int] = {}
    equal = 0
    for index, words in enumerate(words for part in sha256 for words in part):
        equal += first.setdefault(words.tobytes(), index) != index
    print(f"dict of equal files: {time.perf_counter() - started:.1f} s, {equal} exact")
    picked = np.linspace(1, len(phash_N) - 1, _SAMPLE).astype(int)
    started = time.perf_counter()
    near = sum(int(np.bitwise_count(phash_N[:index] ^ phash_N[index]).min()) <= bits for index in picked)
    seconds = (time.perf_counter() - started) * len(phash_N) / _SAMPLE
    print(f"each with all before (numpy, {_SAMPLE} images, extrapolated): {seconds:.0f} s, {near / _SAMPLE:.1%} near")


def _recompressed(image: Image.Image) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=30)
    return Image.open(sink).convert("RGB")


def _halved(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image) -> Image.Image:
    x, y = round(0.015 * image.width), round(0.015 * image.height)
    return image.crop((x, y, image.width - x, image.height - y))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 30": _recompressed,
    "half the size": _halved,
    "3 % cropped off": _cropped,
}


def threshold(folder: Path) -> None:
    """Prints false pairs and found copies by distance."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    hashes: list[int] = []
    off: dict[str, list[int]] = {name: [] for name in COPIES}
    for path in files:
        with Image.open(path) as opened:
            image = as_seen(opened)
        hashes.append(perceptual_hash(image))
        for name, change in COPIES.items():
            off[name].append((perceptual_hash(change(image)) ^ hashes[-1]).bit_count())
    phash_N = np.array(hashes, dtype=np.uint64)
    first, second = np.triu_indices(len(phash_N), 1)
    distance = np.bitwise_count(phash_N[first] ^ phash_N[second])
    print(f"| bits | pairs of {len(files)} | {' | '.join(COPIES)} |")
    for bits in _DISTANCES:
        recalls = [f"{np.mean(np.array(off[name]) <= bits):.1%}" for name in COPIES]
        print(f"| {bits} | {int((distance <= bits).sum())} | {' | '.join(recalls)} |")


def check(folder: Path) -> None:
    """Prints the time an image of the check and of its parts."""
    bodies = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:_CHECKED]]
    pictures = [as_seen(Image.open(io.BytesIO(body))) for body in bodies]
    ways: dict[str, Callable[[int], object]] = {
        "check_image": lambda index: check_image(bodies[index], min_side=16, max_pixels=1 << 26),
        "bare decode": lambda index: Image.open(io.BytesIO(bodies[index])).load(),
        "perceptual_hash": lambda index: perceptual_hash(pictures[index]),
        "imagehash.phash": lambda index: imagehash.phash(pictures[index]),
    }
    for name, way in ways.items():
        times = []
        for _ in range(_ROUNDS):
            started = time.process_time()
            for index in range(len(bodies)):
                way(index)
            times.append(time.process_time() - started)
        seconds = min(times) / len(bodies)
        print(f"{name}: {1000 * seconds:.2f} ms an image, {1 / seconds:.0f} a second and core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("speed")
    verb.add_argument("--images", type=int, default=1_000_000)
    verb.add_argument("--bits", type=int, default=6)
    verb.add_argument("--memory", type=int, default=MEMORY, help="bytes that the search works in")
    for name in ("threshold", "check"):
        verbs.add_parser(name).add_argument("--images", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.verb == "speed":
        speed(arguments.images, arguments.bits, arguments.memory)
    elif arguments.verb == "threshold":
        threshold(arguments.images)
    else:
        check(arguments.images)


if __name__ == "__main__":
    main()
