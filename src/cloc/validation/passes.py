"""One pass over the shards, in one or several processes, in memory that does not grow with their number.

The unit of work is a block: a few shards in a row, always the same ones. A block gives sums; sums of blocks are merged
in the blocks' order. So what comes out does not depend on how many processes worked, to the last bit.

Where sums are kept, in a folder or `s3://` prefix, a pass that was killed goes on with what stands there, and machines
share the work: each checks its own blocks, and the pass that judges finds all of them done.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cloc.config import Config
from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.processes import in_order, processes_of
from cloc.data.schema import Manifest, Shard, Table
from cloc.data.selection import ALL, Selection
from cloc.data.storage import Storage, open_storage
from cloc.stage import fingerprint
from cloc.validation.engine import Engine
from cloc.validation.frames import load_shard
from cloc.validation.gallery import RandomSamples
from cloc.validation.results import Tally
from cloc.validation.suites import suites
from cloc.validation.summary import Summary

# Raise it when the same shards come to other sums than before, so that kept ones are made again.
_VERSION = 1
_SECTIONS = ("data", "grounding", "validation")
_SPEED = {"processes", "decode_threads"}  # settings that change how fast it goes
_BLOCK_IMAGES = 10_000
_SAMPLES = 6
_PROGRESS_SECONDS = 5.0


@dataclass
class Sums:
    """What some shards came to: sums whose size does not depend on their number.

    Attributes:
        tallies: of the row-wise checks, by id.
        summary: numbers of the set.
    """

    tallies: dict[str, Tally] = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)

    def merge(self, other: "Sums") -> None:
        """Adds the sums of later shards."""
        for check, tally in other.tallies.items():
            self.tallies.setdefault(check, Tally()).merge(tally)
        self.summary.merge(other.summary)

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` takes."""
        tallies = {check: asdict(tally) for check, tally in self.tallies.items()}
        return {"tallies": tallies, "summary": self.summary.to_json()}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Sums":
        """The inverse of `to_json`."""
        tallies = {check: Tally.from_json(tally) for check, tally in body["tallies"].items()}
        return cls(tallies, Summary.from_json(body["summary"]))


@dataclass(frozen=True)
class Block:
    """Shards in a row, where they, their tables and kept sums lie; plain values, so that processes can be given it."""

    config: Config
    images: str
    captions: str
    regions: str
    kept: str
    shards: tuple[Shard, ...]

    @property
    def size(self) -> int:
        """Number of images."""
        return sum(shard.images for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides what the block comes to; reads the ends of its tables alone."""
        dataset = self.open()
        roots: tuple[tuple[Table, Storage], ...] = (
            ("captions", dataset.captions),
            ("regions", dataset.regions),
            ("quarantine", dataset.captions),
            ("quarantine", dataset.regions),
        )
        hashes = [
            (shard.name, shard.content, *(tables.content_hash(root, table, shard.name) for table, root in roots))
            for shard in self.shards
        ]
        sections = {name: getattr(self.config, name).model_dump(mode="json", exclude=_SPEED) for name in _SECTIONS}
        return fingerprint(_VERSION, sections, hashes)

    def open(self) -> Dataset:
        """These shards as a data set: the whole one's manifest is read once and not again for every block."""
        return Dataset(
            images=open_storage(self.images),
            manifest=Manifest(shards=self.shards),
            captions=open_storage(self.captions),
            regions=open_storage(self.regions),
        )


@dataclass
class Pass:
    """What a pass over shards gives."""

    sums: Sums
    samples: RandomSamples

    @classmethod
    def empty(cls, config: Config) -> "Pass":
        """A pass over nothing yet."""
        return cls(Sums(), RandomSamples(size=_SAMPLES, max_pixels=config.data.max_pixels))


def check_shards(config: Config, dataset: Dataset, *, kept: str = "", selection: Selection = ALL) -> Pass:
    """Checks the shards of a data set.

    Args:
        config: all settings.
        dataset: the open data set.
        kept: folder or `s3://` prefix of the sums of blocks that stand already, and where others go; "" keeps none.
        selection: which blocks.

    Raises:
        DataError: a shard is empty or damaged, or one of its tables is missing.
        ClocError: a process died.
    """
    blocks = selection.of(_blocks(config, dataset, kept=kept))
    processes = processes_of(config.validation.processes)
    found = Pass.empty(config)
    parts = in_order(check_block, blocks, processes=processes, what="validation", setting="validation.processes")
    progress = _Progress(dataset.manifest.images)
    for block, part in zip(blocks, parts, strict=True):
        found.sums.merge(part.sums)
        found.samples.merge(part.samples)
        progress.advance(block.size)
    found.sums.summary.refused = dataset.manifest.quarantined
    return found


def check_block(block: Block) -> Pass:
    """What the shards of one block come to: found where sums are kept, or checked, and then kept."""
    if not block.kept:
        return _check_block(block)
    storage, path = open_storage(block.kept), f"{block.fingerprint}.json"
    if storage.exists(path):
        body, found = json.loads(storage.read_bytes(path)), Pass.empty(block.config)
        found.sums.merge(Sums.from_json(body["sums"]))
        found.samples.load(body["samples"])
        return found
    found = _check_block(block)
    body = {"sums": found.sums.to_json(), "samples": found.samples.to_json()}
    storage.write_bytes(path, json.dumps(body).encode())
    return found


def _check_block(block: Block) -> Pass:
    config, dataset, engine = block.config, block.open(), Engine()
    checks = suites(config)
    images = engine.table_suite(table="images", checks=checks.images)
    captions = engine.table_suite(table="captions", checks=checks.captions)
    regions = engine.table_suite(table="regions", checks=checks.regions)
    summary = Summary()
    samples = RandomSamples(size=_SAMPLES, max_pixels=config.data.max_pixels)
    for shard in block.shards:
        frames = load_shard(dataset, shard, watch=samples.offer)
        samples.draw(frames)
        images.add(frames.images, shard=frames.name)
        captions.add(frames.captions, shard=frames.name)
        regions.add(frames.regions, shard=frames.name)
        summary.add(frames)
    tallies = {**images.tallies(), **captions.tallies(), **regions.tallies()}
    return Pass(Sums(tallies, summary), samples)


def _blocks(config: Config, dataset: Dataset, *, kept: str) -> list[Block]:
    groups: list[list[Shard]] = [[]]
    for shard in dataset.manifest.shards:
        if sum(item.images for item in groups[-1]) >= _BLOCK_IMAGES:
            groups.append([])
        groups[-1].append(shard)
    places = (dataset.images.url, dataset.captions.url, dataset.regions.url)
    return [Block(config, *places, kept, tuple(group)) for group in groups]


class _Progress:
    """Says now and then how far it is."""

    def __init__(self, images: int) -> None:
        self._images, self._done = images, 0
        self._started = self._printed = time.monotonic()

    def advance(self, images: int) -> None:
        self._done += images
        now = time.monotonic()
        if now - self._printed >= _PROGRESS_SECONDS:
            self._printed = now
            line = f"validation: {self._done:,} of {self._images:,} images, {now - self._started:.0f} s"
            print(line, file=sys.stderr, flush=True)
