"""What the report shows of single images and texts: from a few shards that lie evenly over those that were labelled.

The choice is fixed: the same shards, and of their images those with the smallest hashes of their keys. What is read is
a few shards, whatever the size of the data set, and what is held is the tables of one of them.
"""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from cloc import boxes
from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.schema import Shard, Table
from cloc.data.shards import Sample
from cloc.data.storage import Storage
from cloc.labeling.cards import Card, make_card
from cloc.labeling.names import Names
from cloc.labeling.quality import box_of
from cloc.labeling.statistics import ShardStats
from cloc.pages.charts import Chart, Histogram, chart

SHARDS = 4
PICTURES = 12
_COMMON = 20
_TEXT_CUT = 160
_COUNTED_CUT = 2_000  # longer texts that begin alike are counted as one


@dataclass(frozen=True)
class Labelled:
    """Where a stage's labels lie.

    Attributes:
        stage: its name, as in the quarantine table.
        table: the table that it made.
        data: the data set with the tables that the stage read; its regions are people's, where it has any.
        output: the storage of the table and of the quarantine.
        max_pixels: larger images are not shown.
    """

    stage: str
    table: Table
    data: Dataset
    output: Storage
    max_pixels: int


@dataclass(frozen=True)
class CommonText:
    """A text and how often it stands in the sample; `width` in percent of the commonest one's."""

    text: str
    count: int
    width: float


@dataclass(frozen=True)
class Look:
    """What was looked at, and what was seen.

    Attributes:
        shards: number of shards looked at.
        of: number of shards that are labelled.
        images, rows: images and rows of the stage's table (without alt-text) in them.
        distinct: distinct texts among the rows.
        charts: histograms over the images and rows.
        common: the commonest texts, of those that stand more than once.
        cards: pictures.
    """

    shards: int
    of: int
    images: int
    rows: int
    distinct: int
    charts: tuple[Chart, ...]
    common: tuple[CommonText, ...]
    cards: tuple[Card, ...]


Row = Mapping[str, Any]


def look_at(labelled: Labelled, per_shard: Sequence[tuple[str, ShardStats]], *, pictures: int = PICTURES) -> Look:
    """Looks at a few shards.

    Args:
        labelled: where the labels lie.
        per_shard: names and statistics of the shards that are labelled, in order.
        pictures: images to show at most.
    """
    chosen = dict(_spread(per_shard, SHARDS))
    histograms, common, rows_seen = _histograms(labelled.table), Counter[str](), 0
    best: list[_Candidate] = []
    for shard in labelled.data.manifest.shards:
        if shard.name not in chosen:
            continue
        by_key = _rows(labelled, shard)
        rows = [row for own in by_key.values() for row in own]
        images = chosen[shard.name].images - chosen[shard.name].quarantined
        _count(histograms, by_key, without=max(0, images - len(by_key)))
        common.update(row["text"][:_COUNTED_CUT] for row in rows)
        rows_seen += len(rows)
        if pictures:
            best = heapq.nsmallest(pictures, chain(best, _candidates(labelled, shard)))
    return Look(
        shards=len(chosen),
        of=len(per_shard),
        images=sum(stats.images for stats in chosen.values()),
        rows=rows_seen,
        distinct=len(common),
        charts=tuple(chart(histogram) for histogram in histograms.values()),
        common=_commonest(common),
        cards=tuple(_draw(labelled, best)),
    )


def _spread(per_shard: Sequence[tuple[str, ShardStats]], size: int) -> list[tuple[str, ShardStats]]:
    """`size` shards, or all, in the middles of equal parts."""
    size = min(size, len(per_shard))
    return [per_shard[(2 * part + 1) * len(per_shard) // (2 * size)] for part in range(size)]


def _rows(labelled: Labelled, shard: Shard) -> dict[str, list[Row]]:
    """Rows of the stage's own table by key, without the alt-text."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in tables.read_table(labelled.output, labelled.table, shard.name).to_pylist():
        if row.get("kind") != "alt_text":
            found[row["key"]].append(row)
    return found


@dataclass(frozen=True, order=True)
class _Candidate:
    """An image that may be shown, by the hash of its key."""

    rank: bytes
    sample: Sample = field(compare=False)
    shard: Shard = field(compare=False)


def _candidates(labelled: Labelled, shard: Shard) -> Iterator[_Candidate]:
    """The shard's images but for those that the stage refused."""
    refused: set[str] = set()
    if tables.has_table(labelled.output, "quarantine", shard.name):
        rows = tables.read_table(labelled.output, "quarantine", shard.name).to_pylist()
        refused = {row["key"] for row in rows if row["stage"] == labelled.stage}
    for sample in labelled.data.read_samples(shard):
        if sample.key not in refused:
            yield _Candidate(hashlib.sha256(sample.key.encode()).digest(), sample, shard)


def _draw(labelled: Labelled, candidates: Sequence[_Candidate]) -> Iterator[Card]:
    """Cards in the candidates' order."""
    names = Names(labelled.data.manifest.classes)
    shards = {candidate.shard.name: candidate.shard for candidate in candidates}
    beside = {name: _beside(labelled, shard) for name, shard in shards.items()}
    for candidate in candidates:
        own, key = beside[candidate.shard.name], candidate.sample.key
        regions, human = own.regions.get(key, []), own.human.get(key, [])
        yield make_card(
            candidate.sample,
            shard=candidate.shard.name,
            captions=[*own.captions.get(key, []), *_alt_text(candidate.sample, own.captions.get(key, []))],
            regions=regions,
            human=[] if all(row["source"] == "human" for row in regions) and regions else human,
            names=names,
            max_pixels=labelled.max_pixels,
        )


def _alt_text(sample: Sample, captions: Sequence[Row]) -> list[Row]:
    """The sample's own alt-text as a row, where no caption row holds one."""
    alt_text = sample.meta.get("alt_text")
    if not isinstance(alt_text, str) or not alt_text.strip() or any(row["kind"] == "alt_text" for row in captions):
        return []
    return [{"kind": "alt_text", "text": alt_text}]


@dataclass(frozen=True)
class _Beside:
    """Rows of a shard's images by key, as they are shown beside them."""

    captions: Mapping[str, Sequence[Row]]
    regions: Mapping[str, Sequence[Row]]
    human: Mapping[str, Sequence[Row]]


def _beside(labelled: Labelled, shard: Shard) -> _Beside:
    """A captioner's captions stand before people's; regions, and people's, are shown where regions were made."""
    captions: dict[str, list[Row]] = defaultdict(list)
    regions: dict[str, list[Row]] = {}
    if labelled.table == "captions":
        for row in tables.read_table(labelled.output, "captions", shard.name).to_pylist():
            captions[row["key"]].append(row)
        for key, rows in labelled.data.rows("captions", shard).items():
            said = {row["text"] for row in captions[key]}
            captions[key] += [row for row in rows if row["kind"] == "human" and row["text"] not in said]
        return _Beside(captions, regions, {})
    regions = _rows(labelled, shard)
    return _Beside(labelled.data.rows("captions", shard), regions, labelled.data.rows("regions", shard))


def _histograms(table: Table) -> dict[str, Histogram]:
    """Titles and bins of what is counted, by what it is."""
    if table == "captions":
        labels = ("0", "1-4", "5-9", "10-14", "15-19", "20-29", "30-39", "40-49", "50-74", "75-99", "100+")
        edges = (0, 1, 5, 10, 15, 20, 30, 40, 50, 75, 100, 1e9)
        return {
            "per_image": Histogram("Captions an image", (*map(str, range(7)), "7+"), tuple(map(float, range(9)))),
            "words": Histogram("Words a caption", labels, edges),
        }
    many = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10-11", "12-14", "15-19", "20-29", "30+")
    shares = ("<0.1%", "<0.5%", "<1%", "<2%", "<5%", "<10%", "<20%", "<50%", "≤100%")
    tenths = tuple(number / 10 for number in range(10))
    return {
        "per_image": Histogram("Regions an image", many, (*map(float, range(11)), 12, 15, 20, 30, 1e9)),
        "words": Histogram("Words a region's text", (*map(str, range(1, 8)), "8+"), (*map(float, range(1, 9)), 1e9)),
        "area": Histogram(
            "Area of a box, share of its image", shares, (0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.001)
        ),
        "score": Histogram("Score of a region, from", tuple(f"{tenth:.1f}" for tenth in tenths), (*tenths, 1.001)),
    }


def _count(histograms: Mapping[str, Histogram], by_key: Mapping[str, Sequence[Row]], *, without: int) -> None:
    """Counts a shard's rows, and `without` images that have none."""
    rows = [row for own in by_key.values() for row in own]
    histograms["per_image"].add(np.asarray([len(own) for own in by_key.values()], dtype=np.float64))
    histograms["per_image"].add(np.zeros(1), times=without)
    histograms["words"].add(np.asarray([len(row["text"].split()) for row in rows], dtype=np.float64))
    if "score" in histograms:
        histograms["score"].add(np.asarray([row["score"] for row in rows], dtype=np.float64))
        histograms["area"].add(boxes.area(boxes.as_boxes([box_of(row) for row in rows])).astype(np.float64))


def _commonest(texts: Counter[str]) -> tuple[CommonText, ...]:
    """Those that stand more than once; in order of the text where counts are equal."""
    repeated = (item for item in texts.items() if item[1] > 1)
    top = heapq.nsmallest(_COMMON, repeated, key=lambda item: (-item[1], item[0]))
    return tuple(CommonText(text[:_TEXT_CUT], count, 100 * count / top[0][1]) for text, count in top)
