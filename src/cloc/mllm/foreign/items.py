"""Items of a file, one by one, each with its place for messages; and the images that they name."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from cloc.boxes import Letterbox
from cloc.data.images import seen_size
from cloc.data.ingest.image_names import locate
from cloc.data.ingest.json_stream import MAX_ENTRY, entries_of_list
from cloc.data.ingest.records import key_of
from cloc.errors import DataError
from cloc.mllm.conversation import Conversation

FrameOf: TypeAlias = Callable[[int, int], Letterbox]
"""Width and height of an image, pixels -> its map to the padded network input."""

_SIZE_NAMES = (("width", "height"), ("image_w", "image_h"))
_FIRST_LINE = 1 << 16  # bytes; an item of JSON lines is shorter, or the file is named so
_RATIO = 0.03  # by which the shape that an item gives its image may differ from the file's


@dataclass(frozen=True)
class ForeignImage:
    """An image with what is said about it.

    Attributes:
        key: its name without the suffix, in the letters of a key, as ingest makes it.
        image: the file.
        conversations: at least one.
        split: of the item, "" where it names none.
    """

    key: str
    image: Path
    conversations: tuple[Conversation, ...]
    split: str = ""


@dataclass(frozen=True)
class Item:
    """An entry of a file, and where it stands ("llava.json: item 3")."""

    where: str
    value: Mapping[str, Any]

    def error(self, problem: str) -> DataError:
        """The error to raise, in one line."""
        return DataError(f"{self.where}: {problem}")


def items_of(path: Path) -> Iterator[Item]:
    """The items of a JSON array, or of JSON lines. Raises DataError when the file is neither, naming the place."""
    if _begins_with(path, b"["):
        for entry in entries_of_list(str(path), what="conversations"):
            yield _item(f"{path}: item {entry.index}", entry.value)
        return
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_ENTRY + 1), b""), start=1):
                if line.strip():
                    yield _item(f"{path}: line {number}", _parse(line, f"{path}: line {number}"))
    except OSError as error:
        raise unreadable(path, error) from None


def _begins_with(path: Path, sign: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(sign)
    except OSError as error:
        raise unreadable(path, error) from None


def is_object_of_lists(path: Path) -> bool:
    """Whether a file is one JSON object with lists in it, as COCO's are, and not an array or JSON lines."""
    if not _begins_with(path, b"{"):
        return False
    with path.open("rb") as file:
        line = file.readline(_FIRST_LINE)
    try:
        return "annotations" in json.loads(line)
    except (ValueError, RecursionError):
        return path.suffix != ".jsonl"


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that cannot be read."""
    return DataError(f"cannot read {path} ({error.strerror}); name a file of conversations or expressions")


def _parse(line: bytes, where: str) -> Any:
    if len(line) > MAX_ENTRY:
        raise DataError(f"{where} is longer than {MAX_ENTRY >> 20} MiB: no such item")
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise DataError(f"{where} is not JSON ({reason}); a JSON array or an object a line is wanted") from None


def _item(where: str, value: Any) -> Item:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, got {type(value).__name__}")
    return Item(where, value)


def find_image(item: Item, name: str, *, images: Path) -> Path:
    """The file of an image, below its folders or without them. Raises DataError when it is not there."""
    found = images / locate(images, (name, PurePosixPath(name).name))
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not found.is_file():
        raise item.error(f"the image {name[:200]!r} is not in {images}")
    return found


def key_of_image(item: Item, name: str) -> str:
    """The key of an image."""
    try:
        return key_of(name)
    except DataError as error:
        raise item.error(str(error)) from None


def size_of(item: Item, image: Path) -> tuple[int, int]:
    """Width and height of an image as it is seen, pixels.

    Raises:
        DataError: it is no image, or the item gives it another shape: its boxes are not in this image's frame.
    """
    try:
        size = seen_size(image.read_bytes())
    except OSError as error:
        raise item.error(f"{image} cannot be read ({error.strerror})") from None
    if size is None:
        raise item.error(f"{image} is not an image")
    width, height = size
    given = given_size(item)
    if given and abs(given[0] * height / (given[1] * width) - 1) > _RATIO:
        raise item.error(
            f"it says {given[0]:g}x{given[1]:g}, {image.name} is {width}x{height}: its boxes are of another image"
        )
    return width, height


def given_size(item: Item) -> tuple[float, float] | None:
    """Width and height that the item gives, pixels, or None. Raises DataError when they are no such numbers."""
    for names in _SIZE_NAMES:
        values = [item.value.get(name) for name in names]
        if values == [None, None]:
            continue
        width, height = (float(value) if value is not None and is_number(value) else 0.0 for value in values)
        if min(width, height) <= 0:
            raise item.error(f"{names[0]} and {names[1]} must be numbers above 0, got {values[0]!r} and {values[1]!r}")
        return width, height
    return None


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
