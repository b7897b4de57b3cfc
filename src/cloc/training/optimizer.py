"""The optimisers of a run: AdamW, and Muon for the matrices where `train.optimizer` says so."""

import re
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from cloc.config.schema import TrainConfig
from cloc.model.factory import AnyCLOCModel
from cloc.model.optimizers import Optimizers, matrices
from cloc.training import distributed
from cloc.training.task import CLOCTask

_TEXT = ("text_model.", "text_projection.")
# What lies below the first layer of a tower.
_BOTTOM = re.compile(r"(vision_model|text_model)\.(embeddings|pre_layrnorm)\.")
_LAYER = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.")


def make_optimizers(task: CLOCTask, train: TrainConfig) -> Optimizers:
    """AdamW (METHOD, Table A), weight decay on matrices only, the text encoder at its own rate and towers at lower ones
    the deeper a layer lies (`train.layer_decay`); with `train.optimizer: muon` the weights of linear layers are Muon's
    and the rest stays AdamW's.

    Args:
        task: whose trained parameters are optimised; as `parallel` left it.
        train: section `train`.
    """
    rates = layer_rates(task.model, decay=train.layer_decay)
    trained = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    rates = {name: rates[name] * (train.text_rate if name.startswith(_TEXT) else 1.0) for name in trained}
    muon = matrices(task) if train.optimizer == "muon" else set[int]()
    chosen = [(p, rates[name], id(p) in muon) for name, p in trained.items()]
    return Optimizers(
        _groups([(p, rate) for p, rate, is_muon in chosen if not is_muon], train=train),
        _groups([(p, rate * train.muon_rate) for p, rate, is_muon in chosen if is_muon], train=train),
        betas=train.betas,
        group=distributed.group(),
    )


def layer_rates(model: AnyCLOCModel, *, decay: float) -> dict[str, float]:
    """Learning rate of each parameter as a multiple of the full one, by depth in its tower (BEiT, open_clip).

    What follows the last layer of a tower, region parts and temperatures have 1; the last layer has `decay`, each layer
    below it `decay` times that, and embeddings the lowest.
    """
    towers = {"vision_model": model.vision_model, "text_model": model.text_model}
    layers = {name: len(tower.encoder.layers) for name, tower in towers.items()}

    def below(name: str) -> int:
        if found := _BOTTOM.match(name):
            return layers[found[1]] + 1
        if found := _LAYER.match(name):
            return layers[found[1]] - int(found[2])
        return 0

    return {name: decay ** below(name) for name, _ in model.named_parameters()}


def _groups(chosen: Iterable[tuple[nn.Parameter, float]], *, train: TrainConfig) -> list[dict[str, Any]]:
    """Groups of one rate and one weight decay; what FSDP2 divides is never in one group with what it does not."""
    groups = dict[tuple[bool, float, bool], list[nn.Parameter]]()
    for parameter, rate in chosen:
        groups.setdefault((parameter.ndim >= 2, rate, isinstance(parameter, DTensor)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": train.weight_decay if decayed else 0.0, "rate": rate}
        for (decayed, rate, _), parameters in groups.items()
    ]
