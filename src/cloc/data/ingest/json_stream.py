"""JSON files of any size, read entry by entry: what their long lists hold, never the whole of them.

Memory is bounded whatever the file holds: one entry of at most `MAX_ENTRY` bytes stands in it at a time, and values
that nobody asked for are passed over.
"""

import contextlib
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from cloc.errors import DataError

# Entries of real files have kilobytes (an image of Visual Genome with its regions: 100), polygons apart.
MAX_ENTRY = 8 * 2**20
MAX_DEPTH = 64
_CHUNK = 2**16
_BOM = b"\xef\xbb\xbf"
_STARTS = frozenset({"start_map", "start_array"})
_ENDS = frozenset({"end_map", "end_array"})
_FAULTS = (ijson.JSONError, ValueError)  # ValueError: the parser in Python on numbers of 5,000 digits


@dataclass(frozen=True, slots=True)
class Entry:
    """An item of one of the file's lists.

    Attributes:
        name: of the list; "" when the file itself is the list.
        index: place in the list.
        value: as in JSON; NaN and infinite numbers, which JSON has not, end the reading.
    """

    name: str
    index: int
    value: Any

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.name}[{self.index}]"


def entries_of_object(
    path: str, *, what: str, lists: Collection[str], optional: Collection[str] = (), skip: Collection[str] = ()
) -> Iterator[Entry]:
    """The items of some lists of the object that a file holds, in the file's order.

    Args:
        path: the file.
        what: the option that names it, for messages.
        lists: keys of lists that have to be there.
        optional: keys of lists that may be there; what is none there is passed over.
        skip: keys of the entries that are passed over (COCO's polygons make up most of its size).

    Raises:
        DataError: the file cannot be read, is broken, lacks a list, or has an entry beyond all bounds.
    """
    return _Parser(path, what=what, skip=skip).object_entries(lists=lists, optional=optional)


def entries_of_list(path: str, *, what: str) -> Iterator[Entry]:
    """The items of the list that a file is, in order.

    Raises:
        DataError: the file cannot be read, is broken, is no list, or has an entry beyond all bounds.
    """
    return _Parser(path, what=what, skip=()).list_entries()


class _Parser:
    """Reads a file once, from its start to its end."""

    def __init__(self, path: str, *, what: str, skip: Collection[str]) -> None:
        self._source = f"{what}: {path}"
        self._path = path
        self._skip = frozenset(skip)
        self._place = ""  # where the reading is, for messages
        self._offset = 0  # bytes given to the parser
        self._events = self._read()

    def object_entries(self, *, lists: Collection[str], optional: Collection[str]) -> Iterator[Entry]:
        event, value = next(self._events)
        if event != "start_map":
            raise DataError(f"{self._source}: expected an object with {', '.join(lists)}, got {_kind(event, value)}")
        seen: set[str] = set()
        for _, name in self._events:  # keys of the file's object, and its end
            if name is None:
                continue
            if name in seen:
                raise DataError(f"{self._source}: the key {name[:80]!r} stands twice")
            self._place = name[:80]
            event, value = next(self._events)
            if name in lists and event != "start_array":
                raise DataError(f"{self._source}: {name} must be of type list, got {_kind(event, value)}")
            if event == "start_array" and (name in lists or name in optional):
                seen.add(name)
                yield from self._items(name)
            else:
                self._pass_over(event)
        for name in lists:
            if name not in seen:
                raise DataError(f"{self._source}: the key {name!r} is missing")

    def list_entries(self) -> Iterator[Entry]:
        event, value = next(self._events)
        if event != "start_array":
            raise DataError(f"{self._source}: expected a list, got {_kind(event, value)}")
        yield from self._items("")
        next(self._events, None)  # reads on to the end of the file: nothing may follow

    def _items(self, name: str) -> Iterator[Entry]:
        for index in itertools.count():
            self._place = f"{name}[{index}]"
            event, value = next(self._events)
            if event == "end_array":
                break
            yield Entry(name, index, self._build(event, value))
        self._place = ""

    def _build(self, event: str, value: Any) -> Any:
        """The value that an event starts."""
        if event not in _STARTS:
            return value
        root: Any = {} if event == "start_map" else []
        stack, key, start = [root], "", self._offset
        for event, value in self._events:
            if event == "map_key":
                key = value
                if key in self._skip:
                    self._pass_over(next(self._events)[0])
                continue
            if event in _ENDS:
                stack.pop()
                if not stack:
                    break
                continue
            child: Any = {} if event == "start_map" else [] if event == "start_array" else value
            if type(stack[-1]) is dict:
                stack[-1][key] = child
            else:
                stack[-1].append(child)
            if event in _STARTS:
                stack.append(child)
                self._check_depth(len(stack))
            if self._offset - start > MAX_ENTRY:
                raise DataError(f"{self._source}: {self._place} is larger than {MAX_ENTRY >> 20} MiB: no such entry")
        return root

    def _pass_over(self, event: str) -> None:
        """Reads to the end of the value that an event starts."""
        if event not in _STARTS:
            return
        depth = 1
        for event, _ in self._events:
            if event == "number":  # first, since polygons are little else
                continue
            if event in _STARTS:
                depth += 1
                self._check_depth(depth)
            elif event in _ENDS:
                depth -= 1
                if not depth:
                    return

    def _check_depth(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise DataError(f"{self._source}: {self._place} is nested more than {MAX_DEPTH} deep: no such entry")

    def _read(self) -> Iterator[tuple[str, Any]]:
        """The parser's events. Those before a fault come first, so that the place of the fault is known."""
        events = ijson.sendable_list()
        parser = ijson.basic_parse_coro(events, use_float=True)
        silent = 0
        try:
            with self._open() as file:
                while True:
                    chunk = self._chunk(file)
                    fault = _feed(parser, chunk)
                    silent = 0 if events else silent + len(chunk)
                    yield from events
                    events.clear()
                    place = f" in {self._place}" if self._place else ""
                    if fault:
                        raise DataError(f"{self._source} is not valid JSON{place} ({fault})")
                    if silent > MAX_ENTRY:
                        limit = f"{MAX_ENTRY >> 20} MiB"
                        raise DataError(f"{self._source}: one text or number{place} has more than {limit}")
                    if not chunk:
                        return
        finally:
            with contextlib.suppress(*_FAULTS):  # a parser that is left early complains of the missing rest
                parser.close()

    def _open(self) -> BinaryIO:
        try:
            return Path(self._path).open("rb")
        except OSError as error:
            raise self._unreadable(error) from None

    def _chunk(self, file: BinaryIO) -> bytes:
        start = self._offset
        try:
            chunk = file.read(_CHUNK)
        except OSError as error:
            raise self._unreadable(error) from None
        self._offset += len(chunk)
        return chunk if start else chunk.removeprefix(_BOM)

    def _unreadable(self, error: OSError) -> DataError:
        what = self._source.partition(": ")[0]
        return DataError(f"{what}: cannot read {self._path} ({error.strerror})")


def _feed(parser: Any, chunk: bytes) -> str:
    """Gives the parser a chunk, or the end for an empty one; returns the fault it finds, or ""."""
    try:
        if chunk:
            parser.send(chunk)
        else:
            parser.close()
    except _FAULTS as error:
        reason, *context = (error.args[0].decode(errors="replace") if _is_bytes(error) else str(error)).split("\n")
        near = context[0].strip() if context else ""
        return f"{reason.strip()[:120]}, near {near[:80]!r}" if near else reason.strip()[:120]
    return ""


def _is_bytes(error: Exception) -> bool:
    """Whether the parser told of text that is not UTF-8, which it quotes as it is."""
    return bool(error.args) and isinstance(error.args[0], bytes)


def _kind(event: str, value: Any) -> str:
    """The Python name of what an event starts."""
    return {"start_map": "dict", "start_array": "list"}.get(event) or type(value).__name__
