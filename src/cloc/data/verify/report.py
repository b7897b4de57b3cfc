"""What a verification came to: what differs, and how each shard was verified."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

_NAMED = 20  # differences of a kind that are told to people; `to_json` has all


class Kind(StrEnum):
    """What differs."""

    MANIFEST = "manifest"
    MISSING = "missing"
    EXTRA = "extra"
    SIZE = "size"
    SHA256 = "sha256"
    COUNT = "count"
    TABLE = "table"
    CHANGING = "changing"
    UNREADABLE = "unreadable"


class Way(StrEnum):
    """How a shard was verified, the surest first."""

    READ = "read"
    STORE = "store"
    RECORD = "record"
    SIZE = "size"

    @property
    def words(self) -> str:
        """For people."""
        return _WORDS[self]


_WORDS = {
    Way.READ: "by reading them",
    Way.STORE: "by the SHA-256 that the store keeps",
    Way.RECORD: "by the record: unchanged since they were read",
    Way.SIZE: "by size alone",
}


@dataclass(frozen=True)
class Difference:
    """One thing that differs.

    Attributes:
        kind: what.
        path: of the object, below the data set or the tables' root; a URL where it lies elsewhere.
        expected, found: by the manifest, and there; "" where that makes no sense.
        unit: of these, where they are numbers.
        detail: what else is known of it.
    """

    kind: Kind
    path: str
    expected: int | str = ""
    found: int | str = ""
    unit: str = ""
    detail: str = ""

    @property
    def line(self) -> str:
        """For people."""
        text = f"{self.kind:<10} {self.path}"
        if self.unit:
            text += f": expected {self.expected:,} {self.unit}, found {self.found:,}"
        elif self.expected:
            text += f": expected {self.expected}, found {self.found}"
        return f"{text}: {self.detail}" if self.detail else text


@dataclass
class Report:
    """A verification.

    Attributes:
        data: folder or URL that was verified.
        manifest: that it was verified against.
        digest: hash of the shards' hashes in the manifest, as `Dataset.digest`.
        shards, images, bytes: by the manifest.
        ways: how many shards were verified how; what differs is in none of them.
        tables: how many tables were verified, by name.
        unknown: how many tables do not say what they were made of, by name; these are counted above as well.
        differences: all that was found, in the order of the places.
        read_bytes: how much was read of shards.
        seconds: how long it took.
    """

    data: str
    manifest: str
    digest: str
    shards: int
    images: int
    bytes: int
    ways: Counter[Way] = field(default_factory=Counter)
    tables: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    read_bytes: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        counted = {"ways": _plain(self.ways), "tables": _plain(self.tables), "unknown_tables": _plain(self.unknown)}
        return {
            "ok": self.ok,
            "data": self.data,
            "manifest": self.manifest,
            "digest": self.digest,
            "shards": self.shards,
            "images": self.images,
            "bytes": self.bytes,
            **counted,
            "read_bytes": self.read_bytes,
            "seconds": round(self.seconds, 3),
            "differences": [asdict(item) for item in self.differences],
        }

    def lines(self) -> Iterator[str]:
        """For people: what differs, at most some of each kind, then how the rest was verified."""
        told: Counter[Kind] = Counter()
        for item in self.differences:
            told[item.kind] += 1
            if told[item.kind] <= _NAMED:
                yield item.line
        for kind, count in told.items():
            if count > _NAMED:
                yield f"{kind:<10} and {count - _NAMED:,} more: --json names all"
        for way in Way:
            if self.ways[way]:
                yield f"{self.ways[way]:,} of {self.shards:,} shards are verified {way.words}"
        for table, count in sorted(self.tables.items()):
            unknown = f"; {self.unknown[table]:,} do not say of which" if self.unknown[table] else ""
            yield f"{count:,} tables of {table} belong to their shards{unknown}"

    @property
    def summary(self) -> str:
        """One line."""
        what = f"{self.data}: {self.shards:,} shards, {self.images:,} images, {amount(self.bytes)}"
        speed = f" ({amount(self.read_bytes / self.seconds)}/s)" if self.read_bytes else ""
        if self.ok:
            return f"{what}: all equal to {self.manifest} after {self.seconds:.1f} s{speed}"
        counts = Counter(item.kind for item in self.differences)
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        plural = "s" if len(self.differences) > 1 else ""
        return f"{what}: {len(self.differences):,} difference{plural} from {self.manifest} ({kinds})"


def amount(size: float) -> str:
    """Bytes for people."""
    unit = next((unit for unit in ("TB", "GB", "MB") if size >= 2 * _UNITS[unit]), "kB")
    return f"{size / _UNITS[unit]:,.1f} {unit}"


_UNITS = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}


def _plain(counter: Mapping[Any, int]) -> dict[str, int]:
    return {str(name): count for name, count in sorted(counter.items()) if count}
