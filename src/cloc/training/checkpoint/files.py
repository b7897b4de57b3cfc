"""Files of tensors in the safetensors format, written and read front to back with a checksum, without a second copy.

`safetensors` itself makes bytes of all tensors before it writes the first, and knows no checksum; the format
(https://huggingface.co/docs/safetensors) is a JSON header of names, types, shapes and places, and then the values.
Its metadata says where each piece begins in its tensor, as torch.distributed.checkpoint's own safetensors files do.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from cloc.errors import TrainingError
from cloc.training.checkpoint.pieces import Piece

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SKIPPED_AT_ONCE = 1 << 20


class DamagedError(TrainingError):
    """A checkpoint is not what was written, or not all of it."""


@dataclass(frozen=True)
class Digest:
    """What a file must be: its size in bytes and its SHA-256."""

    size: int
    sha256: str

    @classmethod
    def of(cls, body: bytes) -> "Digest":
        """The digest of a whole file."""
        return cls(len(body), hashlib.sha256(body).hexdigest())


@dataclass(frozen=True)
class Written:
    """A file of tensors: its digest, and the byte at which each piece begins, by the tensor's name."""

    digest: Digest
    starts: Mapping[str, int]


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, in place."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def write_tensors(path: Path, pieces: Mapping[str, Piece]) -> Written:
    """Writes a file and waits until it is on the disk. At most one piece is copied at a time, those of a GPU.

    Raises:
        OSError: it cannot be written.
        TrainingError: a tensor's type has no place in the format.
    """
    # Wide types first, as the format wants it: all are aligned then.
    ordered = dict(sorted(pieces.items(), key=lambda item: (-item[1].tensor.itemsize, item[0])))
    header, starts = _header(ordered)
    digest, size = hashlib.sha256(header), len(header)
    with path.open("wb") as stream:
        stream.write(header)
        for piece in ordered.values():
            body = byte_view(piece.tensor.cpu().contiguous())
            digest.update(body)
            stream.write(body)
            size += len(body)
        stream.flush()
        os.fsync(stream.fileno())
    return Written(Digest(size, digest.hexdigest()), starts)


def _header(ordered: Mapping[str, Piece]) -> tuple[bytes, dict[str, int]]:
    """The file's bytes before the first tensor's, and where in the file each begins."""
    entries: dict[str, object] = {}
    begins, at = {}, 0
    for name, piece in ordered.items():
        dtype = DTYPE_NAMES.get(piece.tensor.dtype)
        if dtype is None:
            raise TrainingError(f"{name}: a checkpoint cannot hold tensors of type {piece.tensor.dtype}")
        begins[name] = at
        at += piece.tensor.nbytes
        entries[name] = {"dtype": dtype, "shape": list(piece.tensor.shape), "data_offsets": [begins[name], at]}
    offsets = {name: {"saved_offsets": list(piece.offsets)} for name, piece in ordered.items()}
    entries["__metadata__"] = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return header, {name: len(header) + begin for name, begin in begins.items()}


class CheckedStream:
    """A file read front to back; at its end it is known whether it is the one that was written.

    Args:
        stream: the file from its beginning.
        expected: its digest.
        where: its name, for messages.
    """

    def __init__(self, stream: BinaryIO, expected: Digest, *, where: str) -> None:
        self._stream, self._expected, self._where = stream, expected, where
        self._hash, self._at = hashlib.sha256(), 0

    def read_into(self, room: memoryview) -> None:
        """Fills memory with what comes next. Raises DamagedError when the file ends before."""
        filled = 0
        while filled < len(room):
            try:
                count = self._stream.readinto(room[filled:])  # type: ignore[attr-defined]  # BinaryIO does not say so
            except OSError as error:
                raise DamagedError(f"{self._where} cannot be read ({error.strerror or error})") from None
            if not count:
                have = self._at + filled
                raise DamagedError(f"{self._where} has {have:,} bytes of {self._expected.size:,}")
            filled += count
        self._hash.update(room)
        self._at += filled

    def skip_to(self, position: int) -> None:
        """Reads on up to a byte of the file."""
        room = memoryview(bytearray(min(_SKIPPED_AT_ONCE, max(0, position - self._at))))
        while self._at < position:
            self.read_into(room[: position - self._at])

    def finish(self) -> None:
        """Reads the rest. Raises DamagedError when the file is not the one that was written."""
        self.skip_to(self._expected.size)
        if self._stream.read(1):
            raise DamagedError(f"{self._where} has more than its {self._expected.size:,} bytes")
        if self._hash.hexdigest() != self._expected.sha256:
            raise DamagedError(f"{self._where} has another checksum than when it was written")
