"""Which column of a table is what: named by the user, said by Hugging Face's features in the schema, or told by type.

Names for `columns`, as in "image=img,boxes=objects.bbox,texts=objects.category,box_format=xywh,box_unit=pixel":

    image             struct of `bytes` and `path` (Hugging Face's Image), or the file's bytes
    caption           text or list of texts
    key               text or whole number, unique over the data set; without it, file and row make the key
    source, licence   texts
    boxes             list of boxes, each a list of four numbers
    texts             what each box is: list of texts, or of class numbers whose names Hugging Face's features have
    box_format        xyxy or xywh; xyxy when not named
    box_unit          share (of the image's sides) or pixel; share when not named
    width, height     the size in pixels that the boxes were drawn on; without them, that of the image as seen

A dot leads into a struct. Boxes are read only where they are named.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.types as pt

from cloc.errors import DataError

# Columns that are taken for the role without being named, the first that is there.
_USUAL: Mapping[str, tuple[str, ...]] = {
    "caption": ("caption", "captions", "text", "alt_text"),
    "key": ("key", "__key__"),
    "source": ("url", "source"),
    "licence": ("licence", "license"),
}
_OPTIONS = ("box_format", "box_unit")
COLUMNS = ("image", *_USUAL, "boxes", "texts", "width", "height", *_OPTIONS)


# A column and the names of the members that lead into its structs.
Way: TypeAlias = tuple[str, ...]


class BoxFormat(StrEnum):
    """What the four numbers of a box are."""

    XYXY = "xyxy"
    XYWH = "xywh"


class BoxUnit(StrEnum):
    """What a box is measured in."""

    SHARE = "share"
    PIXEL = "pixel"


@dataclass(frozen=True)
class TablePlan:
    """Where in a row everything stands; () for what the table does not have.

    Attributes:
        image, caption, key, source, licence, boxes, texts, width, height: a column, and the way into its structs.
        image_is_struct: whether an image is `bytes` and `path`, not bytes alone.
        text_names: names of the classes, where `texts` are numbers of classes.
        box_format, box_unit: of `boxes`.
    """

    image: Way
    image_is_struct: bool
    caption: Way = ()
    key: Way = ()
    source: Way = ()
    licence: Way = ()
    boxes: Way = ()
    texts: Way = ()
    width: Way = ()
    height: Way = ()
    text_names: tuple[str, ...] = ()
    box_format: BoxFormat = BoxFormat.XYXY
    box_unit: BoxUnit = BoxUnit.SHARE

    def described(self) -> dict[str, str]:
        """What is read, by role."""
        found = {role: ".".join(way) for role, way in self._ways().items() if way}
        return {**found, "box_format": self.box_format, "box_unit": self.box_unit} if self.boxes else found

    def top_columns(self) -> list[str]:
        """The columns of a file to read."""
        return sorted({way[0] for way in self._ways().values() if way})

    def _ways(self) -> dict[str, Way]:
        return {role: getattr(self, role) for role in COLUMNS if role not in _OPTIONS}


def plan_columns(schema: pa.Schema, named: Mapping[str, str], *, where: str) -> TablePlan:
    """Finds the columns.

    Args:
        schema: of a file.
        named: what the user named, by role.
        where: what to call the file in errors.

    Raises:
        DataError: there is no image column or more than one, a named column is missing, or one has another type.
    """
    _no_doubles(schema, where=where)
    features = _features(schema, where=where)
    image = named.get("image") or _find_image(schema, features, where=where)
    columns = {role: column for role, column in named.items() if role not in ("image", *_OPTIONS)}
    for role, usual in _USUAL.items():
        if role not in columns:
            columns[role] = _usual_column(role, usual, schema, where=where)
    for pair in (("boxes", "texts"), ("width", "height")):
        if len(columns.keys() & pair) == 1:
            raise DataError(f"columns: {' and '.join(pair)} belong together; name both or none")
    ways = {role: _way(schema, column) for role, column in columns.items() if column}
    text_names: tuple[str, ...] = ()
    for role, way in ways.items():
        type_ = _type_of(schema, way, role=role, where=where)
        if role == "texts" and _is_list(type_) and pt.is_integer(type_.value_type):
            text_names = _class_names(features, way, where=where)
        elif not _fits(role, type_):
            raise _misfit(role, type_, columns[role], where=where)
    way = _way(schema, image)
    return TablePlan(
        image=way,
        image_is_struct=_image_is_struct(_type_of(schema, way, role="image", where=where), image, where=where),
        text_names=text_names,
        box_format=_option(BoxFormat, named, "box_format"),
        box_unit=_option(BoxUnit, named, "box_unit"),
        **ways,
    )


def value_at(row: Mapping[str, Any], way: Way) -> Any:
    """The value that a way into a row leads to; through a list of structs, the list of their values."""
    value: Any = row
    for name in way:
        if isinstance(value, list):
            value = [None if item is None else item[name] for item in value]
        elif value is not None:
            value = value[name]
    return value


_Option = TypeVar("_Option", bound=StrEnum)


def _option(kind: type[_Option], named: Mapping[str, str], name: str) -> _Option:
    """What the user chose, by default the first there is."""
    choices = list(kind)
    value = named.get(name, choices[0])
    if value not in choices:
        raise DataError(f"columns: {name} is {' or '.join(choices)}, got {value!r}")
    return kind(value)


# --- finding columns


def _no_doubles(schema: pa.Schema, *, where: str) -> None:
    doubled = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if doubled:
        raise DataError(f"table: {where} has more than one column {doubled[0]!r}; write it again")


def _features(schema: pa.Schema, *, where: str) -> Mapping[str, Any]:
    """What the `datasets` library wrote of the columns; empty where something else wrote the file."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise DataError(f"table: {where}: the metadata `huggingface` of its schema is broken; write it again") from None
    return features if isinstance(features, dict) else {}


def _find_image(schema: pa.Schema, features: Mapping[str, Any], *, where: str) -> str:
    said = [name for name in schema.names if _kind(features.get(name)) == "Image"]
    structs = [field.name for field in schema if _is_image_struct(field.type)]
    binaries = [field.name for field in schema if _is_binary(field.type)]
    found = said or structs or binaries
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"table: {where} has several columns of images: {', '.join(found)}; name one: columns image=..."
        )
    lists = [field.name for field in schema if _is_list(field.type) and _holds_images(field.type.value_type)]
    if lists:
        raise DataError(f"table: {where}: column {lists[0]!r} has lists of images; {_ONE_IMAGE}")
    raise DataError(
        f"table: {where} has no column of images (struct of bytes and path, or bytes); "
        f"it has: {', '.join(f'{field.name} ({str(field.type)[:60]})' for field in schema)[:400]}"
    )


_ONE_IMAGE = "write a row for each image"


def _image_is_struct(type_: pa.DataType, column: str, *, where: str) -> bool:
    if _is_image_struct(type_):
        return True
    if _is_binary(type_):
        return False
    if _is_list(type_) and _holds_images(type_.value_type):
        raise DataError(f"table: {where}: column {column!r} has lists of images; {_ONE_IMAGE}")
    raise _misfit("image", type_, column, where=where)


def _misfit(role: str, type_: pa.DataType, column: str, *, where: str) -> DataError:
    return DataError(f"table: {where}: column {column!r} ({role}) has the type {str(type_)[:200]}, not {_WANTED[role]}")


def _usual_column(role: str, usual: tuple[str, ...], schema: pa.Schema, *, where: str) -> str:
    found = [name for name in usual if name in schema.names and _fits(role, schema.field(name).type)]
    if role == "caption" and len(found) > 1:
        raise DataError(f"table: {where}: {' or '.join(found)} can be the caption; name one: columns caption=...")
    return found[0] if found else ""


def _way(schema: pa.Schema, column: str) -> Way:
    return (column,) if column in schema.names else tuple(column.split("."))


def _type_of(schema: pa.Schema, way: Way, *, role: str, where: str) -> pa.DataType:
    """The type of a column, also inside structs and lists of structs, without a dictionary's encoding."""
    column = ".".join(way)
    missing = DataError(f"table: {where} has no column {column!r} ({role}); it has: {', '.join(schema.names)[:400]}")
    if way[0] not in schema.names:
        raise missing
    type_ = _plain(schema.field(way[0]).type)
    for name in way[1:]:
        listed = _is_list(type_)
        inner = type_.value_type if listed else type_
        if not pt.is_struct(inner) or inner.get_field_index(name) < 0:
            raise missing
        child = _plain(inner.field(name).type)
        type_ = pa.list_(child) if listed else child
    return type_


def _class_names(features: Any, way: Way, *, where: str) -> tuple[str, ...]:
    """Names of the classes that a column of numbers stands for."""
    found = features
    for name in way:
        found = _unlisted(found)
        found = found.get(name) if isinstance(found, dict) else None
    found = _unlisted(found)
    names = found.get("names") if isinstance(found, dict) and _kind(found) == "ClassLabel" else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"table: {where}: column {'.'.join(way)!r} (texts) has numbers, and the schema names no classes for them"
        )
    return tuple(names)


def _unlisted(feature: Any) -> Any:
    """A feature without the lists around it, as the versions of `datasets` write them."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif _kind(feature) in ("List", "LargeList", "Sequence"):
            feature = feature.get("feature")
        else:
            return feature


def _kind(feature: Any) -> str:
    kind = feature.get("_type") if isinstance(feature, dict) else None
    return kind if isinstance(kind, str) else ""


# --- types


_WANTED = {
    "image": "struct of bytes and path, or bytes",
    "caption": "text or list of texts",
    "key": "text or whole number",
    "source": "text",
    "licence": "text",
    "boxes": "list of lists of four numbers",
    "texts": "list of texts",
    "width": "whole number",
    "height": "whole number",
}


def _fits(role: str, type_: pa.DataType) -> bool:
    type_ = _plain(type_)
    item = _plain(type_.value_type) if _is_list(type_) else None
    if role == "caption":
        return _is_text(type_) or (item is not None and _is_text(item))
    if role == "texts":
        return item is not None and _is_text(item)
    if role == "boxes":
        return item is not None and _is_list(item) and _is_number(_plain(item.value_type))
    if role in ("width", "height"):
        return pt.is_integer(type_)
    return _is_text(type_) or (role == "key" and pt.is_integer(type_))


def _plain(type_: pa.DataType) -> pa.DataType:
    while isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    return type_.value_type if pt.is_dictionary(type_) else type_


def _is_text(type_: pa.DataType) -> bool:
    return pt.is_string(type_) or pt.is_large_string(type_) or pt.is_string_view(type_)


def _is_binary(type_: pa.DataType) -> bool:
    return pt.is_binary(type_) or pt.is_large_binary(type_) or pt.is_binary_view(type_)


def _is_number(type_: pa.DataType) -> bool:
    return pt.is_integer(type_) or pt.is_floating(type_)


def _is_list(type_: pa.DataType) -> bool:
    return pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_) or pt.is_list_view(type_)


def _is_image_struct(type_: pa.DataType) -> bool:
    return pt.is_struct(type_) and type_.get_field_index("bytes") >= 0 and _is_binary(type_.field("bytes").type)


def _holds_images(type_: pa.DataType) -> bool:
    return _is_image_struct(type_) or _is_binary(type_)
