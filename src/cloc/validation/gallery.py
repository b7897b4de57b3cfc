"""Which images the report shows: a fixed random choice, and images of the worst findings."""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from cloc.config import Config
from cloc.data.dataset import Dataset
from cloc.data.shards import Sample
from cloc.validation.frames import ShardFrames, load_shard
from cloc.validation.pictures import Picture, make_picture
from cloc.validation.results import CheckResult, Example, failures_first

_FINDINGS = 8
_FINDINGS_A_CHECK = 2
_FINDING_SHARDS = 4


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
        candidate = _Candidate(-_hash(sample.key), sample)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, candidate)
        elif self._heap and candidate > self._heap[0]:
            heapq.heapreplace(self._heap, candidate)

    def draw(self, frames: ShardFrames) -> None:
        """Draws the samples that were chosen from this shard."""
        for item in self._heap:
            if item.sample is not None:
                item.picture = make_picture(item.sample, frames, title="", max_pixels=self.max_pixels)
                item.sample = None

    def pictures(self) -> list[Picture]:
        """The chosen pictures, in an order that depends on their keys only."""
        return [item.picture for item in sorted(self._heap, reverse=True) if item.picture is not None]


@dataclass(frozen=True)
class _Finding:
    result: CheckResult
    example: Example


def draw_findings(config: Config, dataset: Dataset, results: Sequence[CheckResult]) -> list[Picture]:
    """Pictures of the rows that broke checks, failed checks first; reads at most a few shards again."""
    by_shard: dict[str, list[_Finding]] = defaultdict(list)
    for finding in _choose(results):
        if finding.example.shard in by_shard or len(by_shard) < _FINDING_SHARDS:
            by_shard[finding.example.shard].append(finding)
    pictures: dict[str, list[Picture]] = defaultdict(list)
    for shard in dataset.manifest.shards:
        if shard.name not in by_shard:
            continue
        findings, samples = by_shard[shard.name], dict[str, Sample]()
        wanted = {finding.example.key for finding in findings}
        watch = _Watch(wanted, samples)
        frames = load_shard(dataset, shard, watch=watch.see)
        for finding in findings:
            if (sample := samples.get(finding.example.key)) is not None:
                pictures[finding.result.id].append(_draw(config, finding, sample, frames))
    order = [result.id for result in failures_first(results)]
    return [picture for check in order for picture in pictures[check]]


@dataclass(frozen=True)
class _Watch:
    keys: set[str]
    samples: dict[str, Sample]

    def see(self, sample: Sample) -> None:
        if sample.key in self.keys:
            self.samples[sample.key] = sample


def _choose(results: Sequence[CheckResult]) -> list[_Finding]:
    """A few findings of each check; an image is shown once."""
    chosen: list[_Finding] = []
    seen: set[tuple[str, str]] = set()
    for result in failures_first(results):
        taken = 0
        for example in result.examples:
            place = (example.shard, example.key)
            if taken < _FINDINGS_A_CHECK and place not in seen and example.key:
                chosen.append(_Finding(result, example))
                seen.add(place)
                taken += 1
    return chosen[:_FINDINGS]


def _draw(config: Config, finding: _Finding, sample: Sample, frames: ShardFrames) -> Picture:
    result = finding.result
    bad = {result.table: [example.row for example in result.examples if example.shard == frames.name]}
    title = result.name if not result.passed else f"{result.name} (within its limit)"
    return make_picture(sample, frames, title=title, max_pixels=config.data.max_pixels, bad=bad)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode(errors="backslashreplace")).digest()[:8], "big")
