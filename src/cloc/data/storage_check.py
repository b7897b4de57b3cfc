"""Whether a folder or an S3 endpoint will do for data sets: everything that cloc asks of a storage, tried on it.

    cloc storage check s3://bucket/prefix

What is written lies below a name of its own and is removed again.
"""

import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cloc.data.checks import Check, Outcome
from cloc.data.s3 import S3Storage
from cloc.data.s3_errors import CLOCK_LIMIT_S
from cloc.data.storage import FolderStorage, Storage, StorageError, Trouble, open_storage
from cloc.errors import DataError

_MIB = 1 << 20
_SMALL, _MIDDLE, _LARGE, _LARGE_QUICK, _PART = 64 << 10, _MIB, 12 * _MIB, 4 * _MIB, 5 * _MIB
_OVERWRITES = 6
_LEAST_FREE = 256 * _MIB


@dataclass(frozen=True)
class StorageReport:
    """All that was tried, in order."""

    url: str
    checks: tuple[Check, ...]

    @property
    def failure(self) -> Check | None:
        """The first check that failed; None when the storage will do."""
        return next((check for check in self.checks if check.outcome is Outcome.FAILED), None)


def check_storage(url: str, *, quick: bool = False) -> StorageReport:
    """Tries a storage; never raises for what it finds.

    Args:
        url: a folder or `s3://bucket/prefix`.
        quick: 4 MiB instead of 12 go there and back, and nothing in parts.

    Raises:
        DataError: the URL or the environment is incomplete, so that there is nothing to try.
    """
    storage: Storage = S3Storage(url, part_bytes=_PART) if url.startswith("s3://") else open_storage(url)
    run = _Run(storage, quick=quick)
    enter = _enter_bucket if isinstance(storage, S3Storage) else _enter_folder
    enter(run)
    with _cleaning(run):
        for name, act in _STEPS:
            if (name, quick) != ("multipart", True):
                run.step(name, act)
    # Known as soon as the server answered: it may be the reason for what failed.
    run.stopped = run.stopped and getattr(storage, "clock_difference_s", None) is None
    run.step("clock difference", _clock)
    if isinstance(storage, FolderStorage):
        run.step("free space", _free_space)
    return StorageReport(url=storage.url, checks=tuple(run.checks))


@dataclass
class _Run:
    """The state of a check.

    Attributes:
        storage: what is tried.
        quick: as above.
        root: where the probes lie.
        body: of the large probe.
        names: the probes that were written.
        up_s, down_s: seconds that the large probe took each way.
        stopped: whether what follows makes no sense.
    """

    storage: Storage
    quick: bool
    root: str = field(default_factory=lambda: f"cloc-check-{secrets.token_hex(4)}")
    checks: list[Check] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    body: bytes = b""
    small: bytes = field(default_factory=lambda: os.urandom(_SMALL))
    up_s: float = 0.0
    down_s: float = 0.0
    stopped: bool = False

    def __post_init__(self) -> None:
        self.body = os.urandom(_LARGE_QUICK if self.quick else _LARGE)

    def path(self, name: str) -> str:
        """Path of a probe, which will be removed in the end."""
        if name not in self.names:
            self.names.append(name)
        return f"{self.root}/{name}"

    def step(self, name: str, act: "Callable[[_Run], str]") -> None:
        """Tries one thing, unless one before it failed that it needs."""
        if self.stopped:
            self.checks.append(Check(name, Outcome.SKIPPED))
            return
        start = time.monotonic()
        try:
            outcome, detail = Outcome.PASSED, act(self)
        except DataError as error:
            outcome, detail = Outcome.FAILED, str(error)
        self.checks.append(Check(name, outcome, seconds=time.monotonic() - start, detail=detail))
        self.stopped = outcome is Outcome.FAILED and name in _NEEDED


def _enter_folder(run: _Run) -> None:
    run.step("reach", _reach_folder)


def _reach_folder(run: _Run) -> str:
    folder = Path(run.storage.url)
    nearest = next(item for item in (folder, *folder.absolute().parents) if item.exists())
    if not nearest.is_dir():
        raise StorageError(f"{folder}: {nearest} is a file; choose another folder")
    return "a folder" if nearest == folder else f"a new folder below {nearest}"


_ENTRY = (
    ("reach", {Trouble.UNREACHABLE, Trouble.NOT_S3, Trouble.CERTIFICATE, Trouble.FAILING, Trouble.OTHER}),
    ("credentials", {Trouble.DENIED, Trouble.CLOCK}),
    ("bucket", {Trouble.NO_BUCKET, Trouble.REGION}),
)


def _enter_bucket(run: _Run) -> None:
    """One signed request tells whether the server, the keys and the bucket are good."""
    storage = run.storage
    assert isinstance(storage, S3Storage)
    start = time.monotonic()
    error: StorageError | None = None
    try:
        next(storage.walk(run.root), None)
    except StorageError as found:
        error = found
    seconds = time.monotonic() - start
    details = {"reach": storage.endpoint, "bucket": storage.url}
    for name, troubles in _ENTRY:
        if error is not None and not run.stopped and error.trouble in troubles:
            run.checks.append(Check(name, Outcome.FAILED, seconds=seconds, detail=str(error)))
            run.stopped = True
        elif run.stopped:
            run.checks.append(Check(name, Outcome.SKIPPED))
        else:
            run.checks.append(Check(name, Outcome.PASSED, seconds=seconds, detail=details.get(name, "")))


def _write(run: _Run) -> str:
    run.storage.write_bytes(run.path("small"), run.small)
    return f"{_SMALL >> 10} KiB"


def _read_back(run: _Run) -> str:
    _same(run, "small", run.storage.read_bytes(run.path("small")), run.small)
    return "the same bytes"


def _ranged_read(run: _Run) -> str:
    path = run.path("small")
    for offset, size in ((0, 10), (1000, 5000), (_SMALL - 10, 1000), (_SMALL + 10, 10)):
        found = run.storage.read_range(path, offset=offset, size=size)
        _same(run, f"small, {size} bytes from {offset}", found, run.small[offset : offset + size])
    _same(run, "small, its last 1000 bytes", run.storage.read_tail(path, 1000), run.small[-1000:])
    return "start, middle, end and beyond"


def _list(run: _Run) -> str:
    found, expected = run.storage.list(run.root), [run.path("small")]
    if found != expected:
        raise StorageError(f"{run.storage.url}/{run.root}: listed as {found[:5]} instead of {expected}")
    if not run.storage.exists(expected[0]) or run.storage.exists(f"{run.root}/none"):
        raise StorageError(
            f"{run.storage.url}/{run.root}: says of an object that it is not there, or of none that it is"
        )
    if (size := run.storage.size(expected[0])) != _SMALL:
        raise StorageError(f"{run.storage.url}/{expected[0]}: its size is told as {size} instead of {_SMALL} bytes")
    return "names and sizes"


def _overwrite(run: _Run) -> str:
    """Replaces an object several times while it is read: each reader must find one version or another whole."""
    path, versions = run.path("replaced"), (b"0" * _MIDDLE, b"1" * _MIDDLE)
    run.storage.write_bytes(path, versions[0])
    reads, failures, ended = [0], [], threading.Event()

    def read() -> None:
        while not ended.is_set():
            try:
                if run.storage.read_bytes(path) not in versions:
                    failures.append(f"{run.storage.url}/{path}: a reader saw a mixture while the object was replaced")
            except DataError as error:
                if "replaced while it was read" not in str(error):
                    failures.append(str(error))
            reads[0] += 1

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        for count in range(1, _OVERWRITES + 1):
            run.storage.write_bytes(path, versions[count % 2])
            seen = reads[0]
            while reads[0] == seen and reader.is_alive():  # at least one read between two writes
                time.sleep(0.001)
    finally:
        ended.set()
        reader.join()
    if failures:
        raise StorageError(f"{failures[0]}; objects must be replaced whole")
    return f"{reads[0]} reads during {_OVERWRITES} writes"


def _multipart(run: _Run) -> str:
    """Puts the large probe from a file; on S3 in three parts."""
    with tempfile.TemporaryDirectory(prefix="cloc-check-") as folder:
        source = Path(folder) / "large"
        source.write_bytes(run.body)
        start = time.monotonic()
        run.storage.write_file(run.path("large"), source)
        if isinstance(run.storage, S3Storage):  # in a folder it may be no more than a new name
            run.up_s = time.monotonic() - start
    if (size := run.storage.size(run.path("large"))) != len(run.body):
        raise StorageError(
            f"{run.storage.url}/{run.path('large')}: holds {size} of {len(run.body)} bytes after the upload"
        )
    return f"{len(run.body) // _MIB} MiB" + (f" in parts of {_PART // _MIB}" if run.up_s else ", moved in")


def _streaming(run: _Run) -> str:
    path = run.path("large")
    if not run.up_s:  # quick, or a folder, or the multipart upload failed
        run.body = run.body[:_LARGE_QUICK]
        start = time.monotonic()
        run.storage.write_bytes(path, run.body)
        run.up_s = time.monotonic() - start
    start, passed = time.monotonic(), 0
    with run.storage.open(path) as stream:
        while piece := stream.read(_SMALL):
            _same(run, f"large, from byte {passed}", piece, run.body[passed : passed + len(piece)])
            passed += len(piece)
    run.down_s = time.monotonic() - start
    if passed != len(run.body):
        raise StorageError(f"{run.storage.url}/{path}: the stream ended after {passed} of {len(run.body)} bytes")
    return f"{len(run.body) // _MIB} MiB in order"


def _throughput(run: _Run) -> str:
    if not run.down_s:
        raise StorageError(f"{run.storage.url}: not known, as streaming failed")
    up, down = (len(run.body) / _MIB / max(seconds, 1e-6) for seconds in (run.up_s, run.down_s))
    return f"up {up:.0f} MiB/s, down {down:.0f} MiB/s"


def _delete(run: _Run) -> str:
    for name in run.names:
        run.storage.delete(run.path(name))
    left = run.storage.list(run.root)
    if left:
        raise StorageError(f"{run.storage.url}/{left[0]}: is still listed after it was deleted")
    return f"{len(run.names)} objects"


def _clock(run: _Run) -> str:
    storage = run.storage
    difference = storage.clock_difference_s if isinstance(storage, S3Storage) else _folder_clock(Path(storage.url))
    text = f"{round(difference or 0.0):+d} s"
    if difference is not None and abs(difference) > CLOCK_LIMIT_S:
        raise StorageError(f"{storage.url}: its clock differs from this machine's by {text}; set the clock (NTP)")
    return text


def _folder_clock(folder: Path) -> float:
    """The clock of the folder's file system (a server's, perhaps) minus this machine's, by a new file's time."""
    nearest = next(item for item in (folder, *folder.absolute().parents) if item.is_dir())
    with tempfile.NamedTemporaryFile(dir=nearest, prefix=".tmp-") as stream:
        return os.fstat(stream.fileno()).st_mtime - time.time()


def _free_space(run: _Run) -> str:
    folder = Path(run.storage.url)
    free = shutil.disk_usage(next(item for item in (folder, *folder.absolute().parents) if item.exists())).free
    if free < _LEAST_FREE:
        raise StorageError(f"{folder}: {free // _MIB} MiB are free, less than {_LEAST_FREE // _MIB}; free some space")
    return f"{free / (1 << 30):.1f} GiB"


def _same(run: _Run, what: str, found: bytes, expected: bytes) -> None:
    if found != expected:
        raise StorageError(f"{run.storage.url}/{run.root}/{what}: reads as other bytes than were written")


@contextmanager
def _cleaning(run: _Run) -> Iterator[None]:
    """Removes what was written, whatever happens; what cannot be removed is named."""
    folder = Path(run.storage.url) if isinstance(run.storage, FolderStorage) else None
    missing = [item for item in (folder, *folder.absolute().parents) if not item.exists()] if folder else []
    try:
        yield
    finally:
        try:
            for name in run.names:
                run.storage.delete(f"{run.root}/{name}")
        except DataError as error:
            detail = f"{run.storage.url}/{run.root} could not be removed; remove it by hand ({error})"
            run.checks.append(Check("clean up", Outcome.FAILED, detail=detail))
        if folder:
            for item in (folder / run.root, *missing):
                if item.is_dir() and not any(item.iterdir()):
                    item.rmdir()


_STEPS: tuple[tuple[str, Callable[[_Run], str]], ...] = (
    ("write", _write),
    ("read back", _read_back),
    ("ranged read", _ranged_read),
    ("list", _list),
    ("overwrite is whole", _overwrite),
    ("multipart", _multipart),
    ("streaming", _streaming),
    ("throughput", _throughput),
    ("delete", _delete),
)
_NEEDED = {"reach", "write", "read back"}
