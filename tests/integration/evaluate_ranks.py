"""The evaluation while training by every strategy, on as many ranks as there are; the first one saves the figures.

torchrun --standalone --nproc-per-node=2 tests/integration/evaluate_ranks.py HELD_OUT MODEL OUT.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from cloc.config import Config, parse
from cloc.model import factory
from cloc.model.processing import CLOCProcessor
from cloc.training.distributed import Rank, gathered, leave, process_group
from cloc.training.ema import Average
from cloc.training.evaluate import SmallEvaluation
from cloc.training.job import TrainingJob
from cloc.training.parallel import parallel
from cloc.training.task import CLOCTask, Objective

TINY: dict[str, Any] = {
    "model": {
        "embed_dim": 16,
        "vision": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "heads": 2},
        "text": {"width": 16, "layers": 1, "heads": 2, "context_length": 16, "vocab_size": 540},
        "prompter": {"pool": "prompt", "spatial_bias": "box"},
    },
    "train": {"batch_size": 8, "precision": "float32", "evaluate_every": 1, "evaluate_images": 100},
}


def config(**train: Any) -> Config:
    """Settings of a tiny model."""
    return parse({**TINY, "train": {**TINY["train"], **train}}, source="test")


def job(settings: Config, held_out: str, *, objective: Objective = "cloc") -> TrainingJob:
    """A job of which only the held-out set is there."""
    return TrainingJob(
        config=settings.model_dump(mode="json"),
        objective=objective,
        steps=1,
        images="",
        captions="",
        regions="",
        data_digest="",
        tokenizer="",
        output="",
        held_out=held_out,
    )


def loaded(settings: Config, folder: str | Path, *, objective: Objective = "cloc") -> tuple[CLOCProcessor, CLOCTask]:
    """Processor and task of a saved model."""
    model, processor = factory.load(folder)
    return processor, CLOCTask(model, settings.loss, objective=objective, normalize=processor.normalize)


def main() -> None:
    held_out, model, out = sys.argv[1:]
    found: dict[str, list[dict[str, float]]] = {}
    with process_group("cpu") as rank:
        for strategy in ("ddp", "fsdp2"):
            found[strategy] = gathered(evaluated(rank, held_out, model, strategy=strategy))
            found[f"{strategy}, average"] = gathered(evaluated(rank, held_out, model, strategy=strategy, average=True))
        if rank.is_first:
            Path(out).write_text(json.dumps(found))


def evaluated(rank: Rank, held_out: str, model: str, *, strategy: str, average: bool = False) -> dict[str, float]:
    """The figures of the model, or of a moving average that stands aside of it while its weights are zeros."""
    settings = config(strategy=strategy)
    processor, task = loaded(settings, model)
    evaluation = SmallEvaluation(job(settings, held_out), settings, processor, rank)
    parallel(task, settings.train, rank)
    if not average:
        return evaluation.run(task)
    kept = Average(task, decay=0.5)
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.requires_grad and parameter.dim() > 0:
                parameter.zero_()
    evaluation.run(task)
    with kept.in_place():
        return evaluation.run(task)


if __name__ == "__main__":
    main()
    leave(0)
