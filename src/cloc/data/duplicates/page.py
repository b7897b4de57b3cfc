"""A page with pairs of pictures side by side, by distance: where they stop being the same, the threshold belongs."""

import io
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from cloc.data.dataset import Dataset
from cloc.data.images import as_seen
from cloc.data.schema import Shard
from cloc.pages import environment
from cloc.pages.pictures import data_url, fit

_PAIRS = 6  # shown for each kind and distance
_SIDE = 260  # pixels


@dataclass(frozen=True)
class Pair:
    """Two images that are taken for one.

    Attributes:
        shard, key: of the image.
        of_data, of_shard, of_key: of what it duplicates; `of_data` is "" in the same data set.
        exact, distance: how equal they are.
    """

    shard: str
    key: str
    of_data: str
    of_shard: str
    of_key: str
    exact: bool
    distance: int


class Pairs:
    """Pairs to show: a few of each kind and distance, and the number of all."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, bool], list[Pair]] = defaultdict(list)
        self._counts: dict[tuple[int, bool], int] = defaultdict(int)

    def add(self, shard: Shard, row: Mapping[str, Any]) -> None:
        """Takes a row of the table in, or not: by chance, but the same for equal data."""
        exact = row["kind"] == "exact"
        place = {name: row[name] for name in ("key", "of_data", "of_shard", "of_key")}
        pair = Pair(shard=shard.name, **place, exact=exact, distance=row["distance"])
        level = (row["distance"], not exact)
        self._counts[level] += 1
        held = self._held[level]
        held.append(pair)
        if len(held) > _PAIRS:
            held.remove(max(held, key=lambda item: (zlib.crc32(item.key.encode()), item.key)))

    def chosen(self) -> list[Pair]:
        """The pairs to show, the most equal ones first."""
        return [pair for level in sorted(self._held) for pair in self._held[level]]

    def levels(self) -> list[tuple[str, int, list[Pair]]]:
        """Name, number of all pairs, and the pairs to show, by kind and distance."""
        return [
            ("Equal files" if not near else f"{distance} of 64 bits differ", self._counts[distance, near], held)
            for (distance, near), held in sorted(self._held.items())
        ]


def render(
    dataset: Dataset,
    others: Mapping[str, Dataset],
    pairs: Pairs,
    counts: Mapping[str, int],
    *,
    data: str,
    bits: int,
) -> str:
    """The page as HTML.

    Args:
        dataset, others: where the pictures lie.
        pairs: what to show.
        counts: of all duplicates, as the stage reports them.
        data: what to call the data set.
        bits: the threshold.

    Raises:
        DataError: a shard cannot be read.
    """
    sets = {"": dataset, **others}
    wanted: dict[tuple[str, str], set[str]] = defaultdict(set)
    for pair in pairs.chosen():
        wanted["", pair.shard].add(pair.key)
        wanted[pair.of_data, pair.of_shard].add(pair.of_key)
    pictures = {
        (name, shard, key): picture
        for (name, shard), keys in wanted.items()
        for key, picture in _pictures(sets[name], shard, keys).items()
    }
    return (
        environment("cloc.data.duplicates")
        .get_template("duplicates.html.j2")
        .render(levels=pairs.levels(), pictures=pictures, counts=counts, data=data, against=list(others), bits=bits)
    )


def _pictures(dataset: Dataset, name: str, keys: set[str]) -> dict[str, str]:
    """Small pictures of a shard as data URLs."""
    shard = next(shard for shard in dataset.manifest.shards if shard.name == name)
    opened = dataset.open_images(shard)
    try:
        return {key: _picture(body) for key, body in opened.read(lambda key: key in keys)}
    finally:
        opened.close()


def _picture(body: bytes) -> str:
    with Image.open(io.BytesIO(body)) as image:
        return data_url(fit(as_seen(image), side=_SIDE, enlarge=False))
