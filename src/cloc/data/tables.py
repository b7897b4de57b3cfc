"""The label tables beside a shard: small Parquet files that appear whole and say what they were made from.

Each table's metadata carries `input_hash` (what was read: the tar's sha256 and the tables joined to it),
`config_hash` (the settings that matter), what made it, the hash of its own rows, and the maker's statistics. So a rerun
skips what is done, redoes what changed, and counts what stands, and a model can be traced to its labellers, by the last
few kilobytes of each file alone.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cloc.data.schema import SCHEMAS, Table
from cloc.data.storage import Storage
from cloc.errors import DataError

_INPUT, _CONFIG, _ROWS = b"cloc.input_hash", b"cloc.config_hash", b"cloc.rows"
_CONTENT, _STATISTICS, _MADE_BY = b"cloc.content_hash", b"cloc.statistics", b"cloc.made_by"
_TAIL = 1 << 16  # bytes that hold the footer of all but huge tables


@dataclass(frozen=True)
class TableInfo:
    """What a table says of itself.

    Attributes:
        input_hash, config_hash: what it was made from; "" where its maker did not say.
        content_hash: hash of its rows; "" in a table that something else wrote.
        statistics: its maker's numbers, JSON values; empty where it gave none.
        made_by: its maker (stage, model, settings), JSON values; empty where it did not say.
    """

    input_hash: str
    config_hash: str
    content_hash: str
    statistics: Mapping[str, Any]
    made_by: Mapping[str, Any] = field(default_factory=dict)


def table_path(table: Table, shard: str) -> str:
    """Path of a shard's table inside its data set."""
    return f"{table}/{shard}.parquet"


def write_table(
    storage: Storage,
    table: Table,
    shard: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    input_hash: str = "",
    config_hash: str = "",
    statistics: str = "",
    made_by: str = "",
) -> int:
    """Writes a shard's table whole and returns its number of rows. Equal arguments give equal bytes.

    Args:
        storage, table, shard: where it goes.
        rows: by the contract's columns.
        input_hash, config_hash: what it was made from, for `is_current`.
        statistics: numbers that its maker wants to find again, a JSON object.
        made_by: its maker, a JSON object without times and places.
    """
    schema = SCHEMAS[table]
    data = pa.Table.from_pylist(list(rows), schema=schema)
    metadata = {
        _INPUT: input_hash.encode(),
        _CONFIG: config_hash.encode(),
        _ROWS: str(len(data)).encode(),
        _CONTENT: _content(data).encode(),
        _STATISTICS: statistics.encode(),
        **({_MADE_BY: made_by.encode()} if made_by else {}),
    }
    sink = io.BytesIO()
    pq.write_table(data.replace_schema_metadata(metadata), sink, compression="zstd")
    storage.write_bytes(table_path(table, shard), sink.getvalue())
    return len(data)


def read_table(storage: Storage, table: Table, shard: str) -> pa.Table:
    """A shard's table. Raises DataError when it is absent, unreadable or of another schema."""
    path = table_path(table, shard)
    try:
        data = pq.read_table(pa.BufferReader(storage.read_bytes(path)))
    except (pa.ArrowInvalid, OSError) as error:  # OSError: what does not decompress
        raise DataError(f"{storage.url}/{path}: not readable as Parquet ({error})") from None
    if not data.schema.equals(SCHEMAS[table]):
        raise DataError(
            f"{storage.url}/{path}: columns {data.schema.names} are not the contract's {SCHEMAS[table].names}"
        )
    return data


def has_table(storage: Storage, table: Table, shard: str) -> bool:
    """Whether the shard has such a table."""
    return storage.exists(table_path(table, shard))


def table_info(storage: Storage, table: Table, shard: str) -> TableInfo | None:
    """What a shard's table says of itself; None when there is none or it is broken. Reads the end of the file."""
    if not has_table(storage, table, shard):
        return None
    path = table_path(table, shard)
    try:
        metadata = _metadata(storage.read_tail(path, _TAIL))
    except pa.ArrowInvalid:
        try:
            metadata = _metadata(storage.read_bytes(path))  # a footer that is longer than the tail
        except pa.ArrowInvalid:
            return None
    texts = {name: metadata.get(name, b"").decode() for name in (_INPUT, _CONFIG, _CONTENT)}
    return TableInfo(
        input_hash=texts[_INPUT],
        config_hash=texts[_CONFIG],
        content_hash=texts[_CONTENT],
        statistics=json.loads(metadata.get(_STATISTICS) or b"{}"),
        made_by=json.loads(metadata.get(_MADE_BY) or b"{}"),
    )


def is_current(storage: Storage, table: Table, shard: str, *, input_hash: str, config_hash: str) -> bool:
    """Whether the table is there and was made from this input with these settings."""
    info = table_info(storage, table, shard)
    return info is not None and (info.input_hash, info.config_hash) == (input_hash, config_hash)


def content_hash(storage: Storage, table: Table, shard: str) -> str:
    """Hash of a table's rows, "" when the shard has none; of its bytes where something else than cloc wrote it."""
    if not has_table(storage, table, shard):
        return ""
    info = table_info(storage, table, shard)
    if info is not None and info.content_hash:
        return info.content_hash
    return hashlib.sha256(storage.read_bytes(table_path(table, shard))).hexdigest()


def is_intact(storage: Storage, table: Table, shard: str) -> bool:
    """Whether a shard's table still has the rows whose hash it carries; reads it whole. False without such a hash.

    Raises:
        DataError: there is no such table, or it is unreadable.
    """
    info = table_info(storage, table, shard)
    rows = read_table(storage, table, shard).replace_schema_metadata(None)
    return info is not None and info.content_hash == _content(rows)


def _metadata(body: bytes) -> Mapping[bytes, bytes]:
    return pq.read_metadata(pa.BufferReader(body)).metadata or {}


def _content(data: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as stream:
        stream.write_table(data.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()
