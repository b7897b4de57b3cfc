"""The labels of a shard's images, joined by key: columns are kept as they are, and what one image needs is cut out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.schema import Shard, Table
from cloc.errors import DataError

_SIDES = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Labels:
    """What is known of one image.

    Attributes:
        captions: generated and human captions.
        alt_texts: its alt-texts that stand in the captions table.
        boxes_R4: boxes, xyxy in [0, 1] of the original image, float32.
        texts: what each box is described by.
    """

    captions: Sequence[str]
    alt_texts: Sequence[str]
    boxes_R4: npt.NDArray[np.float32]
    texts: Sequence[str]


_NO_BOXES = np.zeros((0, 4), dtype=np.float32)


class ShardLabels:
    """The labels of a shard; reads both tables when it is made.

    Raises:
        DataError: a table is unreadable, of another schema, has a row without key, text or box, or a box that is not
            finite (PyTorch crashes at such a one on processors).
    """

    def __init__(self, dataset: Dataset, shard: Shard) -> None:
        captions = _columns(dataset, "captions", shard, needed=("key", "text", "kind"))
        regions = _columns(dataset, "regions", shard, needed=("key", "text", *_SIDES))
        self._captions, self._regions = _Rows(captions), _Rows(regions)
        self._caption_texts, self._region_texts = _texts(captions), _texts(regions)
        self._is_alt_text: list[bool] = pc.equal(captions["kind"], "alt_text").to_pylist() if captions else []
        self._boxes_N4 = np.stack([regions[side].to_numpy() for side in _SIDES], axis=1) if regions else _NO_BOXES
        bad = len(self._boxes_N4) - int(np.isfinite(self._boxes_N4).all(axis=1).sum())
        if bad:
            where = f"{dataset.regions.url}/{tables.table_path('regions', shard.name)}"
            raise DataError(f"{where}: {bad} boxes are not finite; make this table again")

    def wants(self, key: str) -> bool:
        """Whether an image has a caption or an alt-text."""
        return key in self._captions

    def of(self, key: str) -> Labels:
        """The labels of an image; empty where there are none."""
        captions, alt_texts = list[str](), list[str]()
        for row in self._captions[key]:
            (alt_texts if self._is_alt_text[row] else captions).append(self._caption_texts[row])
        rows = self._regions[key]
        boxes_R4 = self._boxes_N4[rows.start : rows.stop] if isinstance(rows, range) else self._boxes_N4[rows]
        # A copy: a view would keep the whole shard's boxes for as long as one image waits in a buffer.
        return Labels(captions, alt_texts, boxes_R4.copy(), [self._region_texts[row] for row in rows])


class _Rows:
    """Numbers of the rows of each key: neighbours, as every writer of this project leaves them, are a range."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._rows: dict[str, range | list[int]] = {}
        if not columns:
            return
        runs, start = pc.run_end_encode(columns["key"]), 0
        for key, stop in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            known = self._rows.get(key)
            self._rows[key] = range(start, stop) if known is None else [*known, *range(start, stop)]
            start = stop

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> range | list[int]:
        return self._rows.get(key, range(0))


def _columns(dataset: Dataset, table: Table, shard: Shard, *, needed: Sequence[str]) -> dict[str, Any]:
    """Columns of a shard's table, each in one piece; none when the shard has no such table, or no row in it."""
    storage = dataset.captions if table == "captions" else dataset.regions
    if not tables.has_table(storage, table, shard.name):
        return {}
    data: pa.Table = tables.read_table(storage, table, shard.name)
    for name in needed:
        if data[name].null_count:
            raise DataError(
                f"{storage.url}/{tables.table_path(table, shard.name)}: {data[name].null_count} rows without {name}; "
                "make this table again"
            )
    return {name: data[name].combine_chunks() for name in needed} if len(data) else {}


def _texts(columns: dict[str, Any]) -> list[str]:
    return columns["text"].to_pylist() if columns else []
