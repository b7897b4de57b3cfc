"""Which images the report shows: a fixed random choice, and images of the worst findings."""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from cloc.config import Config
from cloc.data.dataset import Dataset
from cloc.data.shards import Sample
from cloc.validation.frames import ShardFrames, load_shard
from cloc.validation.pictures import Picture, make_picture
from cloc.validation.results import CheckResult, Example, failures_first

_MOST, _MOST_A_CHECK, _MOST_WITHIN = 24, 3, 1
_MOST_SHARDS = 8


_PICTURE = TypeAdapter(Picture)


@dataclass(order=True)
class _Candidate:
    # heapq pops the smallest: the negated hash keeps the samples with the smallest hashes.
    rank: int
    sample: Sample | None = field(compare=False)
    picture: Picture | None = field(compare=False, default=None)


@dataclass
class RandomSamples:
    """A fixed random choice of `size` images (the smallest hashes of keys), kept while the shards go by."""

    size: int
    max_pixels: int
    _heap: list[_Candidate] = field(default_factory=list)

    def offer(self, sample: Sample) -> None:
        """Keeps the sample while it is among the chosen."""
        self._keep(_Candidate(-_hash(sample.key), sample))

    def draw(self, frames: ShardFrames) -> None:
        """Draws the samples that were chosen from this shard."""
        for item in self._heap:
            if item.sample is not None:
                item.picture = make_picture(item.sample, frames, max_pixels=self.max_pixels)
                item.sample = None

    def merge(self, other: "RandomSamples") -> None:
        """Takes in what was chosen from other shards."""
        for item in other._heap:
            self._keep(item)

    def pictures(self) -> list[Picture]:
        """The chosen pictures, in an order that depends on their keys only."""
        return [item.picture for item in sorted(self._heap, reverse=True) if item.picture is not None]

    def to_json(self) -> list[dict[str, Any]]:
        """The pictures drawn so far, as JSON values that `load` takes."""
        return [{"rank": item.rank, "picture": asdict(item.picture)} for item in self._heap if item.picture is not None]

    def load(self, body: Sequence[Mapping[str, Any]]) -> None:
        """Takes in what `to_json` gave."""
        for item in body:
            self._keep(_Candidate(item["rank"], sample=None, picture=_PICTURE.validate_python(item["picture"])))

    def _keep(self, candidate: _Candidate) -> None:
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, candidate)
        elif self._heap and candidate > self._heap[0]:
            heapq.heapreplace(self._heap, candidate)


@dataclass(frozen=True)
class Shown:
    """The pictures of a check's findings; `elsewhere` is the check that shows the same images, "" for none."""

    pictures: tuple[Picture, ...] = ()
    elsewhere: str = ""


@dataclass(frozen=True)
class _Finding:
    result: CheckResult
    example: Example


def draw_findings(config: Config, dataset: Dataset, results: Sequence[CheckResult]) -> dict[str, Shown]:
    """Pictures of the rows that broke checks, by the check's id; reads at most a few shards again."""
    chosen, elsewhere = _choose(results)
    by_shard: dict[str, list[_Finding]] = defaultdict(list)
    for finding in chosen:
        by_shard[finding.example.shard].append(finding)
    pictures: dict[str, list[Picture]] = defaultdict(list)
    for shard in dataset.manifest.shards:
        if shard.name not in by_shard:
            continue
        findings, samples = by_shard[shard.name], dict[str, Sample]()
        watch = _Watch({finding.example.key for finding in findings}, samples)
        frames = load_shard(dataset, shard, watch=watch.see)
        for finding in findings:
            if (sample := samples.get(finding.example.key)) is not None:
                pictures[finding.result.id].append(_draw(config, finding.result, sample, frames))
    shown = {check: Shown(elsewhere=other) for check, other in elsewhere.items() if pictures[other]}
    return shown | {check: Shown(tuple(items)) for check, items in pictures.items() if items}


@dataclass(frozen=True)
class _Watch:
    keys: set[str]
    samples: dict[str, Sample]

    def see(self, sample: Sample) -> None:
        if sample.key in self.keys:
            self.samples[sample.key] = sample


def _choose(results: Sequence[CheckResult]) -> tuple[list[_Finding], dict[str, str]]:
    """A few findings of each check, from few shards; an image is shown once, and other checks refer to it."""
    chosen: list[_Finding] = []
    shards: set[str] = set()
    owners: dict[tuple[str, str], str] = {}
    elsewhere: dict[str, str] = {}
    for result in failures_first(results):
        most = _MOST_WITHIN if result.passed else _MOST_A_CHECK
        own = 0
        for example in result.examples:
            place = (example.shard, example.key)
            if owners.get(place, result.id) != result.id:
                elsewhere.setdefault(result.id, owners[place])
            elif _fits(example, shards) and place not in owners and own < most and len(chosen) < _MOST:
                chosen.append(_Finding(result, example))
                shards.add(example.shard)
                owners[place] = result.id
                own += 1
    return chosen, elsewhere


def _fits(example: Example, shards: set[str]) -> bool:
    return bool(example.key) and (example.shard in shards or len(shards) < _MOST_SHARDS)


def _draw(config: Config, result: CheckResult, sample: Sample, frames: ShardFrames) -> Picture:
    bad = {result.table: [example.row for example in result.examples if example.shard == frames.name]}
    return make_picture(sample, frames, max_pixels=config.data.max_pixels, bad=bad)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode(errors="backslashreplace")).digest()[:8], "big")
