"""The content of COCO-like JSON in columns: some 70 bytes a box, where Python objects would take 2,000.

Files may have their lists in any order (COCO's categories come last), so numbers are checked and joined once a file is
read to its end: `resolve`.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Any

import numpy as np
import numpy.typing as npt

from cloc.errors import DataError

_INT64 = 2**63


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the file: its name, (width, height) in pixels, where it comes from and under which terms."""

    name: str
    size: tuple[int, int]
    url: str
    licence: str


class Images:
    """The images of one or several files about the same ones, a row each."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._names: list[str] = []
        self._sizes = array("q")
        self._urls: list[str] = []
        self._licence_ids: list[int | str | None] = []
        self._licences: dict[int | str, str] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Image:
        licence = self._licence_ids[row]
        return Image(
            name=self._names[row],
            size=(self._sizes[2 * row], self._sizes[2 * row + 1]),
            url=self._urls[row],
            licence="" if licence is None else self._licences.get(licence, ""),
        )

    def add_licence(self, item: Any) -> None:
        """Adds an item of `licenses`; what is none there says nothing."""
        if isinstance(item, dict) and isinstance(item.get("id"), int | str):
            self._licences[item["id"]] = str(item.get("url") or item.get("name") or "")

    def add(self, item: Any, *, name: str, source: str) -> int:
        """Adds an item of `images` under its file name; returns its row. Raises DataError naming `source`."""
        id_ = get(item, "id", int, source=source)
        width, height = get(item, "width", int, source=source), get(item, "height", int, source=source)
        if min(width, height) < 1:
            raise DataError(f"{source}: width and height must be at least 1, got {width}x{height}")
        row = self._rows.setdefault(id_, len(self._names))
        if row < len(self._names):
            if self._names[row] != name:
                raise DataError(f"{source}: id {id_} stands for {name!r} and for {self._names[row]!r}")
            return row
        self._names.append(name)
        self._sizes.extend((width, height))
        self._urls.append(str(item.get("coco_url") or item.get("flickr_url") or ""))
        licence = item.get("license")
        self._licence_ids.append(licence if isinstance(licence, int | str) else None)
        return row

    def by_name(self) -> list[int]:
        """Rows in the order of the file names."""
        return sorted(range(len(self)), key=self._names.__getitem__)

    def rows_of(self, ids: "array[int]", *, source: str) -> npt.NDArray[np.int64]:
        """The rows of the images that annotations name. Raises DataError for the first id that no image has."""
        known = np.fromiter(self._rows, dtype=np.int64, count=len(self._rows))  # in the order of the rows
        order = np.argsort(known)
        wanted = _view(ids, np.int64)
        at = np.searchsorted(known[order], wanted)
        rows: npt.NDArray[np.int64] = order[np.minimum(at, max(len(order) - 1, 0))] if len(order) else at
        bad = known[rows] != wanted if len(order) else np.ones(len(wanted), dtype=bool)
        if bad.any():
            index = int(bad.argmax())
            raise DataError(f"{source}: annotations[{index}]: image_id {ids[index]} is not among its images")
        return rows


class Categories:
    """The classes of the file."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def add(self, item: Any, *, source: str) -> None:
        """Adds an item of `categories`. Raises DataError naming `source`."""
        id_ = get(item, "id", int, source=source)
        name = get(item, "name", str, source=source).strip()
        if self._names.setdefault(id_, name) != name:
            raise DataError(f"{source}: id {id_} stands for {name!r} and for {self._names[id_]!r}")

    def name_of(self, id_: int) -> str:
        """The name of a known class."""
        return self._names[id_]

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of the ids."""
        return tuple(self._names[id_] for id_ in sorted(self._names))

    def check(self, ids: "array[int]", *, source: str) -> None:
        """Raises DataError for the first annotation of an unknown class."""
        for unknown in set(np.unique(_view(ids, np.int64)).tolist()) - set(self._names):
            index = ids.index(unknown)
            raise DataError(f"{source}: annotations[{index}]: category_id {unknown} is not among its categories")


@dataclass(frozen=True, slots=True)
class Box:
    """A box: its place among the file's annotations, its class, and xyxy as shares of its image."""

    index: int
    category: int
    xyxy: tuple[float, float, float, float]


class Boxes:
    """Boxes of the file's annotations."""

    def __init__(self) -> None:
        self.categories = array("q")
        self._image_ids = array("q")
        self._xywh = array("d")
        self._crowds = bytearray()
        self._groups: _Groups | None = None

    def add(self, item: Any, *, category: int, source: str) -> None:
        """Adds an item of `annotations`. Raises DataError naming `source`."""
        self._image_ids.append(get(item, "image_id", int, source=source))
        bbox = get(item, "bbox", list, source=source)
        if len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
            raise DataError(f"{source}: bbox must be [x, y, width, height], got {str(bbox)[:80]}")
        try:
            self._xywh.extend(map(float, bbox))
        except OverflowError:
            raise DataError(f"{source}: bbox is beyond any number of pixels") from None
        self.categories.append(category)
        self._crowds.append(bool(item.get("iscrowd")))

    def resolve(self, images: Images, *, source: str) -> None:
        """Joins the boxes with their images. Raises DataError for a box of an unknown image."""
        self._groups = _Groups(images.rows_of(self._image_ids, source=source), count=len(images))

    def of(self, row: int, *, size: tuple[int, int]) -> list[Box]:
        """The boxes of an image of a size in pixels, without crowds, in the file's order."""
        width, height = size
        found = []
        for index in self._indices(row):
            if self._crowds[index]:
                continue
            x, y, w, h = self._xywh[4 * index : 4 * index + 4]
            xyxy = (x / width, y / height, (x + w) / width, (y + h) / height)
            found.append(Box(index, self.categories[index], xyxy))
        return found

    def crowds_of(self, row: int) -> int:
        """Number of an image's boxes that are of crowds."""
        return sum(self._crowds[index] for index in self._indices(row))

    def _indices(self, row: int) -> Iterator[int]:
        return self._groups.of(row) if self._groups else iter(())


class Captions:
    """Captions of the file's annotations."""

    def __init__(self) -> None:
        self._image_ids = array("q")
        self._texts: list[str] = []
        self._groups: _Groups | None = None

    def add(self, item: Any, *, source: str) -> None:
        """Adds an item of `annotations`. Raises DataError naming `source`."""
        self._image_ids.append(get(item, "image_id", int, source=source))
        self._texts.append(get(item, "caption", str, source=source))

    def resolve(self, images: Images, *, source: str) -> None:
        """Joins the captions with their images. Raises DataError for a caption of an unknown image."""
        self._groups = _Groups(images.rows_of(self._image_ids, source=source), count=len(images))

    def of(self, row: int) -> tuple[str, ...]:
        """The captions of an image, in the file's order."""
        return tuple(self._texts[index] for index in self._groups.of(row)) if self._groups else ()


class _Groups:
    """Annotations by the row of their image."""

    def __init__(self, rows: npt.NDArray[np.int64], *, count: int) -> None:
        self._order = np.argsort(rows, kind="stable")
        self._starts = np.searchsorted(rows[self._order], np.arange(count + 1))

    def of(self, row: int) -> Iterator[int]:
        if row + 1 >= len(self._starts):  # an image that only a later file has
            return iter(())
        return iter(self._order[self._starts[row] : self._starts[row + 1]].tolist())


def _view(column: "array[int]", dtype: type[np.int64]) -> npt.NDArray[np.int64]:
    return np.frombuffer(column, dtype=dtype) if column else np.empty(0, dtype=dtype)


def get(item: Any, name: str, kind: type | UnionType, *, source: str) -> Any:
    """A key of an object, of a given type (never bool). Raises DataError saying which key is missing or wrong."""
    if not isinstance(item, dict):
        raise DataError(f"{source}: expected an object, got {type(item).__name__}")
    if name not in item:
        raise DataError(f"{source}: the key {name!r} is missing")
    value = item[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{source}: {name} must be of type {getattr(kind, '__name__', kind)}, got {str(value)[:80]!r}")
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        raise DataError(f"{source}: {name} is beyond any number: {str(value)[:80]}")
    return value
