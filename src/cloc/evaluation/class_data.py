"""Classification sets: whole images of a closed list of classes, for zero-shot classification and linear probes.

A set is a folder or `s3://` prefix of one of two kinds, with or without parts:

    <set>[/test|/val|/train]/<class>/*.jpg|jpeg|png|webp
    <set>[/test|/val|/train]/*.tar        WebDataset: <key>.jpg + <key>.cls, or <key>.json with `cls` or `label`

and says what its classes are called:

    classes.json     {"n02119789": "kit fox", ...}: names of class folders
    classnames.txt   one name a line: of the class folders in sorted order, or of the tars' class numbers from 0
    zeroshot_classification_templates.txt   optional, one template a line, with {c} where the name goes

the last two as in CLIP-benchmark's sets. Class folders without either are called as they are named. What is evaluated
is `test`, or `val` where there is no `test`.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from cloc.data.schema import MANIFEST
from cloc.data.storage import FolderStorage, Storage, open_storage
from cloc.errors import ConfigError, DataError
from cloc.evaluation.class_parts import Part, folder_part, tar_part
from cloc.evaluation.classification import fill
from cloc.stage import fingerprint

CLASSES_FILE = "classes.json"
NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"

_EVALUATED = ("test", "val")  # the first that is there
_TRAIN = "train"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_WORDNET = re.compile(r"n\d{8}")
_NAMED = 3  # examples in a line


@dataclass(frozen=True)
class ClassSet:
    """An open classification set, its images unread.

    Attributes:
        name: of its folder.
        url: where it lies.
        classes: names of all classes; an image's class is a number among them.
        templates: of the set itself, with `{c}` or `{}` where the name goes; empty where it has none.
        test: the part that is evaluated.
        train: images to fit a linear probe on, None where there are none or none were asked for.
        notes: what a person should know of it: classes without images, names that stand twice, ...
    """

    name: str
    url: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    test: Part
    train: Part | None
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Hash of what is evaluated: images, their classes, and what these are called."""
        return fingerprint(self.test.digest, self.classes)


def open_classes(path: str | Path, *, train_images: int = 0, seed: int = 0) -> ClassSet:
    """Opens a classification set; reads each image of what it opens once, for its hash.

    Args:
        path: folder or `s3://` prefix.
        train_images: at most so many images of `train`, drawn with `seed` from class folders, all of those in tars;
            0 does not look at it.
        seed: of the draw.

    Raises:
        DataError: there is no such set, its kind or its names are not clear, it has fewer than two classes, or nothing
            to evaluate; one line says what to do.
    """
    storage = open_storage(path)
    url = storage.url.rstrip("/")
    if storage.exists(MANIFEST):
        raise DataError(f"{url}: a data set by the contract; a classification set has a folder a class, or tars")
    layout = _layout(storage)
    classes = _classes(storage, layout)
    if len(classes) < 2:
        raise DataError(f"{url}: {len(classes)} class ({', '.join(classes)}): there is nothing to choose from")
    test = _open(storage, layout, layout.evaluated, classes)
    if not test.images:
        example = f" (first: {test.refused[0][0]}: {test.refused[0][1]})" if test.refused else ""
        raise DataError(f"{url}: there are no images to evaluate in {layout.evaluated or 'it'!r}{example}")
    train = _open(storage, layout, _TRAIN, classes, at_most=train_images, seed=seed) if train_images else None
    return ClassSet(
        name=PurePosixPath(os.path.abspath(url) if isinstance(storage, FolderStorage) else url).name,
        url=url,
        classes=classes,
        templates=_templates(storage),
        test=test,
        train=train if train and train.images else None,
        notes=tuple(_notes(layout, classes, test)),
    )


def check_refused(found: ClassSet, undecodable: Sequence[tuple[str, str]], *, limit: float) -> None:
    """Raises DataError when more of the evaluated images than a share of `limit` cannot be used.

    Args:
        found: the set.
        undecodable: (key, reason) of the images that could not be decoded; samples without a class count, too.
        limit: `data.quarantine_limit`.
    """
    refused = (*found.test.refused, *undecodable)
    total = found.test.images + len(found.test.refused)
    if refused and (len(refused) > limit * total or len(refused) == total):
        raise DataError(
            f"{found.url}: {len(refused)} of {total} images of {found.test.name!r} cannot be used, more than "
            f"data.quarantine_limit {limit} (first: {refused[0][0]}: {refused[0][1]})"
        )


@dataclass(frozen=True)
class _Layout:
    """What lies where in a set.

    Attributes:
        parts: names of its parts; ("",) where it has none.
        folders: the class folders of all parts, sorted; empty for a set of tars.
        files: paths below the set of the images or tars of each part.
        others: files in class folders that are no images.
    """

    parts: tuple[str, ...]
    folders: tuple[str, ...]
    files: dict[str, list[str]]
    others: tuple[str, ...]

    @property
    def evaluated(self) -> str:
        """The part that is evaluated."""
        return next((part for part in _EVALUATED if part in self.parts), "")


def _layout(storage: Storage) -> _Layout:
    """Raises DataError where nothing is found, or it is not clear what it is."""
    url = storage.url.rstrip("/")
    paths = [path for path in storage.walk("") if not any(name.startswith(".") for name in PurePosixPath(path).parts)]
    parts = _parts(storage, paths)
    files: dict[str, list[str]] = {part: [] for part in parts}
    folders = {folder for part in parts for folder in _local_folders(storage, part)}
    others: list[str] = []
    for path in paths:
        part = path.partition("/")[0] if parts != ("",) else ""
        inside = path.removeprefix(f"{part}/") if part else path
        if part not in files or (not inside.endswith(".tar") and "/" not in inside):
            continue  # a list of names, a README
        if inside.endswith(".tar"):
            files[part].append(path)
        else:
            folders.add(inside.partition("/")[0])
            (files[part] if PurePosixPath(path).suffix.lower() in _SUFFIXES else others).append(path)
    found = [path for part in parts for path in files[part]]
    tars = [path for path in found if path.endswith(".tar")]
    if tars and len(tars) < len(found):
        raise DataError(f"{url}: has class folders and tars ({tars[0]}); keep images of one kind in a set")
    return _Layout(parts, () if tars else tuple(sorted(folders)), files, tuple(others))


def _parts(storage: Storage, paths: Sequence[str]) -> tuple[str, ...]:
    """The parts of a set with these files: ("",) unless all its folders are called as parts are."""
    url = storage.url.rstrip("/")
    tops = {*(path.partition("/")[0] for path in paths if "/" in path), *_local_folders(storage, "")}
    if not tops and not any(path.endswith(".tar") for path in paths):
        raise DataError(f"{url}: there is no classification set: neither class folders nor tars")
    if tops == {_TRAIN}:
        raise DataError(f"{url}: has nothing but {_TRAIN!r}; what is evaluated lies in 'test' or 'val'")
    return tuple(sorted(tops)) if tops and tops <= {*_EVALUATED, _TRAIN} else ("",)


def _local_folders(storage: Storage, part: str) -> Iterator[str]:
    """Folders of a local set: those without files are in no file's path."""
    root = Path(storage.url) / part
    if isinstance(storage, FolderStorage) and root.is_dir():
        yield from (item.name for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))


def _classes(storage: Storage, layout: _Layout) -> tuple[str, ...]:
    """What the classes are called, in the order of their numbers."""
    url = storage.url.rstrip("/")
    if storage.exists(CLASSES_FILE) and layout.folders:
        return _from_json(storage, layout.folders)
    if storage.exists(NAMES_FILE):
        names = _lines(storage, NAMES_FILE)
        if layout.folders and len(names) != len(layout.folders):
            raise DataError(
                f"{url}/{NAMES_FILE}: {len(names)} names for {len(layout.folders)} class folders; write one for each "
                f"folder in sorted order, or {CLASSES_FILE} with a name by folder"
            )
        return names
    if not layout.folders:
        raise DataError(f"{url}: no class names: there is no {NAMES_FILE} with a line for each class number")
    if all(map(_WORDNET.fullmatch, layout.folders)):
        raise DataError(
            f"{url}: no class names: the folders have WordNet's numbers; write {CLASSES_FILE} with "
            f'{{"{layout.folders[0]}": "its name", ...}}'
        )
    return tuple(_readable(folder) for folder in layout.folders)


def _readable(folder: str) -> str:
    return " ".join(folder.replace("_", " ").split())


def _from_json(storage: Storage, folders: Sequence[str]) -> tuple[str, ...]:
    where = f"{storage.url.rstrip('/')}/{CLASSES_FILE}"
    try:
        names = json.loads(storage.read_bytes(CLASSES_FILE))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise DataError(f'{where}: expected an object of names by folder, like {{"{folders[0]}": "a name"}}')
    missing = [folder for folder in folders if folder not in names]
    if missing:
        raise DataError(f"{where}: no class name for {len(missing)} class folders (first: {missing[0]!r})")
    return tuple(_readable(names[folder]) for folder in folders)


def _lines(storage: Storage, path: str) -> tuple[str, ...]:
    """The lines of a text file. Raises DataError when one is empty, since each stands for its number."""
    where = f"{storage.url.rstrip('/')}/{path}"
    try:
        text = storage.read_bytes(path).decode("utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 (byte {error.start}); convert it") from None
    lines = tuple(" ".join(line.split()) for line in text.split("\n"))
    if "" in lines:
        raise DataError(f"{where}: line {lines.index('') + 1} is empty")
    return lines


def _templates(storage: Storage) -> tuple[str, ...]:
    if not storage.exists(TEMPLATES_FILE):
        return ()
    templates = _lines(storage, TEMPLATES_FILE)
    for number, template in enumerate(templates, start=1):
        try:
            fill(template, "")
        except ConfigError:
            where = f"{storage.url.rstrip('/')}/{TEMPLATES_FILE}"
            raise DataError(f"{where}: line {number} has no {{c}} where the class name goes: {template!r}") from None
    return templates


def _open(
    storage: Storage, layout: _Layout, part: str, classes: Sequence[str], *, at_most: int = 0, seed: int = 0
) -> Part:
    paths = layout.files.get(part, [])
    name = part or _EVALUATED[0]
    if not layout.folders:
        return tar_part(storage, name, paths, classes=classes)
    if at_most and len(paths) > at_most:
        drawn = np.random.default_rng(seed).choice(len(paths), size=at_most, replace=False)
        paths = [paths[index] for index in sorted(drawn.tolist())]
    numbers = {folder: number for number, folder in enumerate(layout.folders)}
    return folder_part(storage, name, [(path, numbers[PurePosixPath(path).parts[bool(part)]]) for path in paths])


def _notes(layout: _Layout, classes: Sequence[str], test: Part) -> Iterator[str]:
    empty = sorted(set(range(len(classes))) - set(test.labels.tolist()))
    if empty:
        yield f"{len(empty)} of {len(classes)} classes have no images: {_listed([classes[c] for c in empty])}"
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        yield f"{len(twice)} class names stand twice, which no text can tell apart: {_listed(twice)}"
    if layout.others:
        yield f"{len(layout.others)} files in class folders are no images: {_listed(layout.others)}"


def _listed(items: Sequence[str]) -> str:
    return ", ".join(map(repr, items[:_NAMED])) + (f" and {len(items) - _NAMED} more" if len(items) > _NAMED else "")
