"""What a rank is told: one JSON file, in a folder or on S3, beside what the run writes."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cloc.config import flatten
from cloc.config.schema import RECORDING
from cloc.data.storage import Storage, open_storage
from cloc.errors import DataError
from cloc.training.task import Objective

JOB_FILE = "job.json"
SUMMARY_FILE = "training.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"


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

    def identity(self) -> dict[str, Any]:
        """What must not change when a run goes on, by name: settings that change what is trained, and the data."""
        train = {name: value for name, value in self.config["train"].items() if name not in RECORDING}
        sections = {"model": self.config["model"], "loss": self.config["loss"], "train": train}
        own = {"objective": self.objective, "steps": self.steps, "data": self.data_digest}
        # Through JSON, as a checkpoint has it.
        named: dict[str, Any] = json.loads(json.dumps(own | flatten(sections)))
        return named

    @contextmanager
    def tokenizer_source(self) -> Iterator[str]:
        """The tokenizer's folder or hub id; what lies in the output is brought to a folder that goes with the context.

        Raises:
            DataError: the output has none.
        """
        if self.tokenizer:
            yield self.tokenizer
            return
        with TemporaryDirectory(prefix="cloc-tokenizer-") as folder:
            fetch(self.output, TOKENIZER, Path(folder))
            yield folder


def fetch(url: str, prefix: str, folder: Path) -> None:
    """Copies the objects of a storage below `prefix` into a folder. Raises DataError when there are none."""
    storage = open_storage(url)
    found = storage.list(prefix)
    if not found:
        raise DataError(f"{url}: there is nothing below {prefix}/")
    for path in found:
        copy(storage, path, folder / Path(path).relative_to(prefix))


def copy(storage: Storage, path: str, target: Path) -> None:
    """Copies an object to a local file, which appears whole. Raises DataError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    with storage.open(path) as source, partial.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    partial.replace(target)
