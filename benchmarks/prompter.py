"""What regions cost: a training step of CLOC over a step of plain CLIP on the same batch, at ViT-B/16 sizes.

    python benchmarks/prompter.py                       # forward and backward, M = 4
    python benchmarks/prompter.py --max-regions 1 4 8
    python benchmarks/prompter.py --images 16 --repeats 9

The baseline of every ratio is the row "CLIP": the same code with the region losses off. Rows are measured in turn,
again and again, and the ratio is the median over the rounds, so that a noisy machine disturbs all rows alike. Captions
have 45 tokens and region texts four with their marks, as the paper's labels have on average; half of the region texts
of a batch are distinct.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import torch

from cloc.config.schema import LossConfig, ModelConfig, PrompterConfig
from cloc.data.batches import Batch
from cloc.model.configuration import from_settings
from cloc.model.modeling import CLOCModel
from cloc.training.task import CLOCTask, Objective

VOCABULARY = 49408


@dataclass(frozen=True)
class Row:
    """A kind of step.

    Attributes:
        name: of the row.
        objective: "clip" or "cloc".
        prompter: how regions are read.
        grounding: whether texts are grounded.
    """

    name: str
    objective: Objective
    prompter: PrompterConfig
    grounding: bool = True


ROWS = (
    Row("CLIP", "clip", PrompterConfig()),
    Row("CLOC, pool: prompt (keys and values shared)", "cloc", PrompterConfig(pool="prompt")),
    Row("CLOC, pool: prompt, spatial_bias: box", "cloc", PrompterConfig(pool="prompt", spatial_bias="box")),
    Row("CLOC, pool: prompt, no grounding", "cloc", PrompterConfig(pool="prompt"), grounding=False),
    Row("CLOC, RoIAlign for the Prompter", "cloc", PrompterConfig(kind="roi_align")),
    Row("CLOC, pool: all (image tokens through the layer for every prompt)", "cloc", PrompterConfig(pool="all")),
)


def make_batch(images: int, *, max_regions: int) -> Batch:
    """Random images, captions of 45 tokens, `max_regions` boxes an image, every text used twice."""
    side, distinct = ModelConfig().vision.image_size, max(1, images * max_regions // 2)
    corners = torch.rand(images, max_regions, 2) * 0.5
    end = torch.full((images, 1), VOCABULARY - 1)
    return Batch(
        keys=tuple(map(str, range(images))),
        pixels_BSS3=torch.randint(0, 255, (images, side, side, 3), dtype=torch.uint8),
        caption_ids_BL=torch.cat([torch.randint(2, VOCABULARY - 2, (images, 44)), end], dim=1),
        boxes_BM4=torch.cat([corners, corners + 0.1 + torch.rand(images, max_regions, 2) * 0.4], dim=-1),
        points_BM2=corners + 0.05,
        pointed_BM=torch.zeros(images, max_regions, dtype=torch.bool),
        present_BM=torch.ones(images, max_regions, dtype=torch.bool),
        text_ids_UL=torch.cat(
            [torch.randint(2, VOCABULARY - 2, (distinct, 3)), torch.full((distinct, 1), VOCABULARY - 1)], dim=1
        ),
        text_index_BM=torch.arange(images * max_regions).remainder(distinct).view(images, max_regions),
    )


def make_task(row: Row, *, max_regions: int) -> CLOCTask:
    """A ViT-B/16 of that kind."""
    config = ModelConfig(prompter=row.prompter)
    settings = from_settings(config, vocab_size=VOCABULARY, bos=0, eos=VOCABULARY - 1, pad=1)
    loss = LossConfig(max_regions=max_regions, grounding="l2" if row.grounding else "none")
    return CLOCTask(CLOCModel(settings), loss, objective=row.objective)


def seconds(task: CLOCTask, batch: Batch) -> float:
    """Of a forward and a backward pass, by the clock."""
    task.zero_grad(set_to_none=True)
    started = time.perf_counter()
    task(batch).total.backward()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--max-regions", type=int, nargs="+", default=[4])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{options.images} images, {torch.get_num_threads()} threads, {options.repeats} rounds\n")
    print("| step | M | seconds | over CLIP |\n|---|---:|---:|---:|")
    for regions in options.max_regions:
        torch.manual_seed(0)
        batch = make_batch(options.images, max_regions=regions)
        tasks = [make_task(row, max_regions=regions) for row in ROWS]
        for task in tasks:
            seconds(task, batch)  # warm
        rounds = [[seconds(task, batch) for task in tasks] for _ in range(options.repeats)]
        for number, row in enumerate(ROWS):
            ratio = statistics.median(times[number] / times[0] for times in rounds)
            spent = statistics.median(times[number] for times in rounds)
            print(f"| {row.name} | {regions} | {spent:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
