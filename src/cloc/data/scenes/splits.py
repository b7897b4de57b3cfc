"""The splits of the demo data set, and one shard of one of them: what a process writes in one go."""

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from cloc.config.schema import ScenesConfig
from cloc.data import fingerprints
from cloc.data.images import perceptual_hash
from cloc.data.scenes import attributes
from cloc.data.scenes.alt_text import alt_text, region_text
from cloc.data.scenes.captions import caption
from cloc.data.scenes.render import Scene, encode_jpeg, render
from cloc.data.scenes.vocabulary import KINDS, TINTS, Pair, trained_pairs, unseen_kind_pairs, unseen_pairs
from cloc.data.schema import Shard
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import Storage, open_storage
from cloc.data.tables import is_current, read_table, write_table
from cloc.data.transforms import decode
from cloc.stage import fingerprint

# Part of what a shard's tables are compared by: raise it whenever the same settings give other pictures or texts.
VERSION = 1
SOURCE = "cloc scenes"
LICENCE = "CC-BY-4.0 (icons: Font Awesome Free 6.6.0)"

# Splits that are not evaluated: they ask no questions about attributes.
TRAINED_ON = ("train", "seed")

# What each split may show.
SPLITS = {
    "train": trained_pairs,
    "seed": trained_pairs,
    "val": trained_pairs,
    "test": trained_pairs,
    "unseen_pairs": unseen_pairs,
    "unseen_kinds": unseen_kind_pairs,
}


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: pictures number `start` to `stop` (exclusive) of a split, into the data set at `url`."""

    url: str
    split: str
    name: str
    start: int
    stop: int
    seed: int
    image_size: int
    closeup_share: float

    @property
    def config_hash(self) -> str:
        """Hash of all that the shard's bytes follow from."""
        settings = {key: value for key, value in asdict(self).items() if key != "url"}
        return fingerprint(VERSION, _vocabulary_hash(), settings)

    @property
    def asks(self) -> bool:
        """Whether the split has questions about attributes: those that are evaluated do."""
        return self.split not in TRAINED_ON

    def asked(self, storage: Storage, shard: Shard) -> bool:
        """Whether the shard's questions about attributes are there, or it has none."""
        return not self.asks or is_current(storage, "attributes", self.name, **self._attribute_hashes(shard))

    def ask(self, storage: Storage, shard: Shard, regions: Iterable[Mapping[str, Any]]) -> None:
        """Writes the questions about the attributes of the shard's regions, where the split has them."""
        if self.asks:
            rows = attributes.questions(regions)
            write_table(storage, "attributes", self.name, rows, **self._attribute_hashes(shard))

    def _attribute_hashes(self, shard: Shard) -> dict[str, str]:
        return {"input_hash": shard.sha256, "config_hash": fingerprint(attributes.VERSION, self.config_hash)}


@dataclass(frozen=True)
class ShardReport:
    """A shard that lies there: its manifest entry, its regions, and whether it lay there before."""

    shard: Shard
    regions: int
    reused: bool


def shard_jobs(url: str, split: str, *, images: int, images_per_shard: int, scenes: ScenesConfig) -> list[ShardJob]:
    """The shards of a split, in order."""
    return [
        ShardJob(
            url=url,
            split=split,
            name=f"{index:05d}",
            start=start,
            stop=min(start + images_per_shard, images),
            seed=scenes.seed,
            image_size=scenes.image_size,
            closeup_share=scenes.closeup_share,
        )
        for index, start in enumerate(range(0, images, images_per_shard))
    ]


def write_shard(job: ShardJob) -> ShardReport:
    """Writes the tar and then its tables, unless they lie there, whole and made with the same settings."""
    storage = open_storage(job.url)
    existing = _existing(storage, job)
    if existing is not None:
        return existing
    writer = ShardWriter()
    captions: list[dict[str, Any]] = []
    regions: list[dict[str, Any]] = []
    prints: list[dict[str, Any]] = []
    for index in range(job.start, job.stop):
        sample = _add_picture(job, index, writer=writer, captions=captions, regions=regions)
        prints.append(fingerprints.row(sample.key, sample.image, perceptual_hash(decode(sample.image))))
    shard = writer.write(storage, job.name)
    hashes = {"input_hash": shard.sha256, "config_hash": job.config_hash}
    write_table(storage, "captions", job.name, captions, **hashes)
    write_table(storage, "regions", job.name, regions, **hashes)
    job.ask(storage, shard, regions)
    fingerprints.write(storage, shard, prints)
    return ShardReport(shard=shard, regions=len(regions), reused=False)


def picture(job: ShardJob, index: int) -> tuple[np.random.Generator, Scene]:
    """Picture number `index` of the job's split, and its generator as the rendering left it: the texts come next."""
    rng = np.random.default_rng([job.seed, zlib.crc32(job.split.encode()), index])
    pairs: Sequence[Pair] = SPLITS[job.split]()
    return rng, render(rng, pairs=pairs, size=job.image_size, closeup_share=job.closeup_share)


def _add_picture(
    job: ShardJob, index: int, *, writer: ShardWriter, captions: list[dict[str, Any]], regions: list[dict[str, Any]]
) -> Sample:
    rng, scene = picture(job, index)
    key = f"{job.split}-{index:08d}"
    height, width, _ = scene.pixels.shape
    meta = {
        "alt_text": alt_text(rng, scene),
        "source": SOURCE,
        "licence": LICENCE,
        "width": width,
        "height": height,
        "closeup": scene.closeup,
    }
    body = encode_jpeg(scene.pixels, quality=int(rng.integers(75, 96)))
    sample = Sample(key=key, image=body, suffix="jpg", meta=meta)
    writer.add(sample)
    captions.append({"key": key, "text": caption(rng, scene), "kind": "human", "model": "human"})
    for item in scene.objects:
        x1, y1, x2, y2 = item.box
        text = region_text(rng, item)
        row = {"key": key, "x1": x1, "y1": y1, "x2": x2, "y2": y2, "text": text}
        regions.append({**row, "score": 1.0, "source": "human", "label": item.kind.name})
    return sample


def _existing(storage: Storage, job: ShardJob) -> ShardReport | None:
    path = f"images/{job.name}.tar"
    if not storage.exists(path):
        return None
    body = storage.read_bytes(path)
    digest = hashlib.sha256(body).hexdigest()
    shard = Shard(name=job.name, path=path, images=job.stop - job.start, bytes=len(body), sha256=digest)
    hashes = {"input_hash": shard.sha256, "config_hash": job.config_hash}
    if not is_current(storage, "captions", job.name, **hashes):
        return None
    if not is_current(storage, "regions", job.name, **hashes):
        return None
    if not fingerprints.is_made(storage, shard):
        return None
    regions = read_table(storage, "regions", job.name).to_pylist()
    if not job.asked(storage, shard):
        job.ask(storage, shard, regions)
    return ShardReport(shard=shard, regions=len(regions), reused=True)


@cache
def _vocabulary_hash() -> str:
    return fingerprint([asdict(kind) for kind in KINDS], [asdict(tint) for tint in TINTS])
