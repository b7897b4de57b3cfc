"""Reader: region descriptions of Visual Genome (https://homes.cs.washington.edu/~ranjay/visualgenome/).

`region_descriptions.json` is a list with an entry an image, whose `regions` have `x`, `y`, `width`, `height` in pixels
and a `phrase`; `image_data.json` beside it has sizes and URLs, of which the last two parts say where an image lies:
`VG_100K/<id>.jpg` or `VG_100K_2/<id>.jpg`. The regions are streamed: no more than an image's stand in memory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from cloc.data.ingest.coco_columns import get
from cloc.data.ingest.image_names import keep_listed, locate
from cloc.data.ingest.json_stream import entries_of_list
from cloc.data.ingest.parts import ShardSize, Source, file_parts
from cloc.data.ingest.records import LabeledBox, Record, image_folder, key_of
from cloc.errors import DataError

REGIONS = "region_descriptions.json"
IMAGES = "image_data.json"
_FOLDERS = ("VG_100K", "VG_100K_2")


@dataclass(frozen=True, slots=True)
class _Image:
    """What is known of an image: its URL, and its size in pixels."""

    url: str
    width: int
    height: int


def read_visual_genome(*, annotations: str, images: str, only: str = "", size: ShardSize) -> Source:
    """Opens Visual Genome.

    Args:
        annotations: `region_descriptions.json`, or its folder; `image_data.json` lies beside it.
        images: folder of `VG_100K` and `VG_100K_2`, or of all images.
        only: text file with the images to keep, one a line, or "".
        size: of a shard.

    Raises:
        DataError: a file is missing or broken. Regions that are wrong are quarantined.
    """
    folder = image_folder(images)
    regions = Path(annotations) / REGIONS if Path(annotations).is_dir() else Path(annotations)
    known = _images(str(regions.parent / IMAGES))
    return Source(
        kind="visual_genome",
        parts=file_parts(keep_listed(_records(str(regions), known, folder), only), folder=folder, size=size),
        details={"annotations": regions.name, "only": Path(only).name},
    )


def _images(path: str) -> dict[int, _Image]:
    found: dict[int, _Image] = {}
    for entry in entries_of_list(path, what="annotations"):
        where = f"annotations: {path}: {entry.place}"
        image = _Image(
            url=get(entry.value, "url", str, source=where),
            width=get(entry.value, "width", int, source=where),
            height=get(entry.value, "height", int, source=where),
        )
        if min(image.width, image.height) < 1:
            raise DataError(f"{where}: width and height must be at least 1, got {image.width}x{image.height}")
        found[_id(entry.value, source=where)] = image
    return found


def _records(path: str, known: Mapping[int, _Image], folder: Path) -> Iterator[Record]:
    for entry in entries_of_list(path, what="annotations"):
        where = f"annotations: {path}: {entry.place}"
        id_ = _id(entry.value, source=where)
        regions = get(entry.value, "regions", list, source=where)
        if id_ not in known:
            raise DataError(f"{where}: the image {id_} is not in {IMAGES} beside it")
        yield _record(id_, regions, known[id_], folder)


def _id(item: Any, *, source: str) -> int:
    """The id of an image, which the releases name differently."""
    name = "image_id" if isinstance(item, dict) and "image_id" in item else "id"
    id_: int = get(item, name, int, source=source)
    return id_


def _record(id_: int, regions: list[Any], image: _Image, folder: Path) -> Record:
    boxes: dict[LabeledBox, None] = {}
    problems = []
    for index, region in enumerate(regions):
        try:
            boxes[_box(region, image)] = None
        except DataError as error:
            problems.append(f"box: regions[{index}]{error}")
    own = str(PurePosixPath(*PurePosixPath(urlsplit(image.url).path).parts[-2:]))
    name = PurePosixPath(own).name
    return Record(
        key=key_of(str(id_)),
        name=locate(folder, (own, name, *(f"{part}/{name}" for part in _FOLDERS))),
        boxes=tuple(boxes),
        source=image.url,
        annotated_size=(image.width, image.height),
        problems=tuple(problems),
    )


def _box(region: Any, image: _Image) -> LabeledBox:
    """A region. Raises DataError when it is none."""
    x, y, width, height = (float(get(region, name, int | float, source="")) for name in ("x", "y", "width", "height"))
    phrase = get(region, "phrase", str, source="")
    xyxy = (x / image.width, y / image.height, (x + width) / image.width, (y + height) / image.height)
    return LabeledBox(xyxy=xyxy, text=phrase)
