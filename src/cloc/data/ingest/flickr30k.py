"""Reader: Flickr30k Entities (https://github.com/BryanPlummer/flickr30k_entities), in its two spreads.

The original has two files an image: `Sentences/<id>.txt`, a caption a line with marks such as
`[/EN#137644/people A group of friends] playing cards .`, and `Annotations/<id>.xml` with the boxes of the entities.
An entity has no box (it is the scene, or not to be seen), one or several. The other spread, made for MDETR and GLIP,
is JSON of COCO's kind with an image entry for each caption; `tokens_positive` of a box are the spans of its phrase.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from cloc.data.ingest.coco_columns import Boxes, Images, get
from cloc.data.ingest.image_names import keep_listed
from cloc.data.ingest.json_stream import entries_of_object
from cloc.data.ingest.parts import ShardSize, Source, file_parts
from cloc.data.ingest.records import LabeledBox, Record, image_folder, key_of
from cloc.errors import DataError

_MARK = re.compile(r"\[/EN#(\d+)(?:/[^\s\[\]/]+)+ ([^\[\]]*)\]")
# Real files have some kilobytes.
_MAX_FILE = 2**20

_Xyxy: TypeAlias = tuple[float, float, float, float]


def read_flickr30k(*, annotations: str, images: str, only: str = "", size: ShardSize) -> Source:
    """Opens Flickr30k Entities.

    Args:
        annotations: the folder of `Annotations` and `Sentences`, or a `.json` file of MDETR's kind.
        images: folder of the images.
        only: text file with the images to keep, one a line (`train.txt` and so on of the original), or "".
        size: of a shard.

    Raises:
        DataError: the folder or the JSON is not as it should be. What is wrong with single images is quarantined.
    """
    folder = image_folder(images)
    records = _json_records(annotations) if annotations.endswith(".json") else _entity_records(Path(annotations))
    return Source(
        kind="flickr30k",
        parts=file_parts(keep_listed(records, only), folder=folder, size=size),
        details={"annotations": Path(annotations).name, "only": Path(only).name},
    )


# --- the original


def _entity_records(root: Path) -> Iterator[Record]:
    for part in ("Annotations", "Sentences"):
        if not (root / part).is_dir():
            raise DataError(f"annotations: {root} is no folder of Flickr30k Entities: there is no {root / part}")
    names = sorted(path.stem for path in (root / "Sentences").glob("*.txt"))
    if not names:
        raise DataError(f"annotations: there are no *.txt in {root / 'Sentences'}")
    return (_entity_record(root, name) for name in names)


def _entity_record(root: Path, name: str) -> Record:
    problems: list[str] = []
    captions, phrases = _sentences(root / "Sentences" / f"{name}.txt", problems)
    boxes, size = _entities(root / "Annotations" / f"{name}.xml", problems)
    # Several captions name an entity alike: that is one region.
    regions = {LabeledBox(xyxy=xyxy, text=text): None for entity, text in phrases for xyxy in boxes.get(entity, ())}
    return Record(
        key=key_of(f"{name}.jpg"),
        name=f"{name}.jpg",
        captions=captions,
        boxes=tuple(regions),
        annotated_size=size,
        problems=tuple(problems),
    )


def _sentences(path: Path, problems: list[str]) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """The captions without marks, and (entity, phrase) of each mark."""
    try:
        text = _read(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        problems.append(f"caption: {path.name} cannot be read ({_reason(error)})")
        return (), []
    captions, phrases = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        caption = _MARK.sub(r"\2", line).strip()
        if "[/EN#" in caption:
            problems.append(f"caption: {path.name}, line {number}: a mark that cannot be read ({caption[:80]!r})")
        elif caption:
            captions.append(caption)
            phrases += _MARK.findall(line)
    return tuple(captions), phrases


def _entities(path: Path, problems: list[str]) -> tuple[dict[str, list[_Xyxy]], tuple[int, int] | None]:
    """The boxes by entity, and the size of the image in pixels."""
    try:
        root = fromstring(_read(path))
        size = _number(root, "size/width"), _number(root, "size/height")
        if min(size) < 1:
            raise ValueError(f"size is {size[0]}x{size[1]}")
    except (OSError, ValueError, ParseError, DefusedXmlException) as error:
        problems.append(f"box: {path.name} cannot be read ({_reason(error)})")
        return {}, None
    boxes: dict[str, list[_Xyxy]] = defaultdict(list)
    for item in root.iterfind("object"):
        box = item.find("bndbox")
        if box is None:
            continue  # the scene, or nothing to be seen
        try:
            # Corners are pixels counted from 1, and those at the far corner belong to the box.
            left, top = _number(box, "xmin") - 1, _number(box, "ymin") - 1
            right, bottom = _number(box, "xmax"), _number(box, "ymax")
        except ValueError as error:
            problems.append(f"box: {path.name}: {error}")
            continue
        xyxy = (left / size[0], top / size[1], right / size[0], bottom / size[1])
        for entity in item.iterfind("name"):
            boxes[(entity.text or "").strip()].append(xyxy)
    return boxes, size


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        body = file.read(_MAX_FILE + 1)
    if len(body) > _MAX_FILE:
        raise ValueError(f"larger than {_MAX_FILE >> 20} MiB")
    return body


def _number(item: Element, path: str) -> int:
    """A whole number of pixels in an element. Raises ValueError naming the element."""
    text = (item.findtext(path) or "").strip()
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise ValueError(f"{path} is {text[:80]!r}, not a number of pixels")
    return int(text)


def _reason(error: Exception) -> str:
    if isinstance(error, DefusedXmlException):
        return f"{type(error).__name__}: XML with entities or a DTD"
    return str(error.strerror if isinstance(error, OSError) else error).splitlines()[0]


# --- MDETR's JSON


def _json_records(path: str) -> Iterator[Record]:
    images, boxes = Images(), Boxes()
    captions: list[str] = []
    spans: list[tuple[int, ...]] = []
    lists, masks = ("images", "annotations"), ("segmentation", "masks")
    for entry in entries_of_object(path, what="annotations", lists=lists, skip=masks):
        where = f"annotations: {path}: {entry.place}"
        if entry.name == "annotations":
            boxes.add(entry.value, category=0, source=where)
            spans.append(_spans(entry.value, source=where))
            continue
        name = get(entry.value, "file_name", str, source=where)
        if images.add(entry.value, name=name, source=where) < len(captions):
            raise DataError(f"{where}: id {entry.value['id']} stands twice")
        captions.append(get(entry.value, "caption", str, source=where))
    boxes.resolve(images, source=f"annotations: {path}")
    return _joined(images, captions, boxes, spans)


def _spans(item: Any, *, source: str) -> tuple[int, ...]:
    """The spans of a phrase in one row: start, end, start, end, ..."""
    found = get(item, "tokens_positive", list, source=source)
    numbers = [number for span in found if isinstance(span, list) and len(span) == 2 for number in span]
    if len(numbers) != 2 * len(found) or not all(type(number) is int for number in numbers):
        raise DataError(f"{source}: tokens_positive must be a list of [start, end], got {str(found)[:80]}")
    return tuple(numbers)


def _joined(images: Images, captions: list[str], boxes: Boxes, spans: list[tuple[int, ...]]) -> Iterator[Record]:
    """A record a file: the entries of its captions as one."""
    for name, rows in groupby(images.by_name(), key=lambda row: images[row].name):
        entries = list(rows)
        image = images[entries[0]]
        regions: dict[LabeledBox, None] = {}
        problems, crowds = [], 0
        for row in entries:
            caption = captions[row]
            crowds += boxes.crowds_of(row)
            for box in boxes.of(row, size=image.size):
                text = _phrase(caption, spans[box.index])
                if text:
                    regions[LabeledBox(xyxy=box.xyxy, text=text)] = None
                else:
                    problems.append(f"box: {spans[box.index]} is no part of {caption[:80]!r}")
        yield Record(
            key=key_of(PurePosixPath(name).name or name),
            name=name,
            captions=tuple(dict.fromkeys(captions[row] for row in entries)),
            boxes=tuple(regions),
            annotated_size=image.size,
            problems=tuple(problems),
            crowd_boxes=crowds,
        )


def _phrase(caption: str, spans: tuple[int, ...]) -> str:
    """The text of spans of a caption; "" when one lies outside."""
    pairs = list(zip(spans[::2], spans[1::2], strict=True))
    if not all(0 <= start < end <= len(caption) for start, end in pairs):
        return ""
    return " ".join(caption[start:end].strip() for start, end in pairs)
