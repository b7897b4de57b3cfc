"""The label tables beside a shard: small Parquet files that appear whole and say what they were made from.

Each table's metadata carries `input_hash` (what was read: the tar's sha256 and the tables joined to it) and
`config_hash` (the settings that matter), so that a rerun skips what is done and redoes what changed.
"""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cloc.data.schema import SCHEMAS, Table
from cloc.data.storage import Storage
from cloc.errors import DataError

_INPUT, _CONFIG, _ROWS = b"cloc.input_hash", b"cloc.config_hash", b"cloc.rows"


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
) -> int:
    """Writes a shard's table whole and returns its number of rows. Equal rows give equal bytes."""
    schema = SCHEMAS[table]
    data = pa.Table.from_pylist(list(rows), schema=schema)
    metadata = {_INPUT: input_hash.encode(), _CONFIG: config_hash.encode(), _ROWS: str(len(data)).encode()}
    sink = io.BytesIO()
    pq.write_table(data.replace_schema_metadata(metadata), sink, compression="zstd")
    storage.write_bytes(table_path(table, shard), sink.getvalue())
    return len(data)


def read_table(storage: Storage, table: Table, shard: str) -> pa.Table:
    """A shard's table. Raises DataError when it is absent, unreadable or of another schema."""
    path = table_path(table, shard)
    try:
        data = pq.read_table(pa.BufferReader(storage.read_bytes(path)))
    except pa.ArrowInvalid as error:
        raise DataError(f"{storage.url}/{path}: not readable as Parquet ({error})") from None
    if not data.schema.equals(SCHEMAS[table]):
        raise DataError(
            f"{storage.url}/{path}: columns {data.schema.names} are not the contract's {SCHEMAS[table].names}"
        )
    return data


def has_table(storage: Storage, table: Table, shard: str) -> bool:
    """Whether the shard has such a table."""
    return storage.exists(table_path(table, shard))


def is_current(storage: Storage, table: Table, shard: str, *, input_hash: str, config_hash: str) -> bool:
    """Whether the table is there and was made from this input with these settings."""
    if not has_table(storage, table, shard):
        return False
    try:
        metadata = pq.read_metadata(pa.BufferReader(storage.read_bytes(table_path(table, shard)))).metadata or {}
    except pa.ArrowInvalid:
        return False  # broken: to be made again
    return metadata.get(_INPUT) == input_hash.encode() and metadata.get(_CONFIG) == config_hash.encode()
