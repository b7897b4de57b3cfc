"""The data contract: what stands in a data set's manifest and tables.

A data set is a folder or an `s3://` prefix:

    manifest.json             schema version, shards in order, counts, sha256 of each, how it was made
    images/00000.tar          WebDataset shard, immutable: <key>.jpg|png|webp + <key>.json
    captions/00000.parquet    key, text, kind, model
    regions/00000.parquet     key, x1, y1, x2, y2, text, score, source, label
    quarantine/00000.parquet  key, stage, reason
    fingerprints/00000.parquet  key, sha256, phash
    duplicates/00000.parquet  key, kind, distance, of_data, of_shard, of_key
    attributes/00000.parquet  key, x1, y1, x2, y2, text, level, negatives, source

Tables may be absent: a data set has those that somebody made. A collection is a folder with one data set a split.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from cloc.errors import DataError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
IMAGE_SUFFIXES = ("jpg", "png", "webp")

Table = Literal["captions", "regions", "quarantine", "fingerprints", "duplicates", "attributes"]

CAPTION_KINDS = ("alt_text", "generated", "human")

# A tar that is taken as it is may hold samples that are not part of the data set: those whose key stands in its
# quarantine table with the stage of ingest and a reason that begins so. A whole tar that is left out has one row.
INGEST_STAGE = "ingest"
LEFT_OUT = "image: "
LEFT_OUT_TAR = "tar: "

_BOX = [(side, pa.float32()) for side in ("x1", "y1", "x2", "y2")]

SCHEMAS: dict[str, pa.Schema] = {
    "captions": pa.schema([("key", pa.string()), ("text", pa.string()), ("kind", pa.string()), ("model", pa.string())]),
    # Boxes are xyxy in [0, 1] of the original image. `text` is what the region is described by in training;
    # `label` is its class name where the source has one ("" otherwise) and serves evaluation alone.
    "regions": pa.schema(
        [
            ("key", pa.string()),
            *_BOX,
            ("text", pa.string()),
            ("score", pa.float32()),
            ("source", pa.string()),
            ("label", pa.string()),
        ]
    ),
    "quarantine": pa.schema([("key", pa.string()), ("stage", pa.string()), ("reason", pa.string())]),
    # `sha256` is of the encoded file as it lies in the tar (32 bytes), `phash` the 64-bit perceptual hash of what is
    # seen: written by ingest, read by the search for duplicates.
    "fingerprints": pa.schema([("key", pa.string()), ("sha256", pa.binary(32)), ("phash", pa.uint64())]),
    # One row for each image that occurs again earlier in the set (`of_data` is "") or in another one (its name):
    # `kind` is "exact" (equal files) or "near", `distance` the differing bits of the perceptual hashes.
    "duplicates": pa.schema(
        [
            ("key", pa.string()),
            ("kind", pa.string()),
            ("distance", pa.uint8()),
            ("of_data", pa.string()),
            ("of_shard", pa.string()),
            ("of_key", pa.string()),
        ]
    ),
    # Questions that evaluation asks of a box: which of `text`, which is right, and `negatives`, which differ from it in
    # a few attributes and are wrong? `level` says how they differ ("1_attributes": in one). Training never reads it.
    "attributes": pa.schema(
        [
            ("key", pa.string()),
            *_BOX,
            ("text", pa.string()),
            ("level", pa.string()),
            ("negatives", pa.list_(pa.string())),
            ("source", pa.string()),
        ]
    ),
}


@dataclass(frozen=True)
class Shard:
    """One immutable tar of images.

    Attributes:
        name: stem of the tar and of its tables, e.g. "00000".
        path: where the tar lies: relative to the manifest, or an absolute URL (tars taken as they are).
        images: number of samples that are part of the data set.
        bytes: size of the tar.
        sha256: hash of the tar, hexadecimal.
        left_out: hash of the keys of a foreign tar that are not part of the data set (see `LEFT_OUT`), "" for none.
    """

    name: str
    path: str
    images: int
    bytes: int
    sha256: str
    left_out: str = ""

    @property
    def foreign(self) -> bool:
        """Whether it is a tar that others wrote and that is taken as it is, from where it lies."""
        return "://" in self.path or self.path.startswith("/")

    @property
    def content(self) -> str:
        """Hash of the samples that are part of the data set."""
        return f"{self.sha256}-{self.left_out}" if self.left_out else self.sha256


@dataclass(frozen=True)
class Manifest:
    """What a data set consists of; everything about it that is proportional to shards, nothing to samples.

    Attributes:
        shards: in order.
        quarantined: images refused when the data set was made, counted: they are in no shard, or left out of one.
            Images left out because a data set kept for evaluation has them are good, and no part of it.
        classes: names of the region classes, where the source has a closed list.
        made_by: how it was made: tool, source, settings. No times and no machine names: equal input gives equal bytes.
    """

    shards: tuple[Shard, ...]
    quarantined: int = 0
    classes: tuple[str, ...] = ()
    made_by: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def images(self) -> int:
        """Number of images over all shards."""
        return sum(shard.images for shard in self.shards)

    def to_json(self) -> str:
        """The manifest as JSON, stable for equal content."""
        body = asdict(self)
        return json.dumps({**body, "images": self.images}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str) -> "Manifest":
        """Parses a manifest. Raises DataError naming `source` when it is not one of this version."""
        try:
            body = json.loads(text)
            if body["schema_version"] != SCHEMA_VERSION:
                raise DataError(
                    f"{source}: schema version {body['schema_version']!r} is not {SCHEMA_VERSION}; "
                    "make the data set again with this release"
                )
            return cls(
                shards=tuple(Shard(**shard) for shard in body["shards"]),
                quarantined=int(body.get("quarantined", 0)),
                classes=tuple(body.get("classes", ())),
                made_by=body.get("made_by", {}),
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise DataError(f"{source}: not a manifest of a data set ({type(error).__name__}: {error})") from None
