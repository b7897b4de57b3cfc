"""One image with its labels: let into a shard, its rows into the shard's tables, or refused with the reason."""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from cloc.data import fingerprints
from cloc.data.duplicates import OCCURS, KnownImages
from cloc.data.images import CheckedImage, check_image
from cloc.data.ingest.frames import size_problem, stored_box
from cloc.data.ingest.parts import Refusal
from cloc.data.ingest.records import LabeledBox, Record
from cloc.data.schema import INGEST_STAGE, LEFT_OUT, LEFT_OUT_TAR
from cloc.data.texts import clean, printable

# What differs between two quarantine reasons of one kind: what is quoted, in parentheses, or a number.
_PARTICULARS = re.compile(r" \(.*| as '[^']*'|'[^']*'|\"[^\"]*\"|\d+(\.\d+)?")
_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}
# What a quarantine row is counted as, by what its reason begins with.
_COUNTED_AS = {
    "image": "quarantined",
    "tar": "quarantined_tars",
    "box": "quarantined_boxes",
    "caption": "quarantined_captions",
}


@dataclass(frozen=True)
class Limits:
    """What an image and its texts must be like; see the settings of the same names.

    Attributes:
        min_side, max_pixels: of an image, pixels.
        max_text_bytes: of a text or a sample's JSON.
        near_duplicate_bits: how far perceptual hashes of images that count as equal may differ.
        not_in: data sets (URLs) whose images are left out: an evaluation's.
        not_in_digests: hashes of their images, since what comes in follows from them.
    """

    min_side: int
    max_pixels: int
    max_text_bytes: int
    near_duplicate_bits: int
    not_in: tuple[str, ...] = ()
    not_in_digests: tuple[str, ...] = ()


@dataclass
class Rows:
    """The tables of a shard in the making.

    Attributes:
        captions, regions, fingerprints, quarantine: rows by the contract's columns.
        counts: what does not follow from the tables: reencoded, clipped_boxes, ...
    """

    captions: list[dict[str, Any]] = field(default_factory=list)
    regions: list[dict[str, Any]] = field(default_factory=list)
    fingerprints: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def refuse(self, key: str, reason: str) -> None:
        """Adds a row to the quarantine; what its reason begins with says what is refused."""
        self.quarantine.append({"key": key, "stage": INGEST_STAGE, "reason": printable(reason)})

    def refuse_image(self, key: str, reason: str) -> None:
        """Adds an image to the quarantine: it is not part of the data set."""
        self.refuse(key, f"{LEFT_OUT}{reason}")

    def retract(self, keys: Collection[str]) -> None:
        """Takes back all rows of images that turn out to be unusable after all."""
        for rows in (self.captions, self.regions, self.fingerprints, self.quarantine):
            rows[:] = [row for row in rows if row["key"] not in keys]

    def totals(self) -> dict[str, int]:
        """The counts with those that follow from the tables."""
        refused = Counter(_COUNTED_AS[row["reason"].partition(":")[0]] for row in self.quarantine)
        refused["leaked"] = sum(row["reason"].startswith(f"{LEFT_OUT}{OCCURS}") for row in self.quarantine)
        lengths = {"images": self.fingerprints, "captions": self.captions, "regions": self.regions}
        return {**(self.counts + refused), **{name: len(rows) for name, rows in lengths.items()}}

    def reasons(self) -> Counter[str]:
        """How many rows of the quarantine have which reason, without its particulars."""
        return Counter(_PARTICULARS.sub("", row["reason"]).strip() for row in self.quarantine)

    def example(self) -> str:
        """The first image, or the tar, in the quarantine with its reason; "" without one."""
        rows = (row for row in self.quarantine if row["reason"].startswith((LEFT_OUT, LEFT_OUT_TAR)))
        return next((f"{row['key']}: {row['reason']}" for row in rows), "")


@dataclass(frozen=True)
class Admitted:
    """An image that became part of the shard.

    Attributes:
        image: as checked.
        alt_text: its first text from the web, clean; "" without one.
    """

    image: CheckedImage
    alt_text: str


def admit(
    record: Record, body: bytes | Refusal, *, rows: Rows, limits: Limits, reencode: bool = True
) -> Admitted | None:
    """Checks an image and adds its rows, or quarantines it and returns None.

    Args:
        record: the image's labels.
        body: the encoded file, or why there is none.
        rows: tables of the shard.
        limits: what images must be like.
        reencode: whether the file may be encoded again to be made plain.
    """
    image = _checked(record, body, limits, reencode=reencode)
    if isinstance(image, str):
        rows.refuse_image(record.key, image)
        return None
    prints = fingerprints.row(record.key, image.body, image.phash)
    if limits.not_in:
        bits, digests = limits.near_duplicate_bits, limits.not_in_digests
        known = KnownImages.load(limits.not_in, bits=bits, digests=digests)
        match = known.match(sha256=prints["sha256"], phash=prints["phash"])
        if match is not None:
            rows.refuse_image(record.key, str(match))
            return None
    rows.counts["converted_profiles"] += image.profile == "converted"
    rows.counts["broken_profiles"] += image.profile == "broken"
    rows.counts["misnamed"] += _is_misnamed(record.name, image)
    rows.counts["reencoded"] += image.reencoded
    rows.counts["crowd_boxes"] += record.crowd_boxes
    for reason in record.problems:
        rows.refuse(record.key, reason)
    alt_text = _add_captions(record, rows)
    frame = record.annotated_size or (image.width, image.height)
    for box in record.boxes:
        _add_region(record.key, box, frame, rows)
    rows.fingerprints.append(prints)
    return Admitted(image, alt_text)


def _checked(record: Record, body: bytes | Refusal, limits: Limits, *, reencode: bool) -> CheckedImage | str:
    """The image of a record, or why it cannot be used."""
    if isinstance(body, Refusal):
        return body.reason
    image = check_image(body, min_side=limits.min_side, max_pixels=limits.max_pixels, reencode=reencode)
    if isinstance(image, CheckedImage) and record.annotated_size is not None:
        return size_problem((image.width, image.height), record.annotated_size) or image
    return image


def _is_misnamed(name: str, image: CheckedImage) -> bool:
    """Whether a file name promises another format; the content decides."""
    promised = _FORMATS.get(name.rpartition(".")[2].lower())
    return promised is not None and promised != image.format


def _add_captions(record: Record, rows: Rows) -> str:
    """Adds the usable captions and returns the first alt-text, or ""."""
    first = ""
    for kind, texts in (("alt_text", record.alt_text), ("human", record.captions)):
        for text in texts:
            words = clean(text)
            if not words:
                reason = "caption: empty text" if not text.strip() else "caption: not valid Unicode"
                rows.refuse(record.key, reason)
                continue
            rows.captions.append({"key": record.key, "text": words, "kind": kind, "model": ""})
            if kind == "alt_text" and not first:
                first = words
    return first


def _add_region(key: str, box: LabeledBox, frame: tuple[int, int], rows: Rows) -> None:
    stored = stored_box(box.xyxy, frame)
    text, label = clean(box.text), clean(box.label)
    reason = stored if isinstance(stored, str) else ""
    if not reason and not text:
        reason = "empty text"
    if not reason and not 0 <= box.score <= 1:
        reason = f"score {box.score:g} is not in [0, 1]"
    if reason or isinstance(stored, str):
        place = ", ".join(f"{value:.4f}" for value in box.xyxy)
        rows.refuse(key, f"box: {reason} ({place}; {printable(box.text)[:80]!r})")
        return
    rows.counts["clipped_boxes"] += stored.clipped
    rest = {"text": text, "score": box.score, "source": box.source, "label": label}
    rows.regions.append({"key": key, **stored.corners, **rest})
