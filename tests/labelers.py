"""Labelers, jobs and pictures that tests of labelling share."""

import io
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from cloc.labeling.worker import Job, Labels


def tables_of(folder, table: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((Path(folder) / table).glob("*.parquet"))}


def quarantine(folder, shard: str = "00000") -> list[tuple[str, str, str]]:
    rows = pq.read_table(Path(folder) / "quarantine" / f"{shard}.parquet").to_pylist()
    return [(row["key"], row["stage"], row["reason"]) for row in rows]


def job(data, out) -> Job:
    """A captioning job that depends on the images alone."""
    return Job(
        stage="captioning",
        table="captions",
        data=str(data),
        captions="",
        output=str(out),
        reads=(),
        required=(),
        config_hash="",
        batch_size=4,
        min_side=1,
        max_pixels=10**6,
    )


class Echo:
    """Labels an image with its key and its size."""

    in_flight = 1

    def prepare(self, item):
        return item.key, item.image.size

    def bucket(self, prepared):
        return None

    def label(self, batch):
        return [Labels(rows=[{"text": f"{key} {size}", "kind": "generated", "model": "echo"}]) for key, size in batch]


class Watching:
    """Remembers what a worker tells."""

    def __init__(self):
        self.images = self.rows = 0
        self.waited = self.worked = 0.0

    def advance(self, images, rows=0):
        self.images += images
        self.rows += rows

    def time(self, *, waited, worked):
        self.waited += waited
        self.worked += worked


def png(width: int = 32, height: int = 32, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height)).save(stream, format="PNG")
    return stream.getvalue()
