"""Reader: LVIS (https://www.lvisdataset.org): COCO's images and format with 1,203 classes.

What differs: images have a `coco_url` instead of a `file_name`, and class names are identifiers such as
`bat_(animal)`, which become words, since evaluation asks a text encoder for them. Which classes were not searched for
in an image (`neg_category_ids`, `not_exhaustive_category_ids`) is for LVIS's own evaluation: no label follows from it.
"""

from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from cloc.data.ingest.coco import CocoLabels
from cloc.data.ingest.coco_columns import get
from cloc.data.ingest.image_names import keep_listed, located
from cloc.data.ingest.parts import ShardSize, Source, file_parts
from cloc.data.ingest.records import image_folder


def read_lvis(*, annotations: str, images: str, only: str = "", size: ShardSize) -> Source:
    """Opens LVIS.

    Args:
        annotations: its JSON, e.g. `lvis_v1_train.json`.
        images: folder of COCO's images, in `train2017` and `val2017` below it or all in one.
        only: text file with the images to keep, one a line, or "".
        size: of a shard.

    Raises:
        DataError: a file is missing or broken; one line says where.
    """
    folder = image_folder(images)
    labels = CocoLabels(file_name=_file_name, class_name=readable)
    labels.read_instances(annotations, what="annotations")
    records = keep_listed(labels.records(), only)
    return Source(
        kind="lvis",
        parts=file_parts(located(records, folder), folder=folder, size=size),
        classes=labels.classes,
        details={"annotations": Path(annotations).name, "only": Path(only).name},
    )


def readable(name: str) -> str:
    """A class name as one would write it: `bat_(animal)` becomes "bat (animal)"."""
    return " ".join(name.replace("_", " ").split())


def _file_name(item: Any, source: str) -> str:
    """`train2017/000000391895.jpg` of a `coco_url`; releases before 1.0 have a `file_name` too."""
    if isinstance(item, dict) and "coco_url" not in item:
        name: str = get(item, "file_name", str, source=source)
        return name
    return str(PurePosixPath(*PurePosixPath(urlsplit(get(item, "coco_url", str, source=source)).path).parts[-2:]))
