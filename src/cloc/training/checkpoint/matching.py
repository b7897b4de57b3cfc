"""Whether a checkpoint's tensors are those of this model, before any of them is read."""

from collections.abc import Mapping
from itertools import chain

from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from cloc.errors import TrainingError
from cloc.training.checkpoint import generators
from cloc.training.checkpoint.group import Group
from cloc.training.checkpoint.index import tensors_of

_NAMED = 3


def check(metadata: Metadata, wanted: Mapping[str, Tensor], *, group: Group, where: str) -> None:
    """Raises TrainingError on all ranks when the tensors of all together differ from the checkpoint's.

    Args:
        metadata: the checkpoint's.
        wanted: this rank's tensors.
        group: the ranks; every one calls it.
        where: the checkpoint, for the message.
    """
    stored = tensors_of(metadata)
    here = {name: found for name, tensor in wanted.items() if (found := _difference(name, tensor, stored))}
    left = {name for name in stored.keys() - wanted.keys() if not name.startswith(generators.PREFIX)}
    of_all = group.all((here, left))
    differing = dict(chain.from_iterable(one.items() for one, _ in of_all))
    # What one rank does not want, another may.
    for name in set.intersection(*(unwanted for _, unwanted in of_all)):
        differing[name] = f"it has {name} {tuple(stored[name].size)}, which this run has not"
    if differing:
        lines = [differing[name] for name in sorted(differing)]
        more = f" and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
        raise TrainingError(
            f"{where} is of another architecture or optimiser: {'; '.join(lines[:_NAMED])}{more}; restore the settings "
            "it was trained with, or train into another output"
        )


def _difference(name: str, tensor: Tensor, stored: Mapping[str, TensorStorageMetadata]) -> str:
    if name not in stored:
        return f"it lacks {name} {tuple(tensor.shape)}"
    there = stored[name]
    if there.size != tensor.shape:
        return f"its {name} is {tuple(there.size)}, this run's {tuple(tensor.shape)}"
    if there.properties.dtype != tensor.dtype:
        return f"its {name} is {_text(there.properties.dtype)}, this run's {_text(tensor.dtype)}"
    return ""


def _text(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
