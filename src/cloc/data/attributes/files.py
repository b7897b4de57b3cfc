"""Reader of hard negatives: texts that are wrong for a box and differ from the right one in a few attributes.

`*.json` is of FG-OVD's kind (https://github.com/lorebianchi98/FG-OVD, `benchmarks/`): COCO's `images`, `annotations`
and `categories`, where a category is a text and an annotation names the right one by `category_id` and the wrong ones
by `neg_category_ids`. The file's name is the level: `1_attributes.json`, `color.json`.

`*.jsonl` has an image a line, boxes as xyxy in pixels of the width and height that stand there; regions without
`negatives` are passed over:

    {"file": "a.jpg", "width": 640, "height": 480,
     "regions": [{"box": [12, 30, 200, 310], "text": "a red mug", "negatives": {"1_attributes": ["a blue mug"]}}]}
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from cloc.data.ingest.coco_columns import get
from cloc.data.ingest.json_stream import entries_of_object
from cloc.data.ingest.records import key_of, parse_json, read_text
from cloc.errors import DataError

_WHAT = "attributes"
_PASSED_OVER = ("segmentation", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class Question:
    """A text that is right for a box and others that are not, as the file has them, not checked yet.

    Attributes:
        level: how the others differ.
        xyxy: the box in shares of the image.
        source: name of the file.
    """

    level: str
    text: str
    negatives: tuple[str, ...]
    xyxy: tuple[float, float, float, float]
    source: str


@dataclass
class AskedImage:
    """An image with its questions.

    Attributes:
        name: as the files call it; may be a path.
        size: (width, height) that the boxes were drawn on, pixels.
        questions: in the order of the files.
    """

    name: str
    size: tuple[int, int]
    questions: list[Question] = field(default_factory=list)


@dataclass(frozen=True)
class AskedImages:
    """What all the files ask, by image.

    Attributes:
        images: by name.
        names: of the images by what their key in a data set may be: of the whole path, or of the file's name alone.
    """

    images: Mapping[str, AskedImage]
    names: Mapping[str, str]

    def find(self, key: str, file: Any) -> AskedImage | None:
        """The image of a sample, by its key or by the name of the file that its JSON says it comes from."""
        keys = [key]
        if isinstance(file, str) and PurePosixPath(file).name not in ("", ".", ".."):
            keys.append(key_of(PurePosixPath(file).name))
        return next((self.images[self.names[key]] for key in keys if key in self.names), None)


@lru_cache(maxsize=1)
def read_questions(files: tuple[str, ...], digest: str) -> AskedImages:
    """Reads the files; a process that asks again is given the same.

    Args:
        files: paths, in order.
        digest: of the files, see `files_digest`; with another one they are read again.

    Raises:
        DataError: a file is missing, broken or of an unknown kind, or two images cannot be told apart.
    """
    del digest
    images: dict[str, AskedImage] = {}
    for path in files:
        suffix = Path(path).suffix.lower()
        if suffix not in _READERS:
            raise DataError(f"{_WHAT}: {path}: expected FG-OVD's .json or .jsonl")
        before = sum(len(image.questions) for image in images.values())
        for name, size, question in _READERS[suffix](path):
            image = images.setdefault(name, AskedImage(name, size))
            if image.size != size:
                raise DataError(f"{_WHAT}: {path}: {name!r} is {size[0]}x{size[1]}, elsewhere it is {image.size}")
            image.questions.append(question)
        if sum(len(image.questions) for image in images.values()) == before:
            raise DataError(f"{_WHAT}: {path} has no boxes with negatives")
    return AskedImages(images, _names(images))


def _names(images: Mapping[str, AskedImage]) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in images:
        for key in {key_of(name), key_of(PurePosixPath(name).name)}:
            if names.setdefault(key, name) != name:
                raise DataError(f"{_WHAT}: {names[key]!r} and {name!r} cannot be told apart by their file names")
    return names


_Found = tuple[str, tuple[int, int], Question]


def _fg_ovd(path: str) -> Iterator[_Found]:
    """The questions of a file of FG-OVD's kind, whose lists may stand in any order."""
    images: dict[int, tuple[str, tuple[int, int]]] = {}
    texts: dict[int, str] = {}
    boxes: list[tuple[str, Any]] = []
    for entry in entries_of_object(path, what=_WHAT, lists=("images", "annotations", "categories"), skip=_PASSED_OVER):
        where = f"{_WHAT}: {path}: {entry.place}"
        if entry.name == "annotations":
            boxes.append((where, entry.value))
        elif entry.name == "images":
            name = get(entry.value, "file_name", str, source=where)
            images[get(entry.value, "id", int, source=where)] = _name(name, where), _size(entry.value, where)
        else:
            texts[get(entry.value, "id", int, source=where)] = get(entry.value, "name", str, source=where)
    for where, item in boxes:
        image = get(item, "image_id", int, source=where)
        if image not in images:
            raise DataError(f"{where}: image_id {image} is not among its images")
        name, size = images[image]
        x, y, width, height = _four(item, "bbox", "[x, y, width, height]", where)
        wrong = get(item, "neg_category_ids", list, source=where)
        yield (
            name,
            size,
            Question(
                level=Path(path).stem,
                text=_text(texts, get(item, "category_id", int, source=where), where),
                negatives=tuple(_text(texts, id_, where) for id_ in wrong),
                xyxy=_shares((x, y, x + width, y + height), size),
                source=Path(path).name,
            ),
        )


def _text(texts: Mapping[int, str], id_: Any, where: str) -> str:
    if type(id_) is not int or id_ not in texts:
        raise DataError(f"{where}: category {str(id_)[:80]} is not among its categories")
    return texts[id_]


def _json_lines(path: str) -> Iterator[_Found]:
    for number, line in enumerate(read_text(path, what=_WHAT).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{_WHAT}: {path}: line {number}"
        item = parse_json(line, source=where)
        name, size = _name(get(item, "file", str, source=where), where), _size(item, where)
        for index, region in enumerate(get(item, "regions", list, source=where)):
            place = f"{where}: regions[{index}]"
            if not isinstance(region, dict):
                raise DataError(f"{place}: expected an object, got {type(region).__name__}")
            if "negatives" in region:
                yield from ((name, size, question) for question in _levels(region, size, place, Path(path).name))


def _levels(region: Any, size: tuple[int, int], where: str, source: str) -> Iterator[Question]:
    text = get(region, "text", str, source=where)
    xyxy = _shares(_four(region, "box", "[x1, y1, x2, y2] in pixels", where), size)
    for level, negatives in get(region, "negatives", dict, source=where).items():
        if not isinstance(negatives, list) or not all(isinstance(item, str) for item in negatives):
            raise DataError(f"{where}: negatives of {level[:80]!r} must be a list of texts")
        yield Question(level, text, tuple(negatives), xyxy, source)


_READERS: Mapping[str, Callable[[str], Iterator[_Found]]] = {".json": _fg_ovd, ".jsonl": _json_lines}


def _name(name: str, where: str) -> str:
    try:
        key_of(name)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    return name


def _size(item: Any, where: str) -> tuple[int, int]:
    width, height = get(item, "width", int, source=where), get(item, "height", int, source=where)
    if min(width, height) < 1:
        raise DataError(f"{where}: width and height must be at least 1, got {width}x{height}")
    return width, height


def _four(item: Any, name: str, form: str, where: str) -> tuple[float, float, float, float]:
    values = get(item, name, list, source=where)
    if len(values) != 4 or not all(type(value) in (int, float) for value in values):
        raise DataError(f"{where}: {name} must be {form}, got {str(values)[:80]}")
    try:
        first, second, third, fourth = map(float, values)
    except OverflowError:
        raise DataError(f"{where}: {name} is beyond any number of pixels") from None
    return first, second, third, fourth


def _shares(xyxy: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    return xyxy[0] / width, xyxy[1] / height, xyxy[2] / width, xyxy[3] / height
