"""Reader: COCO JSON (instances, captions), as of https://cocodataset.org/#format-data.

Boxes are `[x, y, width, height]` in pixels there. Captions are of the kind `human`. Boxes with `iscrowd: 1` mark
groups, not objects: they are counted and left out. The files are streamed into columns (`coco_columns`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cloc.data.ingest.coco_columns import Boxes, Captions, Categories, Images, get
from cloc.data.ingest.json_stream import entries_of_object
from cloc.data.ingest.parts import ShardSize, Source, file_parts
from cloc.data.ingest.records import LabeledBox, Record, image_folder, keep, key_of, read_names
from cloc.errors import DataError


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
    labels = CocoLabels(file_name=_file_name, class_name=str)
    if instances:
        labels.read_instances(instances, what="coco_instances")
    if captions:
        labels.read_captions(captions, what="coco_captions")
    return Source(
        kind="coco",
        parts=file_parts(keep(labels.records(), names, source=only), folder=folder, size=size),
        classes=labels.classes,
        details={"instances": Path(instances).name, "captions": Path(captions).name, "only": Path(only).name},
    )


def _file_name(item: Any, source: str) -> str:
    name: str = get(item, "file_name", str, source=source)
    return name


@dataclass
class CocoLabels:
    """What files of COCO's kind say, in columns.

    Attributes:
        file_name: the file name of an item of `images`, given where it stands for messages.
        class_name: a class as it is called here, in texts and as a label, given its name there.
    """

    file_name: Callable[[Any, str], str]
    class_name: Callable[[str], str]
    images: Images = field(default_factory=Images)
    categories: Categories = field(default_factory=Categories)
    boxes: Boxes = field(default_factory=Boxes)
    captions: Captions = field(default_factory=Captions)

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes, in the order of their ids."""
        return tuple(map(self.class_name, self.categories.names))

    def read_instances(self, path: str, *, what: str) -> None:
        """Reads a file of boxes that the option `what` names. Raises DataError saying where it is wrong."""
        lists, polygons = ("images", "annotations", "categories"), ("segmentation",)
        for entry in entries_of_object(path, what=what, lists=lists, optional=("licenses",), skip=polygons):
            where = f"{what}: {path}: {entry.place}"
            if entry.name == "annotations":
                category = get(entry.value, "category_id", int, source=where)
                self.boxes.add(entry.value, category=category, source=where)
            elif entry.name == "categories":
                self.categories.add(entry.value, source=where)
            else:
                self._add_image(entry.name, entry.value, source=where)
        self.boxes.resolve(self.images, source=f"{what}: {path}")
        self.categories.check(self.boxes.categories, source=f"{what}: {path}")

    def read_captions(self, path: str, *, what: str) -> None:
        """Reads a file of captions that the option `what` names. Raises DataError saying where it is wrong."""
        for entry in entries_of_object(path, what=what, lists=("images", "annotations"), optional=("licenses",)):
            where = f"{what}: {path}: {entry.place}"
            if entry.name == "annotations":
                self.captions.add(entry.value, source=where)
            else:
                self._add_image(entry.name, entry.value, source=where)
        self.captions.resolve(self.images, source=f"{what}: {path}")

    def _add_image(self, name: str, item: Any, *, source: str) -> None:
        if name == "licenses":
            self.images.add_licence(item)
        else:
            self.images.add(item, name=self.file_name(item, source), source=source)

    def records(self) -> Iterator[Record]:
        """The images by name, with their labels."""
        for row in self.images.by_name():
            image = self.images[row]
            boxes = []
            for box in self.boxes.of(row, size=image.size):
                label = self.class_name(self.categories.name_of(box.category))
                boxes.append(LabeledBox(xyxy=box.xyxy, text=label, label=label))
            yield Record(
                key=key_of(PurePosixPath(image.name).name or image.name),
                name=image.name,
                captions=self.captions.of(row),
                boxes=tuple(boxes),
                source=image.url,
                licence=image.licence,
                annotated_size=image.size,
                crowd_boxes=self.boxes.crowds_of(row),
            )
