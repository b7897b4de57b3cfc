"""Reader: a folder of images, with captions from `.txt` files beside them and from one captions file.

Such captions are what the web says of a picture, hence of the kind `alt_text`. A captions file is CSV, JSON or JSONL
with `file` (path below the folder) and `caption`, and optionally `source` and `licence`; a file may stand in several
rows, or have a list of captions.
"""

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloc.data.ingest.parts import ShardSize, Source, file_parts
from cloc.data.ingest.records import (
    Record,
    image_folder,
    keep,
    key_of,
    parse_json,
    read_names,
    read_text,
)
from cloc.errors import DataError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


@dataclass
class _Entry:
    """What the captions file says of one image."""

    captions: list[str]
    source: str = ""
    licence: str = ""


def read_folder(*, images: str, captions: str = "", only: str = "", size: ShardSize) -> Source:
    """Opens a folder of images.

    Args:
        images: the folder; its subfolders are included, links to folders are not followed.
        captions: captions file, or "".
        only: text file with the names to keep (paths below the folder, one a line), or "".
        size: of a shard.

    Raises:
        DataError: the folder or a file is missing, or the captions file cannot be understood.
    """
    folder = image_folder(images)
    entries = _read_captions(captions) if captions else {}
    names = read_names(only)
    records = keep(_records(folder, entries, captions=captions), names, source=only)
    return Source(
        kind="folder",
        parts=file_parts(records, folder=folder, size=size),
        details={"captions": Path(captions).name, "only": Path(only).name},
    )


def _records(folder: Path, entries: Mapping[str, _Entry], *, captions: str) -> Iterator[Record]:
    matched = images = 0
    for name in _walk(folder):
        images += 1
        entry = entries.get(name)
        matched += entry is not None
        yield _record(folder, name, entry or _Entry([]))
    if not images:
        raise DataError(f"images: there are no images in {folder} (looked for {', '.join(sorted(_SUFFIXES))})")
    if entries and not matched:
        first = next(iter(entries))
        raise DataError(f"captions: no file named in {captions} is in {folder} (first: {first!r})")


def _walk(folder: Path) -> Iterator[str]:
    """Names of the images below a folder in a fixed order; hidden files and folders are left out."""
    for root, folders, files in os.walk(folder, onerror=_fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _SUFFIXES:
                yield (Path(root) / name).relative_to(folder).as_posix()


def _fail(error: OSError) -> None:
    raise DataError(f"images: cannot read the folder {error.filename} ({error.strerror})") from None


def _record(folder: Path, name: str, entry: _Entry) -> Record:
    texts, problems = list(entry.captions), []
    sidecar = (folder / name).with_suffix(".txt")
    if sidecar.is_file():
        try:
            texts.append(sidecar.read_text(encoding="utf-8-sig").strip())
        except UnicodeDecodeError:
            problems.append(f"caption: {sidecar.name} is not UTF-8")
    return Record(
        key=key_of(name),
        name=name,
        alt_text=tuple(texts),
        source=entry.source,
        licence=entry.licence,
        problems=tuple(problems),
    )


def _read_captions(path: str) -> dict[str, _Entry]:
    suffix = Path(path).suffix.lower()
    if suffix not in _PARSERS:
        raise DataError(f"captions: {path}: expected a file of the kind {', '.join(_PARSERS)}")
    source = f"captions: {path}"
    entries: dict[str, _Entry] = {}
    for place, row in _PARSERS[suffix](read_text(path, what="captions"), source):
        _add(entries, row, source=f"{source}: {place}")
    if not entries:
        raise DataError(f"{source} has no captions")
    return entries


def _add(entries: dict[str, _Entry], row: Any, *, source: str) -> None:
    if not isinstance(row, dict) or not isinstance(row.get("file"), str) or "caption" not in row:
        found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise DataError(f"{source}: expected `file` and `caption`, got {found}")
    caption = row["caption"]
    texts = [caption] if isinstance(caption, str) else caption
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{source}: `caption` is a text or a list of texts, got {type(caption).__name__}")
    entry = entries.setdefault(row["file"], _Entry([]))
    entry.captions.extend(texts)
    entry.source = str(row.get("source") or entry.source)
    entry.licence = str(row.get("licence") or entry.licence)


def _from_csv(text: str, source: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        for row in reader:
            # A row that is cut short has None for a value, one that is too long a None key.
            yield f"line {reader.line_num}", {key: value for key, value in row.items() if key and value is not None}
    except csv.Error as error:
        raise DataError(f"{source} is not valid CSV (line {reader.line_num}: {error})") from None


def _from_json(text: str, source: str) -> Iterator[tuple[str, Any]]:
    tree = parse_json(text, source=source)
    if isinstance(tree, dict):
        tree = [{"file": name, "caption": caption} for name, caption in tree.items()]
    if not isinstance(tree, list):
        raise DataError(f"{source}: expected a list of objects or an object, got {type(tree).__name__}")
    for index, row in enumerate(tree):
        yield f"item {index}", row


def _from_jsonl(text: str, source: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", parse_json(line, source=f"{source}: line {number}")


_PARSERS: dict[str, Callable[[str, str], Iterator[tuple[str, Any]]]] = {
    ".csv": _from_csv,
    ".json": _from_json,
    ".jsonl": _from_jsonl,
}
