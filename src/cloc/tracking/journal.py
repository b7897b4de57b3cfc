"""What a store has not acknowledged, on disk: a folder for each run in the outbox.

    .cloc/outbox/<started>-<random>/journal.jsonl   the store and the run, then records, and marks of what was sent
    .cloc/outbox/<started>-<random>/files/          copies of artifacts

A process that writes one holds its lock, which goes with the process however it ends: what nobody holds was left
behind. A record is in the file before it is sent; no file is synchronised: it survives the process, not the machine.
"""

import contextlib
import fcntl
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cloc.tracking.identity import Identity
from cloc.tracking.records import Record

VARIABLE = "CLOC_OUTBOX"
"""Variable that names the outbox; without it, it lies in the working directory."""
_DEFAULT, _FILE, _FILES = Path(".cloc") / "outbox", "journal.jsonl", "files"


def outbox() -> Path:
    """The outbox's folder."""
    return Path(os.environ.get(VARIABLE) or _DEFAULT).absolute()


class Journal:
    """One run's folder, held by this process.

    Attributes:
        uri: of the store, without a password.
        identity: of the run.
        pending: records that were not sent.
        finished: whether the run's end is among all that was said.
    """

    def __init__(self, folder: Path, lock: int, *, uri: str, identity: Identity, attached: bool) -> None:
        self.folder, self.uri, self.identity, self.attached = folder, uri, identity, attached
        self.pending, self.finished = list[Record](), attached
        self._lock, self._copies = lock, 0

    @classmethod
    def begin(cls, uri: str, identity: Identity, *, attached: bool) -> "Journal":
        """A new one.

        Args:
            uri: of the store, without a password.
            identity: of the run.
            attached: whether another process says the run's beginning and end.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = outbox() / f"{identity.started}-{uuid.uuid4().hex[:8]}"
        try:
            folder.mkdir(parents=True)
        except FileNotFoundError:  # another process had just removed an outbox that was empty
            folder.mkdir(parents=True)
        lock = _locked(folder)
        if lock is None:
            raise BlockingIOError(f"{folder} is held by another process")
        made = cls(folder, lock, uri=uri, identity=identity, attached=attached)
        made.rewrite([])
        return made

    @classmethod
    def left(cls, folder: Path) -> "Journal | None":
        """One that a process left behind; None where one still holds it, or nothing is in it."""
        lock = _locked(folder)
        if lock is None:
            return None
        try:
            return cls._read(folder, lock)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def _read(cls, folder: Path, lock: int) -> "Journal | None":
        lines = list(_lines(folder / _FILE))
        if not lines:
            os.close(lock)
            return None
        head = lines[0]
        identity = Identity.from_json(head["identity"])
        found = cls(folder, lock, uri=head["uri"], identity=identity, attached=head["attached"])
        found.finished = found.attached or head["finished"]
        for line in lines[1:]:
            if "sent" in line:
                del found.pending[: line["sent"]]
            else:
                found.pending.append(line)
                found.finished |= line["op"] == "end"
        found.rewrite(found.pending)  # without the half line that it may end with
        return found

    def add(self, record: Record) -> None:
        """Takes a record. Raises OSError where it cannot be written."""
        self.pending.append(record)
        self.finished |= record["op"] == "end"
        self._append(record)

    def sent(self, count: int) -> None:
        """The first of them were acknowledged."""
        del self.pending[:count]
        if self.pending:
            self._append({"sent": count})
        else:
            self.rewrite([])

    def rewrite(self, pending: Sequence[Record]) -> None:
        """Replaces what is pending."""
        head = {"uri": self.uri, "identity": self.identity.to_json(), "attached": self.attached}
        lines = [{**head, "finished": self.finished}, *pending]
        temporary = self.folder / f"{_FILE}.new"
        temporary.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        temporary.chmod(0o600)
        temporary.replace(self.folder / _FILE)
        self.pending = list(pending)

    def own(self, record: Record) -> Record:
        """A record whose artifact lies here: others are written over by the next run."""
        if record["op"] != "file" or Path(record["source"]).is_relative_to(self.folder):
            return record
        source = Path(record["source"])
        self._copies += 1
        copy = self.folder / _FILES / str(self._copies) / source.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            shutil.copy2(source, copy)
        return {**record, "source": str(copy)}

    def let_go(self) -> None:
        """What is pending stays; where nothing is, and nothing will be, the folder goes."""
        if not self.pending and self.finished:
            shutil.rmtree(self.folder, ignore_errors=True)
            for parent in (self.folder.parent, self.folder.parent.parent):
                with contextlib.suppress(OSError):  # others lie in it
                    parent.rmdir() if parent.name in _DEFAULT.parts else None
        os.close(self._lock)

    def _append(self, line: Any) -> None:
        with (self.folder / _FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")


def left_behind() -> Iterator[Journal]:
    """What processes left in the outbox, oldest first; each is held while it is looked at."""
    for folder in sorted(outbox().glob("*/")):
        try:
            found = Journal.left(folder)
        except FileNotFoundError:  # another process was quicker, and it is gone
            continue
        except (OSError, LookupError, TypeError, ValueError) as error:
            said = f"{folder} cannot be delivered: no outbox of this release ({type(error).__name__}: {error})"
            print(said, file=sys.stderr, flush=True)
            continue
        if found:
            yield found


def _locked(folder: Path) -> int | None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _lines(path: Path) -> Iterator[Any]:
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # half a line, where the process was killed
                yield json.loads(line)
