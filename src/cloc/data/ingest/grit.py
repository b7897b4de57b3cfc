"""Reader: GRIT (Kosmos-2, https://arxiv.org/abs/2306.14824), texts from the web with boxes that a model drew.

A row has `caption` and two lists, `noun_chunks` and `ref_exps`, of `[start, end, x1, y1, x2, y2, score]`: the text of
the region is `caption[start:end]`, the box is in shares of the image. The rows are Parquet, as GRIT comes and as
img2dataset leaves it beside the images it fetched, or JSON lines.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cloc.data.ingest.image_names import SUFFIXES, keep_listed, locate
from cloc.data.ingest.parts import ShardSize, Source, file_parts
from cloc.data.ingest.records import LabeledBox, Record, image_folder, key_of, parse_json
from cloc.errors import DataError

SOURCE = "grit"
_LISTS = ("noun_chunks", "ref_exps")
_COLUMNS = ("key", "id", "caption", "url", *_LISTS, "width", "height", "original_width", "original_height")
_BATCH = 1024
_MAX_LINE = 2**20


@dataclass(frozen=True)
class SampleLabels:
    """What a row of GRIT says of its image.

    Attributes:
        alt_text: its text from the web, or ().
        boxes: its regions, those that stand twice once.
        problems: what could not be read, as reasons for the quarantine table.
    """

    alt_text: tuple[str, ...] = ()
    boxes: tuple[LabeledBox, ...] = ()
    problems: tuple[str, ...] = ()


def read_grit(*, annotations: str, images: str, only: str = "", size: ShardSize) -> Source:
    """Opens GRIT with images that were fetched.

    Args:
        annotations: `.parquet` or `.jsonl` file, or a folder of such.
        images: folder of the images: `<key>.jpg`, or `00000/<key>.jpg` as img2dataset's `files` have it. Rows without
            a `key` have an `id`.
        only: text file with the images to keep, one a line, or "".
        size: of a shard.

    Raises:
        DataError: a file is missing, broken or of another kind. Regions that are wrong are quarantined.
    """
    folder = image_folder(images)
    records = (_record(row, place, folder) for path in _files(Path(annotations)) for place, row in _rows(path))
    return Source(
        kind=SOURCE,
        parts=file_parts(keep_listed(records, only), folder=folder, size=size),
        details={"annotations": Path(annotations).name, "only": Path(only).name},
    )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in _READERS)
    if not files:
        raise DataError(f"annotations: there are no files of the kind {', '.join(_READERS)} in {path}")
    return files


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a file, each with its place for messages."""
    if path.suffix not in _READERS:
        raise DataError(f"annotations: {path}: expected a folder or a file of the kind {', '.join(_READERS)}")
    try:
        yield from _READERS[path.suffix](path, f"annotations: {path}")
    except OSError as error:
        raise DataError(f"annotations: cannot read {path} ({error.strerror})") from None


def _parquet_rows(path: Path, source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:
            _check_columns(file.schema_arrow.names, source)
            columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
            start = 0
            for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
                for index, row in enumerate(batch.to_pylist(), start=start):
                    yield f"{source}: row {index}", row
                start += len(batch)
    except pa.ArrowException as error:
        raise DataError(f"{source} is not a Parquet file that can be read ({str(error).splitlines()[0]})") from None


def _json_rows(path: Path, source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE + 1), b""), start=1):
            place = f"{source}: line {number}"
            if len(line) > _MAX_LINE:
                raise DataError(f"{place} is longer than {_MAX_LINE >> 20} MiB: no such row")
            try:
                text = line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise DataError(f"{place} is not UTF-8 (byte {error.start}); convert it") from None
            if not text.strip():
                continue
            row = parse_json(text, source=place)
            if not isinstance(row, dict):
                raise DataError(f"{place}: expected an object, got {type(row).__name__}")
            _check_columns(row, place)
            yield place, row


_READERS = {".parquet": _parquet_rows, ".jsonl": _json_rows}


def _check_columns(names: Any, source: str) -> None:
    """Raises DataError when rows of these columns are not GRIT's."""
    for alternatives in (("key", "id"), ("caption",), _LISTS):
        if not any(name in names for name in alternatives):
            found = ", ".join(map(str, list(names)[:20]))
            raise DataError(f"{source} has no {' or '.join(alternatives)}: not GRIT (there are: {found[:200]})")


def _record(row: Mapping[str, Any], place: str, folder: Path) -> Record:
    key = row.get("key") if row.get("key") is not None else row.get("id")
    if not isinstance(key, str | int) or not str(key):
        raise DataError(f"{place}: the key must be a text or a number, got {str(key)[:80]!r}")
    labels = labels_of_json(row)
    names = [f"{part}{key}{suffix}" for part in ("", f"{str(key)[:5]}/") for suffix in SUFFIXES]
    return Record(
        key=key_of(names[0]),
        name=locate(folder, names),
        alt_text=labels.alt_text,
        boxes=labels.boxes,
        source=str(row.get("url") or ""),
        annotated_size=_size(row),
        problems=labels.problems,
    )


def _size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """The size that the boxes were drawn on, in pixels, where the row has it."""
    for prefix in ("original_", ""):
        width, height = row.get(f"{prefix}width"), row.get(f"{prefix}height")
        if type(width) is int and type(height) is int and min(width, height) > 0:
            return width, height
    return None


def labels_of_json(meta: Mapping[str, Any]) -> SampleLabels:
    """The labels in a row of GRIT, or in the JSON of a sample that img2dataset made with its columns.

    A row without these columns gives its caption alone, one without a caption nothing.
    """
    caption = meta.get("caption")
    entries = {name: list(_entries(meta.get(name))) for name in _LISTS}
    if caption is None or not str(caption).strip():
        lost = sum(map(len, entries.values()))
        return SampleLabels(problems=(f"box: there is no caption for its {lost} regions",) if lost else ())
    if not isinstance(caption, str):
        return SampleLabels(problems=(f"caption: expected a text, got {type(caption).__name__}",))
    boxes: dict[tuple[Any, ...], LabeledBox] = {}
    problems = []
    for name in _LISTS:
        for index, entry in enumerate(entries[name]):
            box = _box(entry, caption)
            if isinstance(box, str):
                problems.append(f"box: {name}[{index}]: {box}")
                continue
            known = boxes.get((box.xyxy, box.text))
            # A chunk that an expression does not widen stands in both lists.
            boxes[box.xyxy, box.text] = box if known is None or box.score > known.score else known
    return SampleLabels(alt_text=(caption,), boxes=tuple(boxes.values()), problems=tuple(problems))


def _entries(value: Any) -> Iterator[Any]:
    """The entries of a list, which CSV and some writers of JSON have as text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):  # text that is no JSON is told below as no list
            value = json.loads(value)
    if isinstance(value, list | tuple):
        yield from value
    elif value is not None:
        yield value  # told as a problem of its own


def _box(entry: Any, caption: str) -> LabeledBox | str:
    """A region, or why the entry is none."""
    if not isinstance(entry, list | tuple) or len(entry) != 7 or not all(map(_is_number, entry)):
        return f"expected [start, end, x1, y1, x2, y2, score], got {str(entry)[:80]}"
    start, end, x1, y1, x2, y2, score = (float(value) for value in entry)
    if not 0 <= start < end <= len(caption):
        return f"[{start:g}, {end:g}] is no part of its caption of {len(caption)} letters"
    return LabeledBox(xyxy=(x1, y1, x2, y2), text=caption[int(start) : int(end)], score=score, source=SOURCE)


def _is_number(value: Any) -> bool:
    """Whether a value can be a position, a share or a score; no such number is large."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)
