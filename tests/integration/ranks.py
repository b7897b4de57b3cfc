"""A step on the same global batch, split over the ranks, by every variant; the first rank saves losses and gradients.

torchrun --standalone --nproc-per-node=2 tests/integration/ranks.py OUT.safetensors
"""

import sys

import torch
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from cloc.config.schema import LossConfig, ModelConfig, PrompterConfig, TextConfig, VisionConfig
from cloc.data.batches import Batch
from cloc.model.configuration import from_settings
from cloc.model.modeling import CLOCModel
from cloc.training.distributed import Rank, leave, process_group
from cloc.training.task import CLOCTask

GLOBAL = 8
MODEL = ModelConfig(
    embed_dim=16,
    vision=VisionConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2),
    text=TextConfig(width=16, layers=1, heads=2, context_length=8),
    prompter=PrompterConfig(pool="prompt", spatial_bias="box"),
)


def global_batch() -> Batch:
    """Images have one, two or three regions, or none; of four ranks one has no region at all."""
    torch.manual_seed(1)
    corners = torch.rand(GLOBAL, 3, 2) * 0.5
    present = torch.ones(GLOBAL, 3, dtype=torch.bool)
    present[3, 1:] = present[4:6] = present[6, 2] = False
    return Batch(
        keys=tuple(f"{number:06d}" for number in range(GLOBAL)),
        pixels_BSS3=torch.randint(0, 255, (GLOBAL, 16, 16, 3), dtype=torch.uint8),
        caption_ids_BL=torch.cat([torch.randint(2, 40, (GLOBAL, 5)), torch.ones(GLOBAL, 1, dtype=torch.long)], dim=1),
        points_BM2=(corners + 0.1) * present[..., None],
        pointed_BM=torch.rand(GLOBAL, 3) < 0.5,
        boxes_BM4=torch.cat([corners, corners + 0.3], dim=-1) * present[..., None],
        present_BM=present,
        text_ids_UL=torch.cat([torch.randint(2, 40, (12, 2)), torch.ones(12, 1, dtype=torch.long)], dim=1),
        text_index_BM=torch.randint(0, 12, (GLOBAL, 3)),
    )


VARIANTS = {
    "paper": LossConfig(max_regions=3),
    "sigmoid": LossConfig(max_regions=3, image="sigmoid", region="sigmoid", grounding="l1_giou", point_share=0.5),
}


def step(rank: Rank, loss: LossConfig) -> dict[str, torch.Tensor]:
    """Losses and gradients of one step on this rank's part of the batch."""
    torch.manual_seed(0)
    settings = from_settings(MODEL, vocab_size=40, bos=0, eos=1, pad=1)
    settings.cloc["points"] = True
    task = CLOCTask(CLOCModel(settings), loss, objective="cloc")
    module = DistributedDataParallel(task) if rank.world_size > 1 else task
    whole, part = global_batch(), GLOBAL // rank.world_size
    own = slice(rank.rank * part, (rank.rank + 1) * part)
    fields = {name: value if name == "text_ids_UL" else value[own] for name, value in vars(whole).items()}
    losses = module(Batch(**fields))
    losses.total.backward()
    found = {f"grad.{name}": p.grad for name, p in task.named_parameters() if p.grad is not None}
    named = {name: value.detach().float().reshape(1) for name, value in vars(losses).items() if name != "total"}
    return {**found, **named}


def main() -> None:
    with process_group("cpu") as rank:
        every = {
            f"{variant}.{name}": value for variant, loss in VARIANTS.items() for name, value in step(rank, loss).items()
        }
        if rank.is_first:
            save_file(every, sys.argv[1])


if __name__ == "__main__":
    main()
    leave(0)
