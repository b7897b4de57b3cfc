"""One row of a table becomes one image with its labels."""

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from cloc.data.images import seen_size
from cloc.data.ingest.captions import is_number
from cloc.data.ingest.parts import Item, Refusal
from cloc.data.ingest.records import LabeledBox, Record, key_of
from cloc.data.ingest.table_plan import BoxFormat, BoxUnit, TablePlan, Way, value_at
from cloc.data.storage import Storage, relative_path
from cloc.errors import DataError


class RowReader:
    """Reads rows by a plan.

    Attributes:
        plan: where in a row everything stands.
        images: where images lie that a row has by their path alone.
        file: the table's file, as keys begin and as errors name it.
    """

    def __init__(self, plan: TablePlan, *, images: Storage, file: str) -> None:
        self.plan, self.images, self.file = plan, images, file
        self._root = images.url if "://" in images.url else os.path.abspath(images.url)

    def read(self, row: Mapping[str, Any], *, number: int) -> Item:
        """The image of row `number`; what is wrong with it stands in the record's problems or the refusal."""
        plan = self.plan
        image = _value(row, plan.image)
        if plan.image_is_struct:
            body, path = (image.get("bytes"), image.get("path")) if image is not None else (None, None)
        else:
            body, path = image, None
        name = path if isinstance(path, str) and path else f"{self.file}, row {number}"
        key = self._key(row)
        loaded = self._load(body, path)
        if key is None:
            return Item(Record(key=row_key(self.file, number), name=name), Refusal("its row has no key"))
        problems: list[str] = []
        size = self._size(row, loaded) if plan.boxes else None
        boxes = self._boxes(row, size, problems) if plan.boxes else ()
        record = Record(
            key=key or row_key(self.file, number),
            name=name,
            alt_text=_texts(_value(row, plan.caption)),
            boxes=boxes,
            source=_value(row, plan.source) or "",
            licence=_value(row, plan.licence) or "",
            annotated_size=size if plan.width else None,
            problems=tuple(problems),
        )
        return Item(record, loaded)

    def unreadable(self, *, number: int) -> Item:
        """A row that cannot become values of Python."""
        record = Record(key=row_key(self.file, number), name=f"{self.file}, row {number}")
        return Item(record, Refusal("its row has a text that is not UTF-8"))

    def _key(self, row: Mapping[str, Any]) -> str | None:
        """The key that the table names, "" when it names none, None when it should."""
        if not self.plan.key:
            return ""
        value = _value(row, self.plan.key)
        # `key_of` takes a name of a file: the suffix keeps what stands behind a dot in the key.
        return key_of(f"{value}.key") if value not in (None, "") else None

    def _load(self, body: bytes | None, path: Any) -> bytes | Refusal:
        if body is not None:
            return body
        if not path:
            return Refusal("its row has no image")
        told = f"its row has only the path {path[:200]!r}"
        try:
            # `datasets` writes absolute paths.
            inside = relative_path(path.removeprefix(f"{self._root}/"), root=self._root).as_posix()
        except DataError:
            return Refusal(f"{told}, which leads out of the folder of images; name that folder in `images`")
        try:
            if not self.images.exists(inside):
                return Refusal(f"{told}, and the folder of images has no such file")
        except OSError as error:
            return Refusal(f"{told}, which cannot be read ({error.strerror})")
        return self.images.read_bytes(inside)

    def _size(self, row: Mapping[str, Any], body: bytes | Refusal) -> tuple[int, int] | None:
        """The pixels that the boxes were drawn on, or None when the row does not say."""
        if self.plan.width:
            width, height = _value(row, self.plan.width), _value(row, self.plan.height)
            return (width, height) if width and height and min(width, height) > 0 else None
        return seen_size(body) if self.plan.box_unit is BoxUnit.PIXEL and not isinstance(body, Refusal) else None

    def _boxes(
        self, row: Mapping[str, Any], size: tuple[int, int] | None, problems: list[str]
    ) -> tuple[LabeledBox, ...]:
        plan = self.plan
        boxes = _value(row, plan.boxes) or []
        texts = _value(row, plan.texts) or []
        if len(boxes) != len(texts):
            problems.append(f"box: {len(boxes)} boxes and {len(texts)} texts do not belong together")
            return ()
        if boxes and size is None and plan.box_unit is BoxUnit.PIXEL:
            problems.append(f"box: {len(boxes)} boxes in pixels of an image of unknown size")
            return ()
        width, height = size if size is not None and plan.box_unit is BoxUnit.PIXEL else (1, 1)
        found = []
        for index, (box, text) in enumerate(zip(boxes, texts, strict=True)):
            if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
                problems.append(f"box: number {index}: expected four numbers, got {str(box)[:80]}")
                continue
            x1, y1, x2, y2 = (float(value) for value in box)
            if plan.box_format is BoxFormat.XYWH:
                x2, y2 = x1 + x2, y1 + y2
            xyxy = (x1 / width, y1 / height, x2 / width, y2 / height)
            found.append(self._labeled(xyxy, text))
        return tuple(found)

    def _labeled(self, xyxy: tuple[float, float, float, float], text: str | int | None) -> LabeledBox:
        if not self.plan.text_names:
            return LabeledBox(xyxy=xyxy, text=str(text or ""))
        known = isinstance(text, int) and 0 <= text < len(self.plan.text_names)
        name = self.plan.text_names[int(text or 0)] if known else ""  # of no class: refused as an empty text
        return LabeledBox(xyxy=xyxy, text=name, label=name)


def row_key(file: str, number: int) -> str:
    """The key of a row that names none: `<file without suffix>_<row>`."""
    return key_of(f"{PurePosixPath(file).with_suffix('')}_{number}.row")


def _value(row: Mapping[str, Any], way: Way) -> Any:
    return value_at(row, way) if way else None


def _texts(value: Any) -> tuple[str, ...]:
    """Captions in a value: a text, a list of texts, or null."""
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if text is not None)
