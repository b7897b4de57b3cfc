"""Reader: a folder of images, with captions and regions from sidecars and from one table of captions (`captions`)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cloc.data.ingest.captions import COLUMNS, Labels, read_captions, read_sidecar
from cloc.data.ingest.columns import parse_columns
from cloc.data.ingest.parts import ShardSize, Source, file_parts
from cloc.data.ingest.records import Record, image_folder, keep, key_of, read_names
from cloc.errors import DataError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_SIDECARS = (".txt", ".json")


def read_folder(
    *,
    images: str,
    captions: str = "",
    columns: str = "",
    only: str = "",
    size: ShardSize,
    max_text_bytes: int,
) -> Source:
    """Opens a folder of images.

    Args:
        images: the folder; its subfolders are included, links to folders are not followed.
        captions: table of captions, or "".
        columns: names of that table's columns, as in "file=path,caption=title".
        only: text file with the names to keep (paths below the folder, one a line), or "".
        size: of a shard.
        max_text_bytes: of a sidecar; a larger one is quarantined.

    Raises:
        DataError: the folder or a file is missing, or the table of captions cannot be understood.
    """
    folder = image_folder(images)
    named = parse_columns(columns, known=COLUMNS)
    if named and not captions:
        raise DataError(f"columns: {columns!r} names columns of a table of captions; name that in captions")
    entries = read_captions(captions, columns=named) if captions else {}
    names = read_names(only)
    found = _records(folder, entries, captions=captions, max_text_bytes=max_text_bytes)
    return Source(
        kind="folder",
        parts=file_parts(keep(found, names, source=only), folder=folder, size=size),
        details={"captions": Path(captions).name, "only": Path(only).name},
    )


def _records(folder: Path, entries: Mapping[str, Labels], *, captions: str, max_text_bytes: int) -> Iterator[Record]:
    matched = images = 0
    for name, sidecars in _walk(folder):
        images += 1
        entry = entries.get(name)
        matched += entry is not None
        found = [read_sidecar(folder / path, max_bytes=max_text_bytes) for path in sidecars]
        yield _record(name, [entry or Labels(), *found])
    if not images:
        raise DataError(f"images: there are no images in {folder} (looked for {', '.join(sorted(_SUFFIXES))})")
    if entries and not matched:
        first = next(iter(entries))
        raise DataError(f"captions: no file named in {captions} is in {folder} (first: {first!r})")


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Names of the images below a folder in a fixed order, with their sidecars; hidden ones are left out."""
    for root, folders, files in os.walk(folder, onerror=_fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(root).relative_to(folder)
        sidecars: dict[tuple[str, str], str] = {}
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _SIDECARS:
                other = sidecars.setdefault((stem, suffix.lower()), name)
                if other != name:
                    raise DataError(f"images: {Path(root) / other} and {name} differ in case only; remove one of them")
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)
            if not name.startswith(".") and suffix.lower() in _SUFFIXES:
                beside = [sidecars[stem, kind] for kind in _SIDECARS if (stem, kind) in sidecars]
                yield (below / name).as_posix(), [(below / item).as_posix() for item in beside]


def _fail(error: OSError) -> None:
    raise DataError(f"images: cannot read the folder {error.filename} ({error.strerror})") from None


def _record(name: str, labels: Sequence[Labels]) -> Record:
    """What all files say of an image, together; a text that two of them have stands once."""
    texts: list[str] = []
    for item in labels:
        known = set(texts)
        texts += [text for text in item.captions if text not in known]
    return Record(
        key=key_of(name),
        name=name,
        alt_text=tuple(texts),
        boxes=tuple(box for item in labels for box in item.boxes),
        source=next((item.source for item in labels if item.source), ""),
        licence=next((item.licence for item in labels if item.licence), ""),
        annotated_size=next((item.annotated_size for item in labels if item.annotated_size), None),
        problems=tuple(problem for item in labels for problem in item.problems),
    )
