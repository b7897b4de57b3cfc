"""The record of shards that were read: what is unchanged since then need not be read again, and a run that was killed
goes on where it stopped.

    {"record": 1, "of": "s3://bucket/data/train"}
    ["s3://bucket/data/train/images/00000.tar", "104857600 9b2cf535f27731c974343645a3985328", "ab12…"]

A line a shard: where it lies, its size with its ETag (on S3) or its time of change in nanoseconds (in a folder), and
the SHA-256 that was found. It says what was found and not what was expected: it serves for any manifest. A shard whose
bytes rot on a disk keeps size and time: `--fresh` reads it all the same.
"""

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TextIO

from cloc.errors import DataError
from cloc.stage import fingerprint

_FORMAT = 1
_CACHE = "CLOC_CACHE"
_SPARE = 2  # lines an entry from which on the file is written anew


class Record:
    """Hashes that were found, by place and version. Open it with `with`; it is written line by line.

    Args:
        path: of the file; None keeps nothing.
        of: the data set.
        forget: what it holds from earlier runs is not believed.

    Raises:
        DataError: the file is something else, or cannot be read.
    """

    def __init__(self, path: Path | None, *, of: str, forget: bool = False) -> None:
        self._path, self._of, self._lock = path, of, threading.Lock()
        self._found: dict[str, tuple[str, str]] = {}
        self._stale = self._read() if path else False
        self._kept = {} if forget else self._found
        self._file: TextIO | None = None

    def __enter__(self) -> "Record":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def find(self, url: str, version: str) -> str:
        """The SHA-256 that was found of this version of an object; "" where it was not read."""
        known, sha256 = self._kept.get(url, ("", ""))
        return sha256 if known == version else ""

    def add(self, url: str, version: str, sha256: str) -> None:
        """Keeps a hash; it is in the file when this returns. Raises DataError when it cannot be written."""
        if not self._path:
            return
        with self._lock:
            try:
                self._file = self._file or self._open(self._path)
                self._file.write(_line(url, version, sha256))
                self._file.flush()
            except OSError as error:
                raise self._unkept(error) from None

    def _unkept(self, error: OSError) -> DataError:
        return DataError(
            f"{self._path}: cannot keep the record here ({error.strerror or error}); name another --record"
        )

    def _open(self, path: Path) -> TextIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._stale:
            _rewrite(path, self._of, self._found)
        file = path.open("a", encoding="utf-8")
        if not file.tell():
            file.write(_header(self._of))
        return file

    def _read(self) -> bool:
        """Reads the file, if there is one; whether it shall be written anew, without lines that others replaced and
        without the cut line of a run that was killed."""
        assert self._path
        count, cut = 0, False
        try:
            with self._path.open(encoding="utf-8") as file:
                if not _is_header(file.readline()):
                    raise DataError(f"{self._path}: not a record of `cloc data verify`; name another --record")
                for line in file:
                    count += 1
                    cut = not line.endswith("\n")
                    if not cut:
                        url, version, sha256 = json.loads(line)
                        self._found[url] = version, sha256
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unkept(error) from None
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{self._path}: the record is broken ({error}); remove it to read all again") from None
        return cut or count > _SPARE * max(len(self._found), 1)


def default_path(data: str) -> Path | None:
    """Where the record of a data set lies unless said otherwise: below $CLOC_CACHE or ~/.cache/cloc; None where that
    is "none"."""
    cache = os.environ.get(_CACHE, "")
    if cache == "none":
        return None
    home = Path.home() / ".cache/cloc" if not cache or "://" in cache else Path(cache)
    where = data if "://" in data else str(Path(data).absolute())
    return home / "verified" / f"{fingerprint(where.rstrip('/'))}.jsonl"


def _header(of: str) -> str:
    return json.dumps({"record": _FORMAT, "of": of}) + "\n"


def _is_header(line: str) -> bool:
    try:
        return not line or json.loads(line)["record"] == _FORMAT
    except (ValueError, KeyError, TypeError):
        return False


def _line(url: str, version: str, sha256: str) -> str:
    return json.dumps([url, version, sha256]) + "\n"


def _rewrite(path: Path, of: str, found: dict[str, tuple[str, str]]) -> None:
    partial = path.with_name(f".{path.name}.part")
    lines: Iterable[str] = (_line(url, version, sha256) for url, (version, sha256) in found.items())
    with partial.open("w", encoding="utf-8") as file:
        file.write(_header(of))
        file.writelines(lines)
    partial.replace(path)
