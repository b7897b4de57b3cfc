"""Stage `duplicates`: which images of a data set occur again, in it or in others, as tables, a page and numbers.

    duplicates/00000.parquet   one row for each image that occurs EARLIER in the set, and one for each other data set
                               that it occurs in

Fingerprints that are missing are made first. A run that finds its tables made from the same fingerprints with the same
settings searches nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cloc.config import Config
from cloc.data import fingerprints, tables
from cloc.data.dataset import Dataset, resolve_split
from cloc.data.duplicates.page import Pairs, render
from cloc.data.duplicates.search import Duplicate, search
from cloc.data.schema import Shard
from cloc.data.storage import Storage, open_storage
from cloc.stage import StageResult, fingerprint

STAGE = "duplicates"
PAGE_FILE = "index.html"
_VERSION = 1  # raise it when equal fingerprints give other tables than before
_EXAMPLES = 5
_COUNTS = ("exact_inside", "near_inside", "exact_elsewhere", "near_elsewhere")


@dataclass(frozen=True)
class Inputs:
    """What the stage reads.

    Attributes:
        data: a data set, or a collection whose `data.train_split` is meant.
        against: other data sets in which its images may occur.
    """

    data: str
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """What the stage writes.

    Attributes:
        tables: folder or `s3://` prefix of the tables; empty puts them beside the data.
        report: folder of a page with pairs of pictures; empty makes none.
    """

    tables: str = ""
    report: str = ""


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Searches the data set.

    Raises:
        DataError: a data set is none, cannot be read, or its fingerprints cannot be written.
    """
    url, bits = resolve_split(inputs.data, config.data.train_split), config.data.near_duplicate_bits
    dataset, others = Dataset.open(url), {name: Dataset.open(name) for name in inputs.against}
    undecodable = _fingerprint(dataset, others, processes=config.data.processes)
    storage = open_storage(outputs.tables or url)
    if not _is_current(storage, dataset, others, bits):
        _search(storage, dataset, others, bits)
    counts: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
    counts.update(images=dataset.manifest.images, undecodable=undecodable)
    pairs = Pairs()
    for shard in dataset.manifest.shards:
        for row in tables.read_table(storage, "duplicates", shard.name).to_pylist():
            where = "elsewhere" if row["of_data"] else "inside"
            counts[f"{row['kind']}_{where}"] += 1
            pairs.add(shard, row)
    _print_examples(pairs)
    artifacts = {}
    if outputs.report:
        page = render(dataset, others, pairs, counts, data=url, bits=bits)
        open_storage(outputs.report).write_bytes(PAGE_FILE, page.encode())
        artifacts["report"] = f"{outputs.report.rstrip('/')}/{PAGE_FILE}"
    return StageResult(
        stage=STAGE,
        metrics={
            "data/duplicate_images": float(counts["exact_inside"] + counts["near_inside"]),
            "data/images_in_other_sets": float(counts["exact_elsewhere"] + counts["near_elsewhere"]),
        },
        counts=dict(counts),
        message=_message(counts, url, tuple(inputs.against), bits),
        artifacts=artifacts,
    )


def _message(counts: Mapping[str, int], url: str, against: tuple[str, ...], bits: int) -> str:
    inside = f"{counts['exact_inside']} exact and {counts['near_inside']} near (up to {bits} bits)"
    message = f"{counts['images']} images of {url}: {inside} duplicates of earlier ones"
    if against:
        elsewhere = f"{counts['exact_elsewhere']} exact and {counts['near_elsewhere']} near"
        message += f"; in {', '.join(against)}: {elsewhere}"
    if counts["undecodable"]:
        message += f"; {counts['undecodable']} images cannot be decoded and were not compared"
    return message


def _fingerprint(dataset: Dataset, others: Mapping[str, Dataset], *, processes: int) -> int:
    made = [fingerprints.ensure(item, processes=processes) for item in (dataset, *others.values())]
    return sum(item.undecodable for item in made)


def _hashes(dataset: Dataset, others: Mapping[str, Dataset], bits: int) -> dict[str, str]:
    """What the tables are made from: all fingerprints, since each image is compared with all."""
    found = {
        name: [tables.content_hash(item.images, "fingerprints", shard.name) for shard in item.manifest.shards]
        for name, item in {"": dataset, **others}.items()
    }
    return {"input_hash": fingerprint(found), "config_hash": fingerprint(_VERSION, bits)}


def _is_current(storage: Storage, dataset: Dataset, others: Mapping[str, Dataset], bits: int) -> bool:
    hashes = _hashes(dataset, others, bits)
    return all(tables.is_current(storage, "duplicates", shard.name, **hashes) for shard in dataset.manifest.shards)


def _search(storage: Storage, dataset: Dataset, others: Mapping[str, Dataset], bits: int) -> None:
    hashes = _hashes(dataset, others, bits)
    searches = {name: search(dataset, other=other, bits=bits) for name, other in {"": None, **others}.items()}
    for found in zip(*searches.values(), strict=True):
        shard: Shard = found[0][0]
        by_data = {name: duplicates for name, (_, duplicates) in zip(searches, found, strict=True)}
        tables.write_table(storage, "duplicates", shard.name, _rows(by_data), **hashes)


def _rows(by_data: Mapping[str, list[Duplicate]]) -> Iterator[dict[str, Any]]:
    for name, duplicates in by_data.items():
        for duplicate in duplicates:
            yield {
                "key": duplicate.key,
                "kind": "exact" if duplicate.exact else "near",
                "distance": duplicate.distance,
                "of_data": name,
                "of_shard": duplicate.of_shard,
                "of_key": duplicate.of_key,
            }


def _print_examples(pairs: Pairs) -> None:
    for pair in pairs.chosen()[:_EXAMPLES]:
        how = "exact" if pair.exact else f"near, {pair.distance} bits"
        print(f"duplicates: {pair.key} is {pair.of_key}{f' of {pair.of_data}' if pair.of_data else ''} ({how})")
