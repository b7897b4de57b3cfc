"""What a rank is told: one JSON file, in a folder or on S3, beside what the run writes."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from cloc.data.storage import open_storage
from cloc.training.task import Objective

JOB_FILE = "job.json"
SUMMARY_FILE = "training.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TrainingJob:
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

    @classmethod
    def load(cls, output: str) -> "TrainingJob":
        """Reads the job of an output. Raises DataError when there is none."""
        return cls(**json.loads(open_storage(output).read_bytes(JOB_FILE)))

    def save(self) -> None:
        """Writes the job into its output."""
        open_storage(self.output).write_bytes(JOB_FILE, (json.dumps(asdict(self), indent=1) + "\n").encode())
