"""What a rank of adapter tuning is told."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from cloc.config import Config, flatten
from cloc.config.schema import TUNING_RECORDING, TrainConfig
from cloc.data.fetching import copy
from cloc.data.storage import open_storage
from cloc.training.jobfile import CHECKPOINTS, JOB_FILE, TOKENIZER, JobFile

SUMMARY_FILE = "tuning.json"
SEEDS = "seeds"
"""Folder of an adapter's further seeds."""
ENCODER = "encoder"
# What of an output is the job's and not the adapter's.
_OWN = {JOB_FILE, CHECKPOINTS, TOKENIZER, ENCODER}


@dataclass(frozen=True)
class TuningJob(JobFile):
    """Everything a rank needs to know, as JSON.

    Attributes:
        config: all settings, as `Config.model_dump(mode="json")`.
        data: a data set, or a collection with a train and a test split.
        captions, regions: roots of the training split's tables.
        encoder: model folder or hub id; empty: `encoder/` of the output.
        about: what adapter.json says of encoder and data.
        digest: hash of encoder, data and instruction files; a run goes on from a checkpoint only with the same.
        output: folder or s3:// prefix of all that the job writes: this file, checkpoints, metrics, the adapter.
    """

    config: dict[str, Any]
    data: str
    captions: str
    regions: str
    encoder: str
    about: dict[str, Any]
    digest: str
    output: str

    @property
    def objective(self) -> str:
        """What lines of progress begin with."""
        return "adapter"

    @property
    def steps(self) -> int:
        """Optimiser steps of a seed."""
        return int(self.config["adapter"]["steps"])

    def constants(self, *, batch_size: int) -> dict[str, float]:
        """Figures that stand in every row of metrics."""
        return {}

    def seeds(self) -> Iterator["TuningJob"]:
        """The job of each seed: the first one's output is this one's, those of the others lie in `seeds/`."""
        settings = self.config["adapter"]
        for number in range(settings["repeats"]):
            seed = settings["seed"] + number
            own = self.config | {"adapter": settings | {"seed": seed, "repeats": 1}}
            yield replace(self, config=own, output=f"{self.output}/{SEEDS}/{seed}" if number else self.output)

    def identity(self) -> dict[str, Any]:
        """What must not change when a run goes on, by name: settings that change what is tuned, encoder and data."""
        adapter = {name: value for name, value in self.config["adapter"].items() if name not in TUNING_RECORDING}
        streams = {"train.streams": self.config["train"]["streams"]}
        named: dict[str, Any] = json.loads(json.dumps(flatten({"adapter": adapter}) | streams | {"of": self.digest}))
        return named


def launched(config: Config) -> TrainConfig:
    """How tuning is launched: section `train`, with the adapter's own device and number of processes."""
    train, adapter = config.train, config.adapter
    own = {
        "processes": adapter.processes or train.processes,
        "nodes": adapter.nodes or train.nodes,
        "device": adapter.device,
    }
    return train.model_copy(update=own)


@contextmanager
def adapter_folder(output: str) -> Iterator[Path]:
    """A local folder with the adapter of an output."""
    if "://" not in output:
        yield Path(output)
        return
    with TemporaryDirectory(prefix="cloc-adapter-") as folder:
        bring(output, Path(folder))
        yield Path(folder)


def bring(output: str, folder: Path) -> None:
    """Copies adapters, answers and metrics from a job's output to a folder; checkpoints stay there."""
    storage = open_storage(output)
    for path in storage.list(""):
        if _OWN.isdisjoint(PurePosixPath(path).parts):
            copy(storage, path, folder / path)
