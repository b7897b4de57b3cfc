"""The folder or S3 prefix that holds a run's checkpoints: what is there, what is put there, what goes.

step-00000200/{00000-1f2e3d4c.safetensors, ..., tensors-1f2e3d4c.json, state.json}

A file of tensors from each rank; `tensors` says what they hold; `state.json`, written last, names the files with size
and checksum and makes them a checkpoint. Without it they are the rest of a save that was broken off, and go with the
next one. Each save has file names of its own, so that one of the same step again never touches what is there.
"""

import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cloc.data.storage import FolderStorage, Storage, StorageError, Trouble
from cloc.training.checkpoint.files import CheckedStream, DamagedError, Digest
from cloc.training.checkpoint.state import TrainingState

MARKER = "state.json"
_FORMAT = 1
_PATH = re.compile(r"step-(\d{8,})(?:/(.+))?")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def folder_of(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{step:08d}"


def warn(text: str) -> None:
    """A line for whoever looks at the run."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Saved:
    """What `state.json` says.

    Attributes:
        state: where the run stood.
        score: higher is better; None when there was none.
        index: name of the file that says where the tensors lie.
        files: all files but this one.
    """

    state: TrainingState
    score: float | None
    index: str
    files: Mapping[str, Digest]

    @classmethod
    def parse(cls, body: bytes, *, where: str) -> "Saved":
        """Raises DamagedError when it is not what `dump` makes."""
        try:
            found = json.loads(body)
            if found["format"] != _FORMAT:
                raise DamagedError(f"{where} is of another version (format {found['format']}, not {_FORMAT})")
            files = {name: Digest(**digest) for name, digest in found["files"].items()}
            state = TrainingState(**found["state"])
            return cls(state, found["score"], found["index"], files)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{where} is not whole ({type(error).__name__}: {error})") from None

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1).encode() + b"\n"


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the `newest` ones, and the `best` ones by score."""

    newest: int
    best: int

    def leaves(self, scores: Mapping[int, float | None], *, step: int) -> set[int]:
        """Of the checkpoints by step, those that stay now that `step` was written.

        Later ones are of no use: the run would have gone on from them, were they whole.
        """
        steps = sorted(other for other in scores if other <= step)
        ranked = sorted((score, other) for other, score in scores.items() if score is not None and other <= step)
        return set(steps[-self.newest :]) | {other for _, other in ranked[max(0, len(ranked) - self.best) :]}


class Shelf:
    """The checkpoints under one root. What goes wrong with the storage is a StorageError."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._folder = Path(storage.url) if isinstance(storage, FolderStorage) else None

    def where(self, step: int, name: str = "") -> str:
        """The full name of a checkpoint, or of a file in it."""
        return "/".join([self._storage.url, folder_of(step), *([name] if name else [])])

    def _tree(self) -> dict[int, list[str]]:
        """Names of the files by step, of checkpoints and of what was broken off."""
        found: dict[int, list[str]] = {}
        if self._folder and self._folder.is_dir():  # a folder may hold no file but temporary ones
            paths = [path.name for path in self._folder.iterdir() if path.is_dir()]
            found = {int(match[1]): [] for path in paths if (match := _PATH.fullmatch(path))}
        for path in self._storage.walk(""):
            if match := _PATH.fullmatch(path):
                found.setdefault(int(match[1]), []).append(match[2])
        return found

    def steps(self) -> list[int]:
        """The checkpoints, in order."""
        return sorted(step for step, files in self._tree().items() if MARKER in files)

    def read(self, step: int) -> Saved:
        """Raises DamagedError when `state.json` is not whole."""
        return Saved.parse(self._whole(step, MARKER), where=self.where(step, MARKER))

    def _whole(self, step: int, name: str) -> bytes:
        try:
            return self._storage.read_bytes(f"{folder_of(step)}/{name}")
        except StorageError as error:
            if error.trouble is Trouble.NO_OBJECT:
                raise DamagedError(f"{self.where(step, name)} is missing") from None
            raise

    def newest(self, *, before: int | None = None) -> Saved | None:
        """The newest one that can be read, of those before a step; None when there is none, good or bad.

        Raises:
            DamagedError: there are some, and none of them can be read.
        """
        steps = [step for step in self.steps() if before is None or step < before]
        for step in reversed(steps):
            try:
                return self.read(step)
            except DamagedError as error:
                warn(f"{error}; the checkpoint before it is tried")
        if steps:
            raise DamagedError(f"{self._storage.url}: none of its {len(steps)} checkpoints can be read")
        return None

    def index(self, saved: Saved) -> bytes:
        """The index of a checkpoint's tensors, checked."""
        step = saved.state.step
        body = self._whole(step, saved.index)
        if Digest.of(body) != saved.files.get(saved.index):
            raise DamagedError(f"{self.where(step, saved.index)} has another checksum than when it was written")
        return body

    @contextmanager
    def opened(self, saved: Saved, name: str) -> Iterator[CheckedStream]:
        """A file of a checkpoint, to be read front to back; checked at the end. Raises DamagedError."""
        step = saved.state.step
        digest = saved.files.get(name)
        if digest is None:
            raise DamagedError(f"{self.where(step, MARKER)} does not name {name}")
        try:
            with self._storage.open(f"{folder_of(step)}/{name}") as stream:
                checked = CheckedStream(stream, digest, where=self.where(step, name))
                yield checked
                checked.finish()
        except StorageError as error:
            if error.trouble is Trouble.NO_OBJECT:
                raise DamagedError(f"{self.where(step, name)} is missing") from None
            raise

    @contextmanager
    def receiving(self, step: int, name: str) -> Iterator[Path]:
        """A path to write a file to, which lies with the checkpoint when the block ends well, and nowhere otherwise.

        In a folder it is beside its place; for S3 in the machine's own folder for temporary files.
        """
        with self._errors(step, name), tempfile.TemporaryDirectory(prefix="cloc-", dir=self._scratch(step)) as scratch:
            path = Path(scratch) / name
            yield path
            self._storage.write_file(f"{folder_of(step)}/{name}", path)

    def _scratch(self, step: int) -> Path | None:
        if self._folder is None:
            return None
        place = self._folder / folder_of(step)
        place.mkdir(parents=True, exist_ok=True)
        return place

    def put(self, step: int, name: str, body: bytes) -> None:
        """Writes a small file."""
        with self.receiving(step, name) as path, path.open("wb") as stream:
            stream.write(body)
            stream.flush()
            os.fsync(stream.fileno())

    @contextmanager
    def _errors(self, step: int, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            place = error.filename or self.where(step, name)
            trouble = Trouble.FULL if error.errno in _FULL else Trouble.OTHER
            raise StorageError(f"{place}: {error.strerror or error}", trouble) from None

    def commit(self, saved: Saved) -> None:
        """Makes the files that were put there a checkpoint; from now on it counts."""
        self.put(saved.state.step, MARKER, saved.dump())

    def retain(self, saved: Saved, retention: Retention) -> None:
        """Removes what stays no longer now that this one was written, and what lies about in its folder."""
        step = saved.state.step
        scores = {other: saved.score if other == step else self._score(other) for other in self.steps()}
        for other in sorted(scores.keys() - retention.leaves(scores, step=step)):
            self._remove(other)
        for name in self._tree()[step]:
            if name != MARKER and name not in saved.files:
                self._storage.delete(f"{folder_of(step)}/{name}")

    def _score(self, step: int) -> float | None:
        try:
            return self.read(step).score
        except DamagedError:
            return None

    def sweep(self) -> None:
        """Removes what saves left that were broken off. Nobody may be saving."""
        for step, names in self._tree().items():
            if MARKER not in names:
                self._remove(step)

    def _remove(self, step: int) -> None:
        """Removes a checkpoint: first what makes it one, so that half of one never counts."""
        self._storage.delete(f"{folder_of(step)}/{MARKER}")
        for path in self._storage.list(folder_of(step)):
            self._storage.delete(path)
        if self._folder:
            shutil.rmtree(self._folder / folder_of(step), ignore_errors=True)
