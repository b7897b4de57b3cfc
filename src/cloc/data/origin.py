"""What a data set and the label tables beside it are, for the record of what was made of them: digests, counts, makers.

A record is JSON values. `check_data` and `check_tables` look whether what lies at a place still is what was recorded.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.schema import MANIFEST, Shard, Table
from cloc.data.storage import Storage, open_storage
from cloc.data.verify.check import Request, verify
from cloc.data.verify.record import Record
from cloc.data.verify.report import Kind
from cloc.stage import fingerprint

_THREADS = 16  # a look at a table on S3 is a few round trips


@dataclass(frozen=True)
class Check:
    """Whether something that was recorded is still so.

    Attributes:
        what: file or folder.
        verdict: "same", "differs", or "gone" where it is no longer there.
        detail: what was expected and found, where they differ; else "".
    """

    what: str
    verdict: Literal["same", "differs", "gone"]
    detail: str = ""


def data_record(dataset: Dataset) -> dict[str, Any]:
    """A data set's images: place, digest, counts, and how the manifest says that it was made."""
    manifest = dataset.manifest
    return {
        "place": dataset.images.url,
        "digest": dataset.digest,
        "manifest_sha256": hashlib.sha256(dataset.images.read_bytes(MANIFEST)).hexdigest(),
        "images": manifest.images,
        "shards": len(manifest.shards),
        "quarantined": manifest.quarantined,
        "classes": len(manifest.classes),
        "made_by": dict(manifest.made_by),
    }


def tables_record(dataset: Dataset, table: Table) -> dict[str, Any] | None:
    """The captions or regions tables of a data set: place, digest, counts and makers; None where there are none.

    Reads the end of each file. `makers` has an entry for each different maker: `shards` that it labelled, and what it
    said of itself (nothing where it did not).
    """
    storage = _home(dataset, table)
    digest, infos = _tables(storage, table, dataset)
    if not infos:
        return None
    counts: Counter[str] = Counter()
    makers: Counter[str] = Counter()
    for info in infos:
        counts.update({name: value for name, value in info.statistics.items() if isinstance(value, int)})
        makers[json.dumps(dict(info.made_by), sort_keys=True)] += 1
    return {
        "place": storage.url,
        "digest": digest,
        "shards": len(infos),
        "counts": dict(counts),
        "makers": [{"shards": number, **json.loads(text)} for text, number in makers.most_common()],
    }


def check_data(record: Mapping[str, Any]) -> Iterator[Check]:
    """The manifest, and the bytes of each shard by it: those that are as recorded are one check.

    Raises:
        DataError: the place cannot be read.
    """
    place = str(record["place"])
    storage = open_storage(place)
    if not storage.exists(MANIFEST):
        yield Check(f"{place}/{MANIFEST}", "gone")
        return
    found = hashlib.sha256(storage.read_bytes(MANIFEST)).hexdigest()
    yield compared(f"{place}/{MANIFEST}", expected=str(record["manifest_sha256"]), found=found)
    dataset = Dataset.open(place)
    request = Request(data=place, reads_tables=False, threads=_THREADS, progress=False)
    differing = {item.path: item for item in verify(request, record=Record(None, of=place)).differences}
    same = 0
    for shard in dataset.manifest.shards:
        if (item := differing.get(shard.path)) is None:
            same += 1
        elif item.kind is Kind.MISSING:
            yield Check(dataset.source(shard), "gone")
        else:
            detail = f"recorded {str(item.expected)[:16]}, found {str(item.found)[:16]}"
            yield Check(dataset.source(shard), "differs", detail)
    if same:
        yield Check(f"{place}: {same:,} {'tar' if same == 1 else 'tars'}", "same")


def check_tables(record: Mapping[str, Any], table: Table, *, data: str) -> Iterator[Check]:
    """The rows of a data set's captions or regions tables, by the record of them together.

    Raises:
        DataError: the data set cannot be read.
    """
    dataset, place = Dataset.open(data), str(record["place"])
    storage = open_storage(place)
    wrong: list[str] = []
    for shard in dataset.manifest.shards:
        info = tables.table_info(storage, table, shard.name)
        if info is not None and info.content_hash and not tables.is_intact(storage, table, shard.name):
            wrong.append(tables.table_path(table, shard.name))
    digest, infos = _tables(storage, table, dataset)
    if not infos:
        yield Check(f"{place}/{table}", "gone")
    elif wrong:
        yield Check(f"{place}/{table}", "differs", f"{', '.join(wrong[:3])}: not the rows that were written")
    else:
        yield compared(f"{place}/{table}", expected=str(record["digest"]), found=digest)


def compared(what: str, *, expected: str, found: str) -> Check:
    """A hash beside the recorded one."""
    if expected == found:
        return Check(what, "same")
    return Check(what, "differs", f"recorded {expected[:16]}, found {found[:16]}")


def _home(dataset: Dataset, table: Table) -> Storage:
    return dataset.captions if table == "captions" else dataset.regions


def _tables(storage: Storage, table: Table, dataset: Dataset) -> tuple[str, list[tables.TableInfo]]:
    """The digest of the tables of all shards together, and what each of those that there are says of itself."""

    def look(shard: Shard) -> tuple[str, tables.TableInfo | None]:
        info = tables.table_info(storage, table, shard.name)
        known = info.content_hash if info else ""
        return known or tables.content_hash(storage, table, shard.name), info

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="look") as pool:
        found = list(pool.map(look, dataset.manifest.shards))
    names = [shard.name for shard in dataset.manifest.shards]
    digest = fingerprint([(name, content) for name, (content, _) in zip(names, found, strict=True)])
    return digest, [info for _, info in found if info is not None]
