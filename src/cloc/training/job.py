"""What a rank of pre-training is told."""

import json
import math
from dataclasses import dataclass
from typing import Any

from cloc.config import flatten
from cloc.config.schema import RECORDING
from cloc.training.jobfile import JobFile
from cloc.training.task import Objective


@dataclass(frozen=True)
class TrainingJob(JobFile):
    """Everything a rank needs to know, as JSON.

    Attributes:
        config: all settings, as `Config.model_dump(mode="json")`.
        objective: "cloc" or "clip".
        steps: optimiser steps.
        images, captions, regions: roots of the labelled data set.
        data_digest: hash of images and labels; a run goes on from a checkpoint only with the same data.
        tokenizer: folder of the tokenizer, or its hub id; empty: `tokenizer/` of the output.
        output: folder or s3:// prefix of all that the run writes: this file, checkpoints, metrics, the model.
        held_out: root of a labelled data set for evaluation while training; empty for none.
    """

    config: dict[str, Any]
    objective: Objective
    steps: int
    images: str
    captions: str
    regions: str
    data_digest: str
    tokenizer: str
    output: str
    held_out: str = ""

    def identity(self) -> dict[str, Any]:
        """What must not change when a run goes on, by name: settings that change what is trained, and the data."""
        train = {name: value for name, value in self.config["train"].items() if name not in RECORDING}
        sections = {"model": self.config["model"], "loss": self.config["loss"], "train": train}
        own = {"objective": self.objective, "steps": self.steps, "data": self.data_digest}
        # Through JSON, as a checkpoint has it.
        named: dict[str, Any] = json.loads(json.dumps(own | flatten(sections)))
        return named

    def constants(self, *, batch_size: int) -> dict[str, float]:
        """Figures that stand in every row of metrics."""
        # Guessing among the batch costs this much: below it something is learned. (A sigmoid loss has no such line.)
        return {"loss/ln_batch": math.log(batch_size)} if self.config["loss"]["image"] == "infonce" else {}
