"""The optimisers of a run: AdamW, and Muon for the matrices where `train.optimizer` says so."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from cloc.config.schema import TrainConfig
from cloc.model.optimizers import Optimizers, matrices
from cloc.training.task import CLOCTask


def make_optimizers(task: CLOCTask, train: TrainConfig) -> Optimizers:
    """AdamW (METHOD, Table A), weight decay on matrices only and the text encoder at its own rate; with
    `train.optimizer: muon` the weights of linear layers are Muon's and the rest stays AdamW's.

    Args:
        task: whose trained parameters are optimised.
        train: section `train`.
    """
    text = {id(p) for name, p in task.model.named_parameters() if name.startswith(("text_model.", "text_projection."))}
    trained = [p for p in task.parameters() if p.requires_grad]
    own = matrices(task) if train.optimizer == "muon" else set[int]()
    return Optimizers(
        list(_groups([p for p in trained if id(p) not in own], text=text, train=train, rate=1.0)),
        list(_groups([p for p in trained if id(p) in own], text=text, train=train, rate=train.muon_rate)),
        betas=train.betas,
    )


def _groups(
    parameters: Iterable[nn.Parameter], *, text: set[int], train: TrainConfig, rate: float
) -> Iterator[dict[str, Any]]:
    parameters = list(parameters)
    for decayed in (True, False):
        for is_text in (True, False):
            chosen = [p for p in parameters if (p.ndim >= 2) == decayed and (id(p) in text) == is_text]
            if chosen:
                yield {
                    "params": chosen,
                    "weight_decay": train.weight_decay if decayed else 0.0,
                    "rate": rate * (train.text_rate if is_text else 1.0),
                }
