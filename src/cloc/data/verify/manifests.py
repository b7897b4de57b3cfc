"""The manifest that a data set is held against: where it comes from, and whether it and the data set's own agree."""

import json
from collections import Counter
from collections.abc import Iterator

from cloc.data.schema import MANIFEST, Manifest
from cloc.data.storage import Storage, open_storage
from cloc.data.verify.report import Difference, Kind
from cloc.errors import DataError

_NAMED = 3


def read_manifest(storage: Storage, against: str) -> tuple[str, str]:
    """The manifest to compare with: where it lies, and its text.

    Args:
        storage: of the data set.
        against: another manifest's file or object; "" for the data set's own.

    Raises:
        DataError: there is none.
    """
    if against:
        folder, _, name = against.rpartition("/")
        home = open_storage(folder or ("/" if against.startswith("/") else "."))
        return against, home.read_bytes(name).decode(errors="replace")
    if not storage.exists(MANIFEST):
        raise DataError(f"{storage.url}: no data set here (there is no {MANIFEST}); name a split, as in data/train")
    return f"{storage.url}/{MANIFEST}", storage.read_bytes(MANIFEST).decode(errors="replace")


def in_itself(text: str, manifest: Manifest, source: str) -> Iterator[Difference]:
    """What contradicts itself in a manifest."""
    images = json.loads(text).get("images", manifest.images)
    if images != manifest.images:
        yield Difference(
            Kind.COUNT,
            source,
            expected=images,
            found=manifest.images,
            unit="images",
            detail="the sum over its shards",
        )
    for what in ("name", "path"):
        counts = Counter(getattr(shard, what) for shard in manifest.shards)
        twice = [value for value, count in counts.items() if count > 1]
        if twice:
            yield Difference(Kind.MANIFEST, source, detail=f"{some(twice)}: the {what} of several shards")


def of_the_data(storage: Storage, text: str, manifest: Manifest) -> Iterator[Difference]:
    """How the data set's own manifest differs from the one that it is verified against."""
    if not storage.exists(MANIFEST):
        yield Difference(Kind.MISSING, MANIFEST)
        return
    body = storage.read_bytes(MANIFEST).decode(errors="replace")
    if body == text:
        return
    try:
        own = Manifest.from_json(body, source=MANIFEST)
    except DataError as error:
        yield Difference(Kind.MANIFEST, MANIFEST, detail=str(error).removeprefix(f"{MANIFEST}: "))
        return
    mine = {shard.name: shard for shard in manifest.shards}
    theirs = {shard.name: shard for shard in own.shards}
    parts = {
        "shards more": sorted(theirs.keys() - mine.keys()),
        "shards fewer": sorted(mine.keys() - theirs.keys()),
        "other shards of the same name": sorted(
            name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]
        ),
    }
    told = [f"{len(names):,} {what} ({some(names)})" for what, names in parts.items() if names]
    yield Difference(
        Kind.MANIFEST, MANIFEST, detail="the data set's own is another: " + ("; ".join(told) or "the same shards")
    )


def some(names: list[str]) -> str:
    """The first names of many."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
