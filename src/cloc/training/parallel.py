"""How ranks share a model: DDP or FSDP2, with activation checkpointing and compilation underneath."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cloc.config.schema import TrainConfig
from cloc.model.factory import AnyCLOCModel
from cloc.training.distributed import Rank
from cloc.training.task import CLOCTask

# Versions of a compiled layer at most; one more is an error. PyTorch's own 8 are fewer than there are uses.
_COMPILED = 64


def parallel(task: CLOCTask, train: TrainConfig, rank: Rank) -> nn.Module:
    """The module to call instead of the task; make the optimisers after this.

    Args:
        task: on its device; changed in place where the strategy wants it.
        train: section `train`.
        rank: this process.
    """
    task.train()
    _drop_nothing(task)
    if train.gradient_checkpointing:
        task.model.activation_checkpointing_enable({"use_reentrant": False})
    module = _shared(task, train, rank) if rank.world_size > 1 else task
    if train.compile:
        # After sharding, which changes the layers' class; and `forward` alone, so that what gathers weights stays
        # outside of the graphs.
        # One code for both towers, at every size, with and without gradient, in training and evaluation.
        torch.compiler.config.recompile_limit = _COMPILED
        for layer in _layers(task.model):
            layer.forward = torch.compile(layer.forward, fullgraph=True)
    return module


def _layers(model: AnyCLOCModel) -> list[nn.Module]:
    """The transformer layers of both towers."""
    return [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]


def _drop_nothing(task: CLOCTask) -> None:
    """Dropout is 0 (METHOD, Table A), whatever a checkpoint's configuration says: each forward of a batch is equal."""
    for module in task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module.__dict__.get("dropout"), float):
            module.__dict__["dropout"] = 0.0  # of attention, which is given it at each call


def _shared(task: CLOCTask, train: TrainConfig, rank: Rank) -> nn.Module:
    if train.strategy == "fsdp2":
        return _sharded(task, rank)
    return DistributedDataParallel(
        task,
        device_ids=[rank.device] if rank.device.type == "cuda" else None,
        forward_sync_buffers=False,  # constants
        gradient_as_bucket_view=True,
    )


def _sharded(task: CLOCTask, rank: Rank) -> nn.Module:
    """FSDP2 over all ranks: each layer of the towers by itself, and the rest together.

    Weights are gathered in float32, and autocast casts them as it does under DDP. Scalars cannot be divided: each rank
    has them whole, and `share_scalars` averages their gradients.
    """
    for parameter in task.parameters():
        dist.broadcast(parameter.detach(), 0)
    mesh = init_device_mesh(rank.device.type, (rank.world_size,))
    for layer in _layers(task.model):
        fully_shard(layer, mesh=mesh)
    # Let go of after a forward pass, too: what is gathered would outlive a change of the weights between two passes
    # without gradient (an average put in place for an evaluation).
    fully_shard(task, mesh=mesh, reshard_after_forward=True, ignored_params=set(_scalars(task)))
    return task


def _scalars(task: CLOCTask) -> list[nn.Parameter]:
    return [parameter for parameter in task.parameters() if parameter.numel() == 1]


@contextmanager
def gradients_shared(module: nn.Module, shared: bool) -> Iterator[None]:
    """Within, a backward pass of what `parallel` made leaves the mean of the ranks' gradients in the parameters, or
    adds to this rank's own, to be shared with those of a later pass."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(shared)
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not shared else nullcontext():
        yield


def share_scalars(module: nn.Module, task: CLOCTask) -> None:
    """After backward: the gradients that FSDP2 leaves to us become the ranks' mean."""
    if not isinstance(module, FSDPModule):
        return
    gradients = [scalar.grad for scalar in _scalars(task) if scalar.grad is not None]
    mean = torch.stack([gradient.reshape(()) for gradient in gradients])
    dist.all_reduce(mean)
    for gradient, value in zip(gradients, mean / dist.get_world_size(), strict=True):
        gradient.copy_(value.view_as(gradient))


@torch.no_grad()
def clip_gradients(task: CLOCTask, *, largest: float) -> Tensor:
    """Scales the gradients down to a norm of `largest`; returns the norm before, a plain scalar equal on all ranks."""
    gradients = [parameter.grad for parameter in task.parameters() if parameter.grad is not None]
    shards = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    if not shards:
        return torch.nn.utils.clip_grad_norm_(task.parameters(), largest)
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    squared = torch.nn.utils.get_total_norm(shards).square()
    dist.all_reduce(squared)
    norm = (squared + torch.nn.utils.get_total_norm(whole).square()).sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_ does
    torch._foreach_mul_(shards, factor)
    torch._foreach_mul_(whole, factor)
    return norm


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole weights by name, copied to the processor: on the first rank; none on the others. Every rank must call
    it."""
    is_first, state = not dist.is_initialized() or dist.get_rank() == 0, dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if is_first:
            state[name] = whole.detach().to("cpu", copy=True)
    return state
