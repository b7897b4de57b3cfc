"""Which tensors a checkpoint has and where their pieces lie: `Metadata` of torch.distributed.checkpoint as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from cloc.training.checkpoint.files import DTYPE_NAMES, DTYPES, DamagedError


@dataclass(frozen=True)
class Place:
    """Where a piece lies: the file's name, and the byte at which it begins."""

    file: str
    start: int


def tensors_of(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    """The tensors by name; a checkpoint of this project has nothing else."""
    return {
        name: item for name, item in metadata.state_dict_metadata.items() if isinstance(item, TensorStorageMetadata)
    }


def to_json(metadata: Metadata, places: Mapping[MetadataIndex, Place]) -> bytes:
    """The index as JSON: a tensor's pieces are [file's number, first byte, offsets, sizes]."""
    files = sorted({place.file for place in places.values()})
    numbers = {file: number for number, file in enumerate(files)}
    tensors = {}
    for name, tensor in sorted(tensors_of(metadata).items()):
        chunks = []
        for chunk in tensor.chunks:
            place = places[MetadataIndex(name, chunk.offsets)]
            chunks.append([numbers[place.file], place.start, list(chunk.offsets), list(chunk.sizes)])
        dtype = DTYPE_NAMES[tensor.properties.dtype]
        tensors[name] = {"dtype": dtype, "shape": list(tensor.size), "pieces": chunks}
    return json.dumps({"files": files, "tensors": tensors}, separators=(",", ":")).encode() + b"\n"


def from_json(body: bytes, *, where: str) -> Metadata:
    """The index; its `storage_data` is the `Place` by `MetadataIndex`. Raises DamagedError when it is none."""
    try:
        found = json.loads(body)
        tensors, places = {}, {}
        for name, tensor in found["tensors"].items():
            chunks = []
            for file, start, offsets, sizes in tensor["pieces"]:
                chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
                places[MetadataIndex(name, offsets)] = Place(found["files"][file], start)
            properties = TensorProperties(dtype=DTYPES[tensor["dtype"]])
            tensors[name] = TensorStorageMetadata(properties, torch.Size(tensor["shape"]), chunks)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DamagedError(f"{where} is no index of tensors ({type(error).__name__}: {error})") from None
    return Metadata(state_dict_metadata=dict(tensors), storage_data=places)
