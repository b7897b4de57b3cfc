"""One shard of an ingest: its images checked, its tar and tables written, in a worker process or in this one.

`stats/<shard>.json` is written last and says what the shard was made from; with it, a shard that is finished and
whose sources and settings are the same is skipped by the next run.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloc.boxes import problem
from cloc.data import tables
from cloc.data.images import CheckedImage, check_image
from cloc.data.ingest.parts import Item, Part, Refusal
from cloc.data.ingest.records import LabeledBox, Record
from cloc.data.schema import MANIFEST, Shard
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import Storage, open_storage
from cloc.stage import fingerprint

# Raise it when the same sources give other shards than before, so that old ones are made again.
_VERSION = 2
STAGE = "ingest"
# Annotators and roundings overshoot the border by about a pixel; more than that is a fault of the data.
_TOLERANCE_PX = 1.0


@dataclass(frozen=True)
class Limits:
    """What an image and its texts must be like; see the settings of the same names.

    Attributes:
        min_side, max_pixels: of an image, pixels.
        max_text_bytes: of a text or a sample's JSON.
        near_duplicate_bits: how far perceptual hashes of images that count as equal may differ.
        not_in: data sets (URLs) whose images are left out: an evaluation's.
    """

    min_side: int
    max_pixels: int
    max_text_bytes: int
    near_duplicate_bits: int
    not_in: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackTask:
    """What a worker needs to make one shard.

    Attributes:
        shard: its name.
        part: its images.
        output: URL of the data set.
        limits: what they must be like.
    """

    shard: str
    part: Part
    output: str
    limits: Limits


@dataclass(frozen=True)
class PackReport:
    """What became of a shard.

    Attributes:
        shard: its manifest entry; None when no image was usable.
        counts: images, quarantined, captions, regions, ...
        example: the first quarantined image with its reason, "" without one.
        skipped: whether an earlier run had finished it.
    """

    shard: Shard | None
    counts: Mapping[str, int]
    example: str = ""
    skipped: bool = False


@dataclass
class _Rows:
    """The tables of a shard in the making."""

    captions: list[dict[str, Any]] = field(default_factory=list)
    regions: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    example: str = ""

    def refuse(self, key: str, reason: str, *, count: str) -> None:
        self.quarantine.append({"key": key, "stage": STAGE, "reason": reason})
        self.counts[count] += 1
        if count == "quarantined" and not self.example:
            self.example = f"{key}: {reason}"


def stats_path(shard: str) -> str:
    """Path of the record that a shard is finished."""
    return f"stats/{shard}.json"


def pack_shard(task: PackTask, *, tick: Callable[[int], None] | None = None) -> PackReport:
    """Makes a shard, or finds it made.

    Args:
        task: what to make.
        tick: called with the number of images done, after each.
    """
    storage = open_storage(task.output)
    source_hash = fingerprint(_VERSION, dataclasses.astuple(task.limits), task.part.fingerprint())
    finished = finished_shard(storage, task.shard, source_hash)
    if finished is not None:
        return finished
    # From here on the data set differs from what its manifest says, and what is there of the shard is void.
    storage.delete(MANIFEST)
    storage.delete(stats_path(task.shard))
    writer, rows = ShardWriter(), _Rows()
    for done, item in enumerate(task.part.read(), start=1):
        _pack_item(task, item, writer, rows)
        if tick is not None:
            tick(done)
    return _write(storage, task, writer, rows, source_hash=source_hash)


def finished_shard(storage: Storage, shard: str, source_hash: str) -> PackReport | None:
    """The report of an earlier run that made the same shard whole, or None."""
    if not storage.exists(stats_path(shard)):
        return None
    stats = json.loads(storage.read_bytes(stats_path(shard)))
    if stats["fingerprint"] != source_hash:
        return None
    entry = Shard(**stats["shard"]) if stats["shard"] else None
    paths = [tables.table_path("quarantine", shard)]
    if entry is not None:
        paths += [entry.path, tables.table_path("captions", shard), tables.table_path("regions", shard)]
    if not all(storage.exists(path) for path in paths):
        return None
    return PackReport(shard=entry, counts=stats["counts"], example=stats["example"], skipped=True)


def _write(storage: Storage, task: PackTask, writer: ShardWriter, rows: _Rows, *, source_hash: str) -> PackReport:
    entry = writer.write(storage, task.shard) if len(writer) else None
    hashes = {"input_hash": entry.sha256 if entry else "", "config_hash": source_hash}
    if entry is not None:
        tables.write_table(storage, "captions", task.shard, rows.captions, **hashes)
        tables.write_table(storage, "regions", task.shard, rows.regions, **hashes)
    tables.write_table(storage, "quarantine", task.shard, rows.quarantine, **hashes)
    counts = {**rows.counts, "images": len(writer), "captions": len(rows.captions), "regions": len(rows.regions)}
    stats = {
        "fingerprint": source_hash,
        "shard": dataclasses.asdict(entry) if entry else None,
        "counts": counts,
        "example": rows.example,
    }
    storage.write_bytes(stats_path(task.shard), (json.dumps(stats, indent=1, sort_keys=True) + "\n").encode())
    return PackReport(shard=entry, counts=counts, example=rows.example)


def _pack_item(task: PackTask, item: Item, writer: ShardWriter, rows: _Rows) -> None:
    record = item.record
    image = _checked(record, item.body, task.limits)
    if isinstance(image, str):
        rows.refuse(record.key, f"image: {image}", count="quarantined")
        return
    rows.counts["reencoded"] += image.reencoded
    rows.counts["crowd_boxes"] += record.crowd_boxes
    for reason in record.problems:
        count = "quarantined_boxes" if reason.startswith("box:") else "quarantined_captions"
        rows.refuse(record.key, reason, count=count)
    alt_text = _add_captions(record, rows)
    frame = record.annotated_size or (image.width, image.height)
    for box in record.boxes:
        _add_region(record.key, box, frame, rows)
    meta = {
        "alt_text": alt_text,
        "source": _printable(record.source),
        "licence": _printable(record.licence),
        "file": _printable(record.name),
        "width": image.width,
        "height": image.height,
    }
    writer.add(Sample(key=record.key, image=image.body, suffix=image.suffix, meta=meta))


def _checked(record: Record, body: bytes | Refusal, limits: Limits) -> CheckedImage | str:
    """The image of a record, or why it cannot be used."""
    if isinstance(body, Refusal):
        return body.reason
    image = check_image(body, min_side=limits.min_side, max_pixels=limits.max_pixels)
    if isinstance(image, CheckedImage) and record.annotated_size is not None:
        return _size_problem(image, record.annotated_size) or image
    return image


def _size_problem(image: CheckedImage, annotated: tuple[int, int]) -> str | None:
    """Boxes scale with the picture, but drawn on another shape (say before a rotation) they would not fit it."""
    scale = max(image.width, image.height) / max(annotated)
    off = max(abs(image.width - annotated[0] * scale), abs(image.height - annotated[1] * scale))
    if off <= 1.5:
        return None
    return f"is {image.width}x{image.height} pixels, its annotations are for {annotated[0]}x{annotated[1]}"


def _add_captions(record: Record, rows: _Rows) -> str:
    """Adds the usable captions and returns the first alt-text, or ""."""
    first = ""
    for kind, texts in (("alt_text", record.alt_text), ("human", record.captions)):
        for text in texts:
            clean = _clean(text)
            if not clean:
                reason = "caption: empty text" if not text.strip() else "caption: not valid Unicode"
                rows.refuse(record.key, reason, count="quarantined_captions")
                continue
            rows.captions.append({"key": record.key, "text": clean, "kind": kind, "model": ""})
            if kind == "alt_text" and not first:
                first = clean
    return first


def _add_region(key: str, box: LabeledBox, frame: tuple[int, int], rows: _Rows) -> None:
    values = np.asarray(box.xyxy, dtype=np.float64)
    overshoot = np.maximum(-values, values - 1) * np.array([*frame, *frame])
    # Judged as it will be stored: in float32, a very thin box can lose its last extent.
    stored = np.clip(values, 0, 1).astype(np.float32)
    if not np.isfinite(values).all():
        reason: str | None = "box is not finite"
    elif overshoot.max() > _TOLERANCE_PX + 1e-6:
        reason = f"box outside its image by {overshoot.max():.1f} pixels"
    else:
        reason = problem(stored)
    text, label = _clean(box.text), _clean(box.label)
    if reason is None and not text:
        reason = "empty text"
    if reason is None and not 0 <= box.score <= 1:
        reason = f"score {box.score:g} is not in [0, 1]"
    if reason is not None:
        place = ", ".join(f"{value:.4f}" for value in values)
        rows.refuse(key, f"box: {reason} ({place}; {_printable(box.text)[:80]!r})", count="quarantined_boxes")
        return
    x1, y1, x2, y2 = stored.tolist()
    rows.counts["clipped_boxes"] += bool(overshoot.max() > 0)
    corners = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    rows.regions.append({"key": key, **corners, "text": text, "score": box.score, "source": box.source, "label": label})


def _clean(text: str) -> str:
    """The text with single spaces; "" when it is empty or has code points that UTF-8 does not have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return ""
    return " ".join(text.split())


def _printable(text: str) -> str:
    """The text with what UTF-8 does not have written as escapes (file names may be any bytes)."""
    return text.encode(errors="backslashreplace").decode()
