"""Tars that others wrote (img2dataset and other writers of WebDataset), read as they are and never trusted.

A sample is the files with one name up to its first dot, neighbours in the tar: `a/b.jpg`, `a/b.json` and `a/b.txt`; its
key is that name in the letters of a key ("a_b"). Ingest reads such a tar with `read_groups`, checks every image, and
writes down which samples are left out; `read_foreign` and `read_foreign_images` give the others to everybody else.
Names are never paths here: nothing is ever written where a tar says.
"""

import json
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from cloc.data.schema import IMAGE_SUFFIXES
from cloc.data.shards import Sample, safe_key
from cloc.data.tar import TarStream
from cloc.data.texts import clean, printable
from cloc.errors import DataError

MAX_IMAGE_BYTES = 256 << 20
_MAX_NAME = 1024  # characters; a longer name serves no image
_SPELLINGS = {"jpeg": "jpg"}
_TEXTS = ("json", "txt")


@dataclass
class Group:
    """The files of one sample.

    Attributes:
        key: its key.
        name: its name in the tar, untrusted.
        files: the bodies that were read, by suffix: "jpg", "png", "webp", "json", "txt".
        suffixes: of all its files.
        problem: why it cannot be part of a data set, "" where nothing is known against it.
        text_problem: why its `.txt` cannot be used, or "".
    """

    key: str
    name: str
    files: dict[str, bytes] = field(default_factory=dict)
    suffixes: list[str] = field(default_factory=list)
    problem: str = ""
    text_problem: str = ""

    @property
    def image(self) -> bytes | None:
        """The encoded image; the first of the known suffixes where there are several."""
        return next((self.files[suffix] for suffix in IMAGE_SUFFIXES if suffix in self.files), None)


def read_groups(
    stream: BinaryIO,
    *,
    source: str,
    max_text_bytes: int = MAX_IMAGE_BYTES,
    texts: bool = True,
    also: Collection[str] = (),
    skip: Callable[[str], bool] = lambda key: False,
) -> Iterator[Group]:
    """The samples of a tar, streamed in order; at most the files of one sample are in memory.

    Args:
        stream: the tar, at its first byte.
        source: what to call it in errors.
        max_text_bytes: of a JSON or text file; a sample with a larger JSON has a problem.
        texts: whether JSON and text files are read at all.
        also: further suffixes that are read as text files are.
        skip: asked once for every sample, by its key, in order: such a sample is passed over.

    Raises:
        BrokenTarError: the tar cannot be read to its end.
    """
    tar = TarStream(stream, source=source, others=True)
    read = (*_TEXTS, *also) if texts else ()
    group, skipped = None, False
    for member in tar:
        stem, suffix = _split(member)
        if group is None or (stem != group.name and safe_key(stem) != group.key):
            if group is not None and not skipped:
                yield group
            group = Group(key=safe_key(stem), name=stem)
            skipped = skip(group.key)
        if not skipped:
            _add(group, member, suffix, tar, max_text_bytes=max_text_bytes, texts=read)
    if group is not None and not skipped:
        yield group
    tar.finish()


def _split(member: str) -> tuple[str, str]:
    """Name up to the first dot of its last part, and what follows that dot."""
    while member.startswith("./"):
        member = member[2:]
    folder, slash, name = member.rpartition("/")
    stem, _, suffix = name.partition(".")
    suffix = suffix.lower()
    return f"{folder}{slash}{stem}", _SPELLINGS.get(suffix, suffix)


def _add(
    group: Group, member: str, suffix: str, tar: TarStream, *, max_text_bytes: int, texts: Collection[str]
) -> None:
    """Reads a member into its group, or notes why it cannot be used."""
    repeated = suffix in group.suffixes
    group.suffixes.append(suffix)
    problem = _name_problem(member)
    if suffix in IMAGE_SUFFIXES or suffix in _TEXTS or suffix in texts:
        limit = MAX_IMAGE_BYTES if suffix in IMAGE_SUFFIXES else max_text_bytes
        if repeated:
            problem = problem or f"it has two files .{suffix}"
        elif tar.size > limit:
            problem = problem or f"its .{suffix} has {tar.size} bytes, at most {limit} are read"
    if tar.oddity:
        problem = problem or f"its .{suffix} is {tar.oddity}"
    if not problem:
        if suffix in IMAGE_SUFFIXES or suffix in texts:
            group.files[suffix] = tar.read()
    elif suffix == "txt" and not _name_problem(member):
        group.text_problem = problem
    else:
        group.problem = group.problem or problem


def _name_problem(member: str) -> str:
    if len(member) > _MAX_NAME:
        return f"its name has {len(member)} characters, at most {_MAX_NAME} are taken"
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts:
        return "its name points outside the tar"
    if not path.name or path.name.startswith("."):
        return "its name has nothing before the dot"
    return ""


def parse_meta(group: Group) -> dict[str, Any] | None:
    """The sample's JSON with the contract's alt_text, source and licence, "" where it has none; None when broken."""
    try:
        meta = json.loads(group.files.get("json", b"{}"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(meta, dict):
        return None
    return {
        **meta,
        "alt_text": clean(_first_text(meta, "caption", "alt_text")) or clean(text_of(group) or ""),
        "source": printable(_first_text(meta, "source", "url")),
        "licence": printable(_first_text(meta, "licence", "license", "LICENSE")),
    }


def _first_text(meta: Mapping[str, Any], *names: str) -> str:
    return next((meta[name] for name in names if isinstance(meta.get(name), str) and meta[name]), "")


def text_of(group: Group) -> str | None:
    """The sample's `.txt`, "" when there is none; None when it is not UTF-8."""
    try:
        return group.files.get("txt", b"").decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None


def read_foreign(stream: BinaryIO, *, source: str, left_out: Container[str], images: int) -> Iterator[Sample]:
    """The samples of a tar that ingest took as it is.

    Args:
        stream: the tar, at its first byte.
        source: what to call it in errors.
        left_out: keys that are not part of the data set.
        images: how many samples are.

    Raises:
        DataError: the tar is not as it was at its ingest.
    """
    found = 0
    for group in read_groups(stream, source=source, skip=lambda key: key in left_out):
        image, meta = _usable(group, source=source), parse_meta(group)
        if meta is None:
            raise DataError(_changed(source, f"sample {group.key!r} has broken JSON"))
        found += 1
        yield Sample(key=group.key, image=image, suffix=suffix_of(image), meta=meta)
    if found != images:
        raise DataError(_changed(source, f"{found} samples, the manifest says {images}"))


def read_foreign_images(
    stream: BinaryIO, *, source: str, left_out: Container[str], want: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    """Key and encoded image of the samples that are part of the data set and wanted.

    Args:
        stream: the tar, at its first byte.
        source: what to call it in errors.
        left_out: keys that are not part of the data set.
        want: asked once for each sample that is, by its key, in order.

    Raises:
        DataError: the tar is not as it was at its ingest.
    """

    def skip(key: str) -> bool:
        return key in left_out or not want(key)

    for group in read_groups(stream, source=source, texts=False, skip=skip):
        yield group.key, _usable(group, source=source)


def _usable(group: Group, *, source: str) -> bytes:
    image = group.image
    if group.problem or image is None:
        raise DataError(_changed(source, f"sample {group.key!r} cannot be used ({group.problem or 'no image'})"))
    return image


def _changed(source: str, what: str) -> str:
    return f"{source}: {what}: the tar is not as it was at its ingest; run the ingest again"


def suffix_of(image: bytes) -> str:
    """The suffix that an image's first bytes call for: its name may say something else."""
    if image.startswith(b"\x89PNG"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else "jpg"
