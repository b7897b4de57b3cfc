"""Which data a stage read, as MLflow's dataset inputs: images by their manifests, labels by their tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from cloc.errors import DataError

if TYPE_CHECKING:
    from cloc.data.schema import Table

_LABELS: tuple["Table", ...] = ("captions", "regions")
_DIGITS = 16


@dataclass(frozen=True)
class DataSet:
    """A data set, or the label tables of one, as MLflow shows it.

    Attributes:
        name: "data/train"; of labels "captions" or "regions".
        digest: start of the sha256 of its manifest; of labels the hash of their tables' rows.
        place: folder or `s3://` prefix.
        context: what it served for: "training", "evaluation", "labelling", ...
        counts: images, shards, rows, as far as they are told without reading everything; MLflow keeps those that came
            first with a name and a digest.
    """

    name: str
    digest: str
    place: str
    context: str
    counts: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, str]:
        """As MLflow files it."""
        return {
            "name": self.name,
            "digest": self.digest,
            "source_type": self.place.partition("://")[0] if "://" in self.place else "local",
            "source": json.dumps({"uri": self.place}),
            "profile": json.dumps(dict(self.counts)),
            "context": self.context,
        }


def data_sets(inputs: Mapping[str, Any], *, splits: Sequence[str], context: str) -> list[DataSet]:
    """What a stage reads, of its inputs `data`, `captions` and `regions`.

    Args:
        inputs: of the stage. One of several workers (`worker`) looks at no label tables, which all of them share.
        splits: of a collection that it reads; a data set is taken as it is.
        context: see `DataSet`.

    Returns:
        Those that are there and can be read: what is wrong with the others is the stage's to say.
    """
    found = dict[tuple[str, str], DataSet]()
    for split in splits if inputs.get("data") else ():
        try:
            found |= {(item.name, item.place): item for item in _split(inputs, split, context)}
        except DataError:
            continue
    return list(found.values())


def _split(inputs: Mapping[str, Any], split: str, context: str) -> Iterator[DataSet]:
    from cloc.data.dataset import Dataset, resolve_split
    from cloc.data.origin import data_record, tables_record

    apart = [table for table in _LABELS if inputs.get(table) and not inputs.get("worker")]
    given = {table: str(inputs[table]) for table in apart}
    dataset = Dataset.open(resolve_split(str(inputs["data"]), split), **given)
    record = data_record(dataset)
    counts = {name: record[name] for name in ("images", "shards")}
    for table in apart:
        labels = tables_record(dataset, table)
        if labels is not None:
            told = {name: labels["counts"][name] for name in ("rows", "words") if name in labels["counts"]}
            yield DataSet(table, labels["digest"], labels["place"], context, {**told, "shards": labels["shards"]})
    yield DataSet(_name(record["place"]), record["manifest_sha256"][:_DIGITS], record["place"], context, counts)


def _name(place: str) -> str:
    """The last two parts of a place, which name collection and split."""
    return "/".join(PurePosixPath(place.partition("://")[2] or place).parts[-2:]).lstrip("/")
