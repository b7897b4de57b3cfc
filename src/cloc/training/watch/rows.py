"""Where a run's metrics are kept: a file of JSON lines in a folder, or an object on S3.

A row is {"step": ..., "seconds": ..., "timestamp": milliseconds since 1970, NAME: value, ...}.
"""

import json
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cloc.data.storage import Storage, open_storage
from cloc.errors import DataError
from cloc.training.jobfile import METRICS_FILE

_UPLOAD_SECONDS = 60.0


class Rows(ABC):
    """The rows of a run, the newest last."""

    @abstractmethod
    def add(self, row: Mapping[str, Any]) -> None:
        """Takes a row; never waits for the network."""

    @abstractmethod
    def close(self) -> None:
        """Writes what is not yet written. Raises DataError when that fails."""


def open_rows(output: str, *, start: int) -> Rows:
    """The rows of a run that goes on.

    Args:
        output: folder or s3:// prefix of the run.
        start: step that it goes on from: later rows are forgotten, all of them at 0.
    """
    storage = open_storage(output)
    kept = _kept(storage, start=start) if start else []
    return ObjectRows(storage, kept) if output.startswith("s3://") else FileRows(Path(storage.url), kept)


def _kept(storage: Storage, *, start: int) -> list[str]:
    if not storage.exists(METRICS_FILE):
        return []
    text = storage.read_bytes(METRICS_FILE).decode()
    whole = text[: text.rfind("\n") + 1]  # a process that was killed may have left half a line
    return [line for line in whole.splitlines() if json.loads(line)["step"] <= start]


class FileRows(Rows):
    """A file in a folder; a row is in it as soon as it is added."""

    def __init__(self, folder: Path, kept: Sequence[str]) -> None:
        open_storage(folder).write_bytes(METRICS_FILE, _text(kept))
        self._file = (folder / METRICS_FILE).open("a", buffering=1)

    def add(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        self._file.close()


class ObjectRows(Rows):
    """An object, which can only be written whole: every minute by a thread, and at the end."""

    def __init__(self, storage: Storage, kept: Sequence[str], *, interval: float = _UPLOAD_SECONDS) -> None:
        self._storage, self._lines, self._interval = storage, list(kept), interval
        self._written, self._warned, self._over = -1, False, threading.Event()
        self._thread = threading.Thread(target=self._upload, daemon=True, name="metrics-upload")
        self._thread.start()

    def add(self, row: Mapping[str, Any]) -> None:
        self._lines.append(json.dumps(row))

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._write()

    def _write(self) -> None:
        count = len(self._lines)
        if count != self._written:
            self._storage.write_bytes(METRICS_FILE, _text(self._lines[:count]))
            self._written = count

    def _upload(self) -> None:
        while not self._over.wait(self._interval):
            try:
                self._write()
            except DataError as error:
                if not self._warned:
                    print(f"metrics are kept back until they can be written: {error}", file=sys.stderr, flush=True)
                self._warned = True
            else:
                self._warned = False


def _text(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
