"""Three steps of the same global batch under every way to share and to divide the work; the first rank saves what came
of it.

torchrun --standalone --nproc-per-node=2 tests/integration/strategies.py OUT.safetensors [compiled]
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from cloc.config.schema import LossConfig, ModelConfig, PrompterConfig, TextConfig, TrainConfig, VisionConfig
from cloc.data.batches import Batch
from cloc.model.configuration import from_settings
from cloc.model.modeling import CLOCModel, CLOCSiglipModel
from cloc.training.distributed import Rank, gathered, leave, process_group
from cloc.training.ema import Average
from cloc.training.optimizer import make_optimizers
from cloc.training.parallel import full_state, parallel
from cloc.training.step import Stepper
from cloc.training.task import CLOCTask

GLOBAL, STEPS = 8, 3


@dataclass(frozen=True)
class Case:
    """What is trained, by which `train` settings, and what it must be equal to.

    Attributes:
        family: of the model.
        loss: section `loss`.
        same: settings that change what is trained.
        how: settings that do not.
    """

    family: str = "clip"
    loss: LossConfig = LossConfig(max_regions=3)  # noqa: RUF009 (frozen)
    same: tuple[tuple[str, Any], ...] = ()
    how: tuple[tuple[str, Any], ...] = ()

    @property
    def plain(self) -> "Case":
        """The same training in one process and in one part."""
        return Case(self.family, self.loss, self.same)


_SIGMOID = LossConfig(max_regions=3, image="sigmoid", region="sigmoid", grounding="l1_giou", point_share=0.5)
_SHARED = LossConfig(max_regions=3, temperature="shared")
_PARTS = ("micro_batch", 3)
_FSDP2 = ("strategy", "fsdp2")
_CHECKPOINTED = ("gradient_checkpointing", True)

CASES = {
    "ddp, layer decay": Case(same=(("layer_decay", 0.5),)),
    "ddp, parts, checkpointed, shared temperature": Case(loss=_SHARED, how=(_PARTS, _CHECKPOINTED)),
    "ddp, parts, siglip": Case("siglip", _SIGMOID, how=(_PARTS,)),
    "ddp, parts, locked image": Case(same=(("lock", "image"),), how=(_PARTS,)),
    "fsdp2, layer decay": Case(same=(("layer_decay", 0.5),), how=(_FSDP2,)),
    "fsdp2, parts, checkpointed": Case(how=(_FSDP2, _PARTS, _CHECKPOINTED)),
    "fsdp2, parts, checkpointed, again": Case(how=(_FSDP2, _PARTS, _CHECKPOINTED)),
    "fsdp2, parts, siglip": Case("siglip", _SIGMOID, how=(_FSDP2, _PARTS)),
    "fsdp2, parts, locked text": Case(same=(("lock", "text"),), how=(_FSDP2, _PARTS)),
}

COMPILED = {
    name: Case(how=(("compile", True), *how))
    for name, how in {
        "ddp": (),
        "ddp, parts, checkpointed": (_PARTS, _CHECKPOINTED),
        "fsdp2": (_FSDP2,),
        "fsdp2, parts, checkpointed": (_FSDP2, _PARTS, _CHECKPOINTED),
    }.items()
}


def global_batch(seed: int) -> Batch:
    """Images have one, two or three regions, or none; a part has no region at all."""
    torch.manual_seed(seed)
    corners = torch.rand(GLOBAL, 3, 2) * 0.5
    present = torch.ones(GLOBAL, 3, dtype=torch.bool)
    present[3, 1:] = present[4:7] = False
    return Batch(
        keys=tuple(f"{number}" for number in range(GLOBAL)),
        pixels_BSS3=torch.randint(0, 255, (GLOBAL, 16, 16, 3), dtype=torch.uint8),
        caption_ids_BL=torch.cat([torch.randint(2, 40, (GLOBAL, 7)), torch.ones(GLOBAL, 1, dtype=torch.long)], dim=1),
        boxes_BM4=torch.cat([corners, corners + 0.3], dim=-1) * present[..., None],
        points_BM2=(corners + 0.1) * present[..., None],
        pointed_BM=(torch.rand(GLOBAL, 3) < 0.5) & present,
        present_BM=present,
        text_ids_UL=torch.cat([torch.randint(2, 40, (12, 7)), torch.ones(12, 1, dtype=torch.long)], dim=1),
        text_index_BM=torch.randint(0, 12, (GLOBAL, 3)) * present,
    )


def make_task(case: Case) -> CLOCTask:
    """In float64, where the order of sums leaves no trace that AdamW would enlarge."""
    torch.manual_seed(0)
    config = ModelConfig(
        family=case.family,
        embed_dim=16,
        vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=2, heads=2),
        text=TextConfig(width=16, layers=2, heads=2, context_length=8),
        prompter=PrompterConfig(spatial_bias="box"),
    )
    settings = from_settings(config, vocab_size=40, bos=0, eos=1, pad=1)
    settings.cloc["points"] = True
    model = (CLOCModel if case.family == "clip" else CLOCSiglipModel)(settings)
    return CLOCTask(model, case.loss, objective="cloc", lock=dict(case.same).get("lock", "none")).double()


def train(rank: Rank, case: Case) -> dict[str, Tensor]:
    """Losses and norms of each step, gradients of the first, weights and their average at the end."""
    settings = {"batch_size": GLOBAL, "precision": "float32", "grad_clip": 0.5, "ema": 0.5}
    config = TrainConfig(**settings, **dict(case.same), **dict(case.how))
    task = make_task(case)
    module = parallel(task, config, rank)
    optimizers = make_optimizers(task, config)
    stepper = Stepper(module, task, optimizers, train=config, rank=rank)
    average = Average(task, decay=config.ema)
    found = dict[str, Tensor]()
    for step in range(STEPS):
        losses = stepper.backward(global_batch(step).chunks(GLOBAL // rank.world_size)[rank.rank])
        if step == 0:
            found |= {f"gradient.{name}": whole(p.grad) for name, p in task.named_parameters() if p.grad is not None}
        norms = gathered(float(stepper.clip()))
        assert len(set(norms)) == 1, norms
        stepper.apply(1e-2)
        average.update(step)
        values = {name: float(value) for name, value in vars(losses).items() if name != "total"}
        found |= {f"curve.{step}.{name}": torch.tensor(value) for name, value in (values | {"norm": norms[0]}).items()}
    found |= {f"weight.{name}": value for name, value in full_state(task.model).items()}
    with average.in_place():
        found |= {f"average.{name}": value for name, value in full_state(task.model).items()}
    return found


def whole(gradient: Tensor) -> Tensor:
    return (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).clone()


def main() -> None:
    cases = COMPILED if sys.argv[2:] == ["compiled"] else CASES
    with process_group("cpu") as rank:
        every = {f"{name}/{key}": value for name, case in cases.items() for key, value in train(rank, case).items()}
        if rank.is_first:
            save_file(every, sys.argv[1])


if __name__ == "__main__":
    main()
    leave(0)
