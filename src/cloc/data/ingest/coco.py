"""Reader: COCO JSON (instances, captions), as of https://cocodataset.org/#format-data.

Boxes are `[x, y, width, height]` in pixels there. Captions are of the kind `human`. Boxes with `iscrowd: 1` mark
groups, not objects: they are counted and left out.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cloc.data.ingest.parts import ShardSize, Source, file_parts
from cloc.data.ingest.records import (
    LabeledBox,
    Record,
    image_folder,
    keep,
    key_of,
    read_json,
    read_names,
)
from cloc.errors import DataError


@dataclass
class _Labels:
    """What the files say, by image id."""

    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    boxes: dict[int, list[LabeledBox]] = field(default_factory=lambda: defaultdict(list))
    captions: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    crowds: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    licences: dict[Any, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def read_coco(*, images: str, instances: str = "", captions: str = "", only: str = "", size: ShardSize) -> Source:
    """Opens a data set in COCO's format.

    Args:
        images: folder that `file_name` is relative to.
        instances: JSON with boxes, or "".
        captions: JSON with captions, or "".
        only: text file with the file names to keep, one a line, or "".
        size: of a shard.

    Raises:
        DataError: a file is missing or broken; one line says where.
    """
    if not instances and not captions:
        raise DataError("coco: name a JSON file of instances, of captions, or both")
    folder = image_folder(images)
    names = read_names(only)
    labels = _Labels()
    if instances:
        _read_instances(instances, labels)
    if captions:
        _read_captions(captions, labels)
    return Source(
        kind="coco",
        parts=file_parts(keep(_records(labels), names, source=only), folder=folder, size=size),
        classes=labels.classes,
        details={"instances": Path(instances).name, "captions": Path(captions).name, "only": Path(only).name},
    )


def _records(labels: _Labels) -> Iterator[Record]:
    for id_, image in sorted(labels.images.items(), key=lambda item: item[1]["file_name"]):
        name = image["file_name"]
        yield Record(
            key=key_of(PurePosixPath(name).name or name),
            name=name,
            captions=tuple(labels.captions.get(id_, ())),
            boxes=tuple(labels.boxes.get(id_, ())),
            source=str(image.get("coco_url") or image.get("flickr_url") or ""),
            licence=labels.licences.get(image.get("license"), ""),
            annotated_size=(image["width"], image["height"]),
            crowd_boxes=labels.crowds.get(id_, 0),
        )


def _read_instances(path: str, labels: _Labels) -> None:
    source = f"coco_instances: {path}"
    tree = _tree(path, what="coco_instances", lists=("images", "annotations", "categories"))
    _read_images(tree, labels, source=source)
    names = {
        _get(item, "id", int, source=f"{source}: categories[{index}]"): _get(
            item, "name", str, source=f"{source}: categories[{index}]"
        ).strip()
        for index, item in enumerate(tree["categories"])
    }
    labels.classes = tuple(names[id_] for id_ in sorted(names))
    for index, item in enumerate(tree["annotations"]):
        where = f"{source}: annotations[{index}]"
        image = _image_of(item, labels, source=where)
        category = _get(item, "category_id", int, source=where)
        if category not in names:
            raise DataError(f"{where}: category_id {category} is not among its categories")
        if item.get("iscrowd"):
            labels.crowds[image["id"]] += 1
        else:
            labels.boxes[image["id"]].append(_box(item, image, names[category], source=where))


def _read_captions(path: str, labels: _Labels) -> None:
    source = f"coco_captions: {path}"
    tree = _tree(path, what="coco_captions", lists=("images", "annotations"))
    _read_images(tree, labels, source=source)
    for index, item in enumerate(tree["annotations"]):
        where = f"{source}: annotations[{index}]"
        image = _image_of(item, labels, source=where)
        labels.captions[image["id"]].append(_get(item, "caption", str, source=where))


def _tree(path: str, *, what: str, lists: tuple[str, ...]) -> dict[str, Any]:
    tree = read_json(path, what=what)
    if not isinstance(tree, dict):
        raise DataError(f"{what}: {path}: expected an object in COCO's format, got {type(tree).__name__}")
    for name in lists:
        _get(tree, name, list, source=f"{what}: {path}")
    return tree


def _read_images(tree: Mapping[str, Any], labels: _Labels, *, source: str) -> None:
    for item in tree.get("licenses") or []:
        if isinstance(item, dict):
            labels.licences[item.get("id")] = str(item.get("url") or item.get("name") or "")
    for index, item in enumerate(tree["images"]):
        where = f"{source}: images[{index}]"
        id_, name = _get(item, "id", int, source=where), _get(item, "file_name", str, source=where)
        if min(_get(item, "width", int, source=where), _get(item, "height", int, source=where)) < 1:
            raise DataError(f"{where}: width and height must be at least 1, got {item['width']}x{item['height']}")
        known = labels.images.setdefault(id_, item)
        if known["file_name"] != name:
            raise DataError(f"{where}: id {id_} stands for {name!r} and for {known['file_name']!r}")


def _image_of(item: Any, labels: _Labels, *, source: str) -> dict[str, Any]:
    id_ = _get(item, "image_id", int, source=source)
    if id_ not in labels.images:
        raise DataError(f"{source}: image_id {id_} is not among its images")
    return labels.images[id_]


def _box(item: Mapping[str, Any], image: Mapping[str, Any], label: str, *, source: str) -> LabeledBox:
    bbox = _get(item, "bbox", list, source=source)
    if len(bbox) != 4 or not all(isinstance(value, int | float) for value in bbox):
        raise DataError(f"{source}: bbox must be [x, y, width, height], got {str(bbox)[:80]}")
    try:
        x, y, width, height = (float(value) for value in bbox)
        columns, rows = float(image["width"]), float(image["height"])
    except OverflowError:
        raise DataError(f"{source}: bbox or the size of its image is beyond any number of pixels") from None
    xyxy = (x / columns, y / rows, (x + width) / columns, (y + height) / rows)
    return LabeledBox(xyxy=xyxy, text=label, label=label)


def _get(item: Any, name: str, kind: type, *, source: str) -> Any:
    """A key of an object, of a given type. Raises DataError saying which key is missing or wrong."""
    if not isinstance(item, dict):
        raise DataError(f"{source}: expected an object, got {type(item).__name__}")
    if name not in item:
        raise DataError(f"{source}: the key {name!r} is missing")
    if not isinstance(item[name], kind) or isinstance(item[name], bool):
        raise DataError(f"{source}: {name} must be of type {kind.__name__}, got {str(item[name])[:80]!r}")
    return item[name]
