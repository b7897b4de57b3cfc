"""Captions of a folder's images: a table of them in one file, and sidecars, which are files beside the images.

A table is CSV, TSV, JSON, JSONL or Parquet with `file` (path below the folder) and `caption`, and optionally `source`
and `licence`; a file may stand in several rows, or have a list of captions. A sidecar has the image's name with `.txt`
(one caption) or `.json`:

    {"caption": "a dog", "source": "https://...", "licence": "CC0", "width": 640, "height": 480,
     "regions": [{"box": [0.1, 0.2, 0.5, 0.9], "text": "the dog", "unit": "share"}]}

Of its keys, `captions`, `alt_text` and `text` mean the same as `caption`, a text or a list of texts, `url` the same as
`source`, `license` the same as `licence`. Boxes are xyxy of the image as seen, in shares of it unless their unit is
"pixel", which needs `width` and `height`. Such captions are what the web says of a picture: of the kind `alt_text`.
"""

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from cloc.data.ingest.records import LabeledBox, parse_json, read_text
from cloc.errors import DataError

COLUMNS = ("file", "caption", "source", "licence")
_CAPTION_KEYS = ("caption", "captions", "alt_text", "text")
_SOURCE_KEYS, _LICENCE_KEYS = ("source", "url"), ("licence", "license")
_BATCH_ROWS = 4096


@dataclass(slots=True)
class Labels:
    """What the files say of one image; see the attributes of `Record`."""

    captions: tuple[str, ...] = ()
    source: str = ""
    licence: str = ""
    boxes: tuple[LabeledBox, ...] = ()
    annotated_size: tuple[int, int] | None = None
    problems: tuple[str, ...] = ()


# --- tables


def read_captions(path: str, *, columns: Mapping[str, str]) -> dict[str, Labels]:
    """The labels of a table by file name; what it says of a file is in memory, for all of its files.

    Args:
        path: the table.
        columns: what its columns are called, where they are not called by their names in `COLUMNS`.

    Raises:
        DataError: the table is missing, of an unknown kind, broken, or has no captions; names the line or row.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _PARSERS:
        raise DataError(f"captions: {path}: expected a file of the kind {', '.join(_PARSERS)}")
    names = {name: columns.get(name, name) for name in COLUMNS}
    entries: dict[str, Labels] = {}
    for place, row in _PARSERS[suffix](path, names):
        _add(entries, row, names, source=f"captions: {path}: {place}")
    if not entries:
        raise DataError(f"captions: {path} has no captions")
    return entries


def _add(entries: dict[str, Labels], row: Any, names: Mapping[str, str], *, source: str) -> None:
    file, caption = names["file"], names["caption"]
    if not isinstance(row, dict) or not isinstance(row.get(file), str) or caption not in row:
        found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{source}: expected `{file}` and `{caption}`, got {found}")
    texts = _texts(row[caption])
    if texts is None:
        raise DataError(f"{source}: `{caption}` is a text or a list of texts, got {type(row[caption]).__name__}")
    entry = entries.setdefault(row[file], Labels())
    entry.captions += tuple(texts)
    # A table of millions of rows has few licences: each is held once.
    entry.source = str(row.get(names["source"]) or entry.source)
    entry.licence = sys.intern(str(row.get(names["licence"]) or entry.licence))


def _texts(value: Any) -> list[str] | None:
    """The captions in a value; none in null, None when it is neither a text nor a list of texts."""
    texts = value if isinstance(value, list) else [] if value is None else [value]
    return texts if all(isinstance(text, str) for text in texts) else None


def _from_csv(path: str, names: Mapping[str, str], *, delimiter: str = ",") -> Iterator[tuple[str, Any]]:
    with _opened(path) as stream:
        reader = csv.DictReader(stream, strict=True, delimiter=delimiter)
        try:
            for row in reader:
                # A row that is cut short has None for a value, one that is too long a None key.
                yield f"line {reader.line_num}", {key: value for key, value in row.items() if key and value is not None}
        except csv.Error as error:
            raise DataError(f"captions: {path} is not valid CSV (line {reader.line_num}: {error})") from None
        except UnicodeDecodeError:
            raise DataError(f"captions: {path} is not UTF-8 (after line {reader.line_num}); convert it") from None


def _from_tsv(path: str, names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    return _from_csv(path, names, delimiter="\t")


def _from_json(path: str, names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    source = f"captions: {path}"
    tree = parse_json(read_text(path, what="captions"), source=source)
    if isinstance(tree, dict):
        tree = [{names["file"]: name, names["caption"]: caption} for name, caption in tree.items()]
    if not isinstance(tree, list):
        raise DataError(f"{source}: expected a list of objects or an object, got {type(tree).__name__}")
    for index, row in enumerate(tree):
        yield f"item {index}", row


def _from_jsonl(path: str, names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    with _opened(path) as stream:
        number = 0
        try:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"line {number}", parse_json(line, source=f"captions: {path}: line {number}")
        except UnicodeDecodeError:
            raise DataError(f"captions: {path} is not UTF-8 (after line {number}); convert it") from None


def _from_parquet(path: str, names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    try:
        with pq.ParquetFile(path) as table:
            found = table.schema_arrow.names
            for name in (names["file"], names["caption"]):
                if name not in found:
                    raise DataError(f"captions: {path} has no column {name!r} (it has: {', '.join(found)})")
            taken = [name for name in names.values() if name in found]
            start = 0
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=taken):
                for index, row in enumerate(batch.to_pylist(), start=start):
                    yield f"row {index}", row
                start += len(batch)
    except UnicodeDecodeError:
        raise DataError(f"captions: {path} has texts that are not UTF-8; write them again") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"captions: cannot read {path} as Parquet ({' '.join(str(error).split())[:200]})") from None


def _opened(path: str) -> TextIO:
    try:
        return Path(path).open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise DataError(f"captions: cannot read {path} ({error.strerror})") from None


_PARSERS: dict[str, Callable[[str, Mapping[str, str]], Iterator[tuple[str, Any]]]] = {
    ".csv": _from_csv,
    ".tsv": _from_tsv,
    ".json": _from_json,
    ".jsonl": _from_jsonl,
    ".parquet": _from_parquet,
}


# --- sidecars


def read_sidecar(path: Path, *, max_bytes: int) -> Labels:
    """What a sidecar says; what cannot be used stands in `problems`, as reasons for the quarantine table."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            return _refused(f"{path.name} has {size} bytes, more than data.max_text_bytes {max_bytes} allows")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return _refused(f"{path.name} is not UTF-8")
    except OSError as error:
        return _refused(f"{path.name} cannot be read ({error.strerror})")
    if path.suffix.lower() == ".txt":
        return Labels(captions=(text.strip(),))
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _refused(f"{path.name} is not valid JSON ({error})")
    if not isinstance(tree, dict):
        return _refused(f"{path.name}: expected an object, got {type(tree).__name__}")
    return _from_sidecar(tree, name=path.name)


def _refused(reason: str) -> Labels:
    return Labels(problems=(f"caption: {reason}",))


def _from_sidecar(tree: Mapping[str, Any], *, name: str) -> Labels:
    labels = Labels(source=_first_text(tree, _SOURCE_KEYS), licence=_first_text(tree, _LICENCE_KEYS))
    for key in _CAPTION_KEYS:
        texts = _texts(tree.get(key))
        if texts is None:
            labels.problems += (f"caption: {name}: {key} is a text or a list of texts",)
        labels.captions += tuple(texts or ())
    _add_regions(tree, labels, name=name)
    return labels


def _first_text(tree: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return next((tree[key] for key in keys if isinstance(tree.get(key), str)), "")


def _add_regions(tree: Mapping[str, Any], labels: Labels, *, name: str) -> None:
    regions = tree.get("regions") or []
    if not isinstance(regions, list):
        labels.problems += (f"box: {name}: regions is a list, got {type(regions).__name__}",)
        return
    width, height = tree.get("width"), tree.get("height")
    # Without regions they say nothing that the image itself does not.
    if regions and isinstance(width, int) and isinstance(height, int) and 0 < min(width, height) < 1 << 31:
        labels.annotated_size = (width, height)
    boxes = []
    for index, region in enumerate(regions):
        box = _region(region, labels.annotated_size)
        if isinstance(box, str):
            labels.problems += (f"box: {name}: regions[{index}]: {box}",)
        else:
            boxes.append(box)
    labels.boxes = tuple(boxes)


def _region(region: Any, frame: tuple[int, int] | None) -> LabeledBox | str:
    """A region of a sidecar, or why it is none."""
    if not isinstance(region, dict) or not isinstance(region.get("text"), str):
        return f"expected an object with box and text, got {str(region)[:80]}"
    box, unit = region.get("box"), region.get("unit", "share")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return f"box must be [x1, y1, x2, y2], got {str(box)[:80]}"
    if unit not in ("share", "pixel"):
        return f"unit must be share or pixel, got {str(unit)[:80]!r}"
    if unit == "pixel" and frame is None:
        return "a box in pixels needs width and height beside regions"
    width, height = frame if frame is not None and unit == "pixel" else (1, 1)
    x1, y1, x2, y2 = (float(value) for value in box)
    return LabeledBox(xyxy=(x1 / width, y1 / height, x2 / width, y2 / height), text=region["text"])


def is_number(value: Any) -> bool:
    """Whether a value can be a coordinate: a finite number, small enough for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)
