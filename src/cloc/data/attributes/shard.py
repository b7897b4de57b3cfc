"""The questions about one shard's images: joined by name, checked against the pictures, written as one table."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cloc.data import tables
from cloc.data.attributes.files import AskedImage, Question, read_questions
from cloc.data.dataset import Dataset
from cloc.data.images import seen_size
from cloc.data.ingest.frames import size_problem, stored_box
from cloc.data.schema import Manifest, Shard
from cloc.data.storage import open_storage
from cloc.data.texts import clean
from cloc.errors import DataError
from cloc.stage import fingerprint

# Raise it when the same files give other tables than before, so that old ones are made again.
_VERSION = 1


@dataclass(frozen=True)
class Answer:
    """What became of a shard.

    Attributes:
        images: the name in the files of each image that it has, and its key.
        rows: how many questions its table has.
        refused: how many cannot be used, by reason.
        example: the first of them with its reason, "" without one.
        skipped: whether an earlier run made the table.
    """

    images: Mapping[str, str]
    rows: int
    refused: Mapping[str, int]
    example: str
    skipped: bool


@dataclass(frozen=True)
class Task:
    """What a worker needs to make one shard's table.

    Attributes:
        url: of the data set.
        shard: the shard.
        files, digest: what is asked, see `read_questions`.
    """

    url: str
    shard: Shard
    files: tuple[str, ...]
    digest: str

    def make(self) -> Answer:
        """Makes the table, or finds it made. Raises DataError when the shard or a file cannot be read."""
        storage = open_storage(self.url)
        hashes = {"input_hash": self.shard.content, "config_hash": fingerprint(_VERSION, self.digest)}
        info = tables.table_info(storage, "attributes", self.shard.name)
        if info is not None and (info.input_hash, info.config_hash) == tuple(hashes.values()):
            return Answer(**info.statistics, skipped=True)
        found = _Found()
        dataset = Dataset(images=storage, manifest=Manifest(shards=(self.shard,)), captions=storage, regions=storage)
        asked = read_questions(self.files, self.digest)
        for sample in dataset.read_samples(self.shard):
            image = asked.find(sample.key, sample.meta.get("file"))
            if image is not None:
                found.add(sample.key, image, seen_size(sample.image))
        statistics = found.statistics()
        tables.write_table(
            storage, "attributes", self.shard.name, found.rows, statistics=json.dumps(statistics), **hashes
        )
        return Answer(**statistics, skipped=False)


def two_keys(name: str, first: str, second: str) -> DataError:
    """What to raise where two images of the data set may be the one that the files call `name`."""
    return DataError(f"attributes: {name!r} may be {first!r} or {second!r} of the data set; rename one of them")


class _Found:
    """The table in the making."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._images: dict[str, str] = {}
        self._refused: Counter[str] = Counter()
        self._example = ""

    def add(self, key: str, image: AskedImage, size: tuple[int, int] | None) -> None:
        """Adds an image's questions; `size` is that of the picture as seen, pixels, or None where it has none."""
        if self._images.setdefault(image.name, key) != key:
            raise two_keys(image.name, self._images[image.name], key)
        unfit = "the image cannot be decoded" if size is None else size_problem(size, image.size)
        seen: set[str] = set()
        for question in image.questions:
            row = unfit or _row(key, question, image.size)
            if isinstance(row, str):
                # A shape is a particular of one image; the reason that is counted has none.
                self._refuse(image.name, question, row, "the image has another shape" if unfit and size else row)
                continue
            identity = json.dumps(row, sort_keys=True)
            if identity in seen:
                self._refuse(image.name, question, "stands twice", "stands twice")
                continue
            seen.add(identity)
            self.rows.append(row)

    def _refuse(self, name: str, question: Question, reason: str, counted: str) -> None:
        self._refused[counted.partition(" by ")[0]] += 1
        self._example = self._example or f"{name}: {clean(question.text)[:80]!r}: {reason}"

    def statistics(self) -> dict[str, Any]:
        """What an `Answer` says beside whether it is an earlier run's."""
        return {
            "images": self._images,
            "rows": len(self.rows),
            "refused": dict(self._refused),
            "example": self._example,
        }


def _row(key: str, question: Question, frame: tuple[int, int]) -> dict[str, Any] | str:
    """A row of the table, or why the question cannot be used."""
    box, text = stored_box(question.xyxy, frame), clean(question.text)
    if isinstance(box, str):
        return box
    negatives = list(_distinct(question.negatives, text))
    if not text or not negatives:
        return "no negatives that differ from the text" if text else "empty text"
    return {
        "key": key,
        **box.corners,
        "text": text,
        "level": clean(question.level),
        "negatives": negatives,
        "source": clean(question.source),
    }


def _distinct(negatives: tuple[str, ...], text: str) -> Iterator[str]:
    """The negatives that say something else than the text and than one before, whatever their case."""
    seen = {"", text.casefold()}
    for negative in map(clean, negatives):
        if negative.casefold() not in seen:
            seen.add(negative.casefold())
            yield negative
