"""What every reader yields, and what all readers share: keys, lists of names, JSON that tells where it is broken."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cloc.data.shards import safe_key
from cloc.errors import DataError


@dataclass(frozen=True)
class LabeledBox:
    """A region as its source has it, not checked yet.

    Attributes:
        xyxy: as shares of the image.
        text: what the region is described by.
        label: its class name, "" without one.
        score: how sure the source is of it, in [0, 1].
        source: who says so: "human", or the name of the data set whose boxes a model made.
    """

    xyxy: tuple[float, float, float, float]
    text: str
    label: str = ""
    score: float = 1.0
    source: str = "human"


@dataclass(frozen=True)
class Record:
    """One image with its labels, before it is read.

    Attributes:
        key: unique in the data set.
        name: what the source calls the image, often its path below the folder of images, with "/"; untrusted.
        alt_text: noisy texts from the web; the first one also stands in the sample's JSON.
        captions: texts that people wrote of the picture.
        boxes: regions.
        source, licence: where the image comes from and under which terms; "" when the source does not say.
        annotated_size: (width, height) that the boxes were drawn on, pixels, or None.
        problems: what the reader refused, as reasons for the quarantine table: "caption: ..." or "box: ...".
        crowd_boxes: boxes of crowds, which name no single object and are left out.
    """

    key: str
    name: str
    alt_text: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    boxes: tuple[LabeledBox, ...] = ()
    source: str = ""
    licence: str = ""
    annotated_size: tuple[int, int] | None = None
    problems: tuple[str, ...] = ()
    crowd_boxes: int = 0


def key_of(name: str) -> str:
    """The key of an image: its name without the suffix, in letters, digits, "_" and "-"."""
    if PurePosixPath(name).name in ("", ".", ".."):
        raise DataError(f"{name!r} is not the name of a file")
    return safe_key(str(PurePosixPath(name).with_suffix("")))


def unique(records: Iterable[Record]) -> Iterator[Record]:
    """Passes records on. Raises DataError naming both images when two have the same key.

    Holds every key in memory, about 150 bytes each: sources of one folder or one JSON file are small enough for that.
    """
    seen: dict[str, str] = {}
    for record in records:
        if record.key in seen:
            raise DataError(
                f"{seen[record.key]!r} and {record.name!r} have the same key {record.key!r}; rename one of them"
            )
        seen[record.key] = record.name
        yield record


def image_folder(path: str) -> Path:
    """The folder of images. Raises DataError when it is none."""
    folder = Path(path)
    if not path or not folder.is_dir():
        raise DataError(f"images: there is no folder {path!r}")
    return folder


def read_names(path: str) -> frozenset[str] | None:
    """File names to keep, one a line; None without a list. Raises DataError when it cannot be read or is empty."""
    if not path:
        return None
    names = frozenset(line.strip() for line in read_text(path, what="only").splitlines() if line.strip())
    if not names:
        raise DataError(f"only: {path} lists no file names")
    return names


def keep(records: Iterable[Record], names: frozenset[str] | None, *, source: str) -> Iterator[Record]:
    """Records whose name is listed. Raises DataError at the end when a listed name did not occur."""
    if names is None:
        yield from records
        return
    found: set[str] = set()
    for record in records:
        if record.name in names:
            found.add(record.name)
            yield record
    missing = sorted(names - found)
    if missing:
        raise DataError(f"only: {source} lists {len(missing)} files that the source lacks (first: {missing[0]!r})")


def read_text(path: str, *, what: str) -> str:
    """A text file in UTF-8. Raises DataError naming the option `what` and the path."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{what}: {path} is not UTF-8 (byte {error.start}); convert it") from None
    except OSError as error:
        raise DataError(f"{what}: cannot read {path} ({error.strerror})") from None


def parse_json(text: str, *, source: str) -> Any:
    """JSON of a small file or a line; long lists are for `json_stream`. Raises DataError naming the source."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{source} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{source}: this JSON cannot be read ({error})") from None
