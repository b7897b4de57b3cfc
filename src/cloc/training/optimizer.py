"""The optimisers of a run as one: AdamW, and Muon for the matrices where `train.optimizer` says so."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from cloc.config.schema import TrainConfig
from cloc.training.task import CLOCTask

# A linear layer with fewer outputs (the box head's four) is no matrix to orthogonalise.
_THIN = 16


class Optimizers:
    """AdamW (METHOD, Table A), weight decay on matrices only and the text encoder at its own rate; with
    `train.optimizer: muon` the weights of linear layers are Muon's and the rest stays AdamW's.

    Args:
        task: whose trained parameters are optimised.
        train: section `train`.
    """

    def __init__(self, task: CLOCTask, train: TrainConfig) -> None:
        text = {
            id(p) for name, p in task.model.named_parameters() if name.startswith(("text_model.", "text_projection."))
        }
        trained = [p for p in task.parameters() if p.requires_grad]
        matrices = {id(p) for p in _matrices(task)} if train.optimizer == "muon" else set[int]()
        self._all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                list(_groups([p for p in trained if id(p) not in matrices], text=text, train=train, rate=1.0)),
                lr=train.learning_rate,
                betas=train.betas,
                foreach=True,
            )
        ]
        if matrices:
            own = _groups([p for p in trained if id(p) in matrices], text=text, train=train, rate=train.muon_rate)
            # Scaled so that a step is as large as AdamW's, and the learning rate means the same for both.
            self._all.append(torch.optim.Muon(list(own), lr=train.learning_rate, adjust_lr_fn="match_rms_adamw"))

    def step(self, rate: float) -> None:
        """A step at that learning rate, then no gradients."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """What a run that goes on needs, by "<optimiser>.<parameter>.<name>"; settings come from the config."""
        return {
            f"{place}.{number}.{name}": torch.as_tensor(value).clone().contiguous()
            for place, optimizer in enumerate(self._all)
            for number, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `tensors` gave."""
        for place, optimizer in enumerate(self._all):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                owner, number, name = key.split(".", 2)
                if int(owner) == place:
                    state.setdefault(int(number), {})[name] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _matrices(task: nn.Module) -> Iterator[nn.Parameter]:
    for module in task.modules():
        if isinstance(module, nn.Linear) and min(module.weight.shape) >= _THIN:
            assert isinstance(module.weight, nn.Parameter)
            yield module.weight


def _groups(
    parameters: Iterable[nn.Parameter], *, text: set[int], train: TrainConfig, rate: float
) -> Iterator[dict[str, object]]:
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
