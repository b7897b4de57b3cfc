"""Tars of images as img2dataset leaves them, or as nobody should, and their ingest as data sets."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cloc.config import Config, parse
from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.ingest.stage import Inputs, Outputs, run
from cloc.data.storage import FolderStorage
from cloc.stage import StageResult


def jpeg(seed: int, size: tuple[int, int] = (60, 40)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "JPEG")
    return sink.getvalue()


def png(seed: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(sink, "PNG")
    return sink.getvalue()


@dataclass(frozen=True)
class Member:
    """A member of a tar that is made by hand."""

    name: str
    body: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""


def write_tar(path: Path, members: Iterable[Member], *, format_: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format_, encoding="utf-8", errors="surrogateescape") as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.linkname = member.kind, member.link
            info.size = len(member.body) if member.kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(member.body))
    return path


def sample(key: str, seed: int, **meta: Any) -> list[Member]:
    """A sample as img2dataset writes it."""
    body: dict[str, Any] = {
        "caption": f"caption of {key}",
        "url": f"https://example.org/{key}.jpg",
        "key": key.rpartition("/")[2],
        "status": "success",
        "error_message": None,
        "width": 60,
        "height": 40,
        "original_width": 600,
        "original_height": 400,
        "exif": "{}",
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        **meta,
    }
    return [
        Member(f"{key}.jpg", jpeg(seed)),
        Member(f"{key}.json", json.dumps(body, indent=4).encode()),
        Member(f"{key}.txt", str(body["caption"]).encode(errors="surrogatepass")),
    ]


def img2dataset(folder: Path, *, shards: int = 3, samples: int = 4) -> Path:
    """What img2dataset leaves: tars named by number, their statistics and tables beside them."""
    for shard in range(shards):
        keys = [f"{shard:05d}{index:04d}" for index in range(samples)]
        members = [member for index, key in enumerate(keys) for member in sample(key, shard * samples + index)]
        write_tar(folder / f"{shard:05d}.tar", members)
        stats = {"count": samples, "successes": samples, "status_dict": {"success": samples}}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
        pq.write_table(pa.table({"key": keys, "status": ["success"] * samples}), folder / f"{shard:05d}.parquet")
    return folder


def settings(**data: Any) -> Config:
    return parse({"data": {"processes": 1, "quarantine_limit": 0.9, **data}}, source="test")


def ingest(tmp_path: Path, where: Path, config: Config | None = None, output: str = "out") -> StageResult:
    inputs, outputs = Inputs(source="tars", tars=str(where)), Outputs(data=str(tmp_path / output))
    return run(config or settings(), inputs=inputs, outputs=outputs)


def quarantine(tmp_path: Path, output: str = "out") -> list[tuple[str, str]]:
    """Key and reason of all quarantine tables."""
    storage, rows = FolderStorage(tmp_path / output), list[dict[str, Any]]()
    for path in storage.list("quarantine"):
        rows += tables.read_table(storage, "quarantine", Path(path).stem).to_pylist()
    assert {row["stage"] for row in rows} <= {"ingest"}
    return [(row["key"], row["reason"]) for row in rows]


def keys(tmp_path: Path, output: str = "out") -> list[str]:
    """Keys that the data set gives, by every way of reading it."""
    dataset = Dataset.open(tmp_path / output)
    found = [item.key for shard in dataset.manifest.shards for item in dataset.read_samples(shard)]
    streamed = []
    for shard in dataset.manifest.shards:
        images = dataset.open_images(shard)
        streamed += [key for key, _ in images.read(lambda key: True)]
        images.close()
        dataset.check(shard)
    table = [tables.read_table(dataset.images, "fingerprints", shard.name) for shard in dataset.manifest.shards]
    fingerprints = [key for rows in table for key in rows["key"].to_pylist()]
    assert found == streamed == fingerprints
    assert len(found) == dataset.manifest.images
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
