"""Members of a tar, read front to back: bodies that nobody asks for are skipped, sought over where that is possible.

The standard library's `tarfile` reads the same archives and more; a training sample spent 5 % of its processor time
there, on an object a header. Of extended headers this keeps what names and sizes need.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

from cloc.errors import DataError

_BLOCK = 512
_FILES, _EXTENDED, _GLOBAL, _LONG_NAME, _LONG_LINK, _SPARSE = b"0\0" + b"7", b"xX", b"g", b"L", b"K", b"S"
_FOLDER = b"5"
# Links, devices and folders have no body, whatever their size says (POSIX).
_EMPTY = b"123456"
_MAX_EXTENDED = 1 << 20  # bytes; a longer extended header is hostile
_MAX_SIZE = 1 << 62  # bytes; a larger size is no number of a file
_CHUNK = 16 << 20  # bytes asked for at once: a false size must not reserve memory that no body fills
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}


class BrokenTarError(DataError):
    """A tar cannot be read to its end.

    Attributes:
        reason: why, without the tar's name.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}; write this tar again")
        self.reason = reason


class TarStream:
    """Names of the regular files of a tar in order; `read` gives the body of the one just named.

    Args:
        stream: the tar, at its first byte.
        source: what to call it in errors.
        others: whether to name members that are neither files nor folders too; `oddity` says what they are.

    Attributes:
        size: bytes of the body of the member just named.
        oddity: what it is where it is no plain file ("a symbolic link"), else "".
    """

    def __init__(self, stream: BinaryIO, *, source: str, others: bool = False) -> None:
        self._stream, self._source, self._others = stream, source, others
        self.oddity = ""
        self._seekable = stream.seekable()
        self._size = self._left = 0  # bytes of the present body; of it and its padding, those not yet passed

    def __iter__(self) -> Iterator[str]:
        """Raises BrokenTarError (a DataError): not a tar, or it ends before its end-of-archive mark."""
        long_name, long_size, sparse = "", -1, False
        while (header := self._header()) is not None:
            kind, size = header[156:157], self._number(header[124:136])
            if kind in _EXTENDED or kind in _LONG_NAME:
                self._begin(size)
                body = self._extended()
                if kind == _LONG_NAME:
                    long_name = _text(body)
                else:
                    records = _records(body)
                    long_name = records.get("path", long_name)
                    long_size = self._decimal(records.get("size", "-1"))
                    sparse = any(name.startswith("GNU.sparse.") for name in records)
                continue
            if kind == _SPARSE:
                self._pass_sparse_map(header)
            self._begin(0 if kind in _EMPTY else max(long_size, size))
            if kind in _GLOBAL or kind in _LONG_LINK:
                continue
            if kind in _FILES and not sparse:
                self.oddity = ""
                yield long_name or _name(header)
            elif self._others and kind not in _FOLDER:
                self.oddity = "a sparse file" if sparse or kind == _SPARSE else _KINDS.get(kind, "no file")
                yield long_name or _name(header)
            long_name, long_size, sparse = "", -1, False

    @property
    def size(self) -> int:
        return self._size

    def read(self) -> bytes:
        """The body of the member that was just named. Raises DataError when the tar ends inside it."""
        left, parts = self._size, list[bytes]()
        while left:
            part = self._stream.read(min(left, _CHUNK))
            if not part:
                raise self._truncated()
            parts.append(part)
            left -= len(part)
        self._left -= self._size
        self._size = 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish(self) -> None:
        """Reads what is behind the last member: nothing but zeros. Raises BrokenTarError when it is something else."""
        passed = 0
        while rest := self._stream.read(_BLOCK << 11):
            passed += len(rest)
            if rest.count(0) != len(rest):
                raise BrokenTarError(self._source, "more data behind its end-of-archive mark (two tars in one file?)")
        if passed < _BLOCK:  # the mark is two blocks, one of which ended the members
            raise self._truncated()

    def _begin(self, size: int) -> None:
        self._size, self._left = size, -(-size // _BLOCK) * _BLOCK

    def _skip(self) -> None:
        if self._seekable:
            self._stream.seek(self._left, os.SEEK_CUR)
        else:
            while self._left:
                passed = len(self._stream.read(min(self._left, _CHUNK)))
                if not passed:
                    raise self._truncated()
                self._left -= passed
        self._left = 0

    def _header(self) -> bytes | None:
        """The next header; None at the end of the archive."""
        if self._left:
            self._skip()
        header = self._stream.read(_BLOCK)
        if len(header) < _BLOCK:
            raise self._truncated()
        if self._number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            if not header.strip(b"\0"):
                return None
            raise BrokenTarError(self._source, "not a tar, or damaged (a header's checksum is wrong)")
        return header

    def _extended(self) -> bytes:
        if self._size > _MAX_EXTENDED:
            raise BrokenTarError(self._source, f"damaged or hostile (an extended header of {self._size} bytes)")
        return self.read()

    def _pass_sparse_map(self, header: bytes) -> None:
        """Passes the blocks between the header of a sparse file and its body."""
        more = header[482]
        while more:
            block = self._stream.read(_BLOCK)
            if len(block) < _BLOCK:
                raise self._truncated()
            more = block[504]

    def _number(self, field: bytes) -> int:
        """A number of a header: octal digits, or binary where the first bit is set."""
        digits = field.strip(b" \0") or b"0"
        number = int.from_bytes(field[1:]) if field[0] == 0x80 else int(digits, 8) if _is_octal(digits) else -1
        if not 0 <= number < _MAX_SIZE:
            raise BrokenTarError(self._source, f"not a tar, or damaged (number {field!r} in a header)")
        return number

    def _decimal(self, text: str) -> int:
        """The size in an extended header, -1 where it has none."""
        if text != "-1" and not (text.isascii() and text.isdigit() and len(text) < 19):
            raise BrokenTarError(self._source, f"damaged (a size of {text[:20]!r})")
        return int(text)

    def _truncated(self) -> BrokenTarError:
        return BrokenTarError(self._source, "truncated (the tar ends before its end-of-archive mark)")


def _is_octal(digits: bytes) -> bool:
    return not digits.strip(b"01234567")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _records(body: bytes) -> dict[str, str]:
    """The records "LENGTH KEY=VALUE\\n" of a pax header; what is malformed ends them."""
    found: dict[str, str] = {}
    while body:
        length, _, _ = body.partition(b" ")
        if not length.isdigit() or len(length) > 9 or not len(length) < int(length) <= len(body):
            break
        key, _, value = body[len(length) + 1 : int(length) - 1].partition(b"=")
        found[_text(key)] = _text(value)
        body = body[int(length) :]
    return found
