"""The files of a table, Parquet or Arrow streams: what they say of themselves, and their rows as a stream.

What a file has is read from its footer (Parquet) or from the headers of its batches (Arrow, mapped into memory). Images
are touched only in the worker that packs them, some megabytes at a time.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from cloc.data.storage import FolderStorage, Storage
from cloc.errors import DataError

_TAIL = 1 << 16  # bytes that hold most footers
_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_BATCH_BYTES, _BATCH_ROWS = 8 << 20, 256
_READ_BUFFER = 4 << 20  # of each column; also the size of a request to S3


@dataclass(frozen=True)
class Chunk:
    """Neighbouring rows of a file: a row group of Parquet, a batch of Arrow.

    Attributes:
        rows: how many.
        image_bytes: bytes of their images.
    """

    rows: int
    image_bytes: int


class TableFile(Protocol):
    """One file of a table. What is wrong with it is a DataError that names it."""

    schema: pa.Schema
    version: str  # changes with the file

    def chunks(self, image: str) -> Iterator[Chunk]:
        """How its rows lie, with the bytes of the column `image`."""

    def batches(self, columns: list[str], *, first: int, rows: int) -> Iterator[pa.RecordBatch]:
        """The columns of the rows from `first` on, in small batches."""


def open_table_file(storage: Storage, path: str) -> TableFile:
    """Opens a file by its suffix: .arrow, else Parquet."""
    return ArrowFile(storage, path) if path.lower().endswith(".arrow") else ParquetFile(storage, path)


class ParquetFile:
    """A Parquet file in a folder or on S3."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage, self._path = storage, path
        self._where = f"{storage.url}/{path}"
        footer = self._footer()
        with self._errors():
            self._metadata = pq.read_metadata(pa.BufferReader(footer))
            self.schema = self._metadata.schema.to_arrow_schema()
        self.version = storage.version(path)

    def _footer(self) -> bytes:
        tail = self._storage.read_tail(self._path, _TAIL)
        if tail[-4:] == _ENCRYPTED:
            raise DataError(f"table: {self._where} is encrypted; decrypt it")
        if tail[-4:] != _MAGIC or len(tail) < 12:
            raise DataError(f"table: {self._where} is no Parquet file, or is cut short; write it again")
        size = int.from_bytes(tail[-8:-4], "little") + 8
        return tail[-size:] if size <= len(tail) else self._storage.read_tail(self._path, size)

    def chunks(self, image: str) -> Iterator[Chunk]:
        columns = [
            index
            for index in range(self._metadata.num_columns)
            if _is_or_in(self._metadata.schema.column(index).path, image)
        ]
        for number in range(self._metadata.num_row_groups):
            group = self._metadata.row_group(number)
            sizes = (group.column(index).total_uncompressed_size for index in columns)
            yield Chunk(rows=group.num_rows, image_bytes=sum(sizes))

    def batches(self, columns: list[str], *, first: int, rows: int) -> Iterator[pa.RecordBatch]:
        groups, skip, row_bytes = self._groups(first, rows)
        with self._errors(), self._source() as source:
            # Without these two settings whole row groups, gigabytes of images, would lie in memory.
            file = pq.ParquetFile(source, metadata=self._metadata, pre_buffer=False, buffer_size=_READ_BUFFER)
            size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))
            found = file.iter_batches(batch_size=size, row_groups=groups, columns=columns, use_threads=False)
            yield from _window(found, skip=skip, rows=rows, where=self._where)

    def _groups(self, first: int, rows: int) -> tuple[list[int], int, int]:
        """The row groups that hold rows, how many rows of the first one to skip, and the bytes of a row."""
        groups: list[int] = []
        start = skip = row_bytes = 0
        for number in range(self._metadata.num_row_groups):
            group = self._metadata.row_group(number)
            if start < first + rows and first < start + group.num_rows:
                skip = skip if groups else first - start
                row_bytes = max(row_bytes, group.total_byte_size // max(1, group.num_rows))
                groups.append(number)
            start += group.num_rows
        return groups, skip, row_bytes

    @contextmanager
    def _source(self) -> Iterator[pa.NativeFile]:
        if isinstance(self._storage, FolderStorage):
            with pa.OSFile(str(Path(self._storage.url) / self._path)) as file:
                yield file
        else:
            with pa.PythonFile(_RangedFile(self._storage, self._path), mode="r") as file:
                yield file

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"table: {self._where} is broken ({_line(error)}); write it again") from None


class ArrowFile:
    """An Arrow stream in a folder, as `datasets` saves them."""

    def __init__(self, storage: Storage, path: str) -> None:
        if not isinstance(storage, FolderStorage):
            raise DataError(f"table: {storage.url}/{path}: Arrow files are read from folders; copy it, or use Parquet")
        self._file = Path(storage.url) / path
        if storage.read_tail(path, len(_END_OF_STREAM)) != _END_OF_STREAM:
            raise DataError(f"table: {self._file} is no Arrow stream, or is cut short; write it again")
        with self._stream() as stream:
            self.schema = stream.schema
        self.version = storage.version(path)

    def chunks(self, image: str) -> Iterator[Chunk]:
        with self._stream() as stream:
            for batch in stream:
                batch.validate()
                yield Chunk(rows=batch.num_rows, image_bytes=batch.column(image).nbytes)

    def batches(self, columns: list[str], *, first: int, rows: int) -> Iterator[pa.RecordBatch]:
        with self._stream() as stream:
            yield from _window(self._small(stream, columns), skip=first, rows=rows, where=str(self._file))

    def _small(self, stream: pa.RecordBatchReader, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The batches in slices that may become values of Python."""
        for batch in stream:
            taken = batch.select(columns)
            taken.validate(full=True)  # offsets that lead out of their buffer would be followed
            size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, taken.nbytes // max(1, len(taken)))))
            for start in range(0, len(taken), size):
                yield taken.slice(start, size)

    @contextmanager
    def _stream(self) -> Iterator[pa.RecordBatchReader]:
        try:
            with pa.memory_map(str(self._file)) as source, pa.ipc.open_stream(source) as stream:
                yield stream
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"table: {self._file} is broken ({_line(error)}); write it again") from None


def _window(batches: Iterator[pa.RecordBatch], *, skip: int, rows: int, where: str) -> Iterator[pa.RecordBatch]:
    """The rows behind the first `skip`, `rows` of them. Raises DataError when there are fewer."""
    left = rows
    for batch in batches:
        passed = min(skip, len(batch))
        skip -= passed
        taken = batch.slice(passed, left)
        if len(taken):
            left -= len(taken)
            yield taken
        if not left:
            return
    raise DataError(f"table: {where} ends {left} rows too early; write it again")


class _RangedFile(io.RawIOBase):
    """An object as a file that can be read anywhere, by ranged requests."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage, self._path = storage, path
        self._size, self._offset = storage.size(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._size}[whence]
        self._offset = base + offset
        return self._offset

    def read(self, size: int = -1) -> bytes:
        size = self._size - self._offset if size < 0 else min(size, self._size - self._offset)
        if size <= 0:
            return b""
        body = self._storage.read_range(self._path, offset=self._offset, size=size)
        self._offset += len(body)
        return body


def _is_or_in(path: str, column: str) -> bool:
    return path == column or path.startswith(f"{column}.")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
