"""Runs of training for tests: in this process (one rank, at once), and as a user has them, in a process of their own.

    python tests/integration/training_runs.py SETTINGS.json DATA OUT     trains as `cloc pretrain` does, without MLflow

Faults of `faults/sitecustomize.py` can be planted in the ranks of the latter.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cloc.config import Config, parse
from cloc.data.dataset import Dataset
from cloc.model.processing import train_tokenizer
from cloc.training.checkpoint import TrainingState
from cloc.training.distributed import Rank
from cloc.training.job import TrainingJob
from cloc.training.preemption import Preemption
from cloc.training.trainer import Trainer

TINY = {
    "model": {
        "embed_dim": 16,
        "vision": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "heads": 2},
        "text": {"width": 16, "layers": 1, "heads": 2, "context_length": 16, "vocab_size": 540},
        "prompter": {"pool": "prompt", "spatial_bias": "box"},
    },
    "train": {
        "steps": 8,
        "batch_size": 8,
        "warmup_steps": 2,
        "learning_rate": 1e-3,
        "optimizer": "muon",
        "log_every": 1,
        "checkpoint_every": 3,
        "keep_checkpoints": 9,
        "precision": "float32",
        "streams": 4,
    },
}
_FAULTS = Path(__file__).with_name("faults")


def config(**train: Any) -> Config:
    """The settings of a tiny run, with some of `train` changed."""
    return parse({**TINY, "train": {**TINY["train"], **train}}, source="test")


def tokenizer_for(data: str, folder: Path) -> str:
    """A folder with the tokenizer that the stage would train for this data set."""
    dataset = Dataset.open(data)
    texts = [
        row["text"]
        for shard in dataset.manifest.shards
        for table in ("captions", "regions")
        for rows in dataset.rows(table, shard).values()
        for row in rows
    ]
    train_tokenizer(texts, vocab_size=540, context_length=16).save_pretrained(str(folder))
    return str(folder)


def job(data: str, out: Path, tokenizer: str, *, settings: Config, objective: str = "cloc") -> TrainingJob:
    """A job as the stage writes it."""
    return TrainingJob(
        config=settings.model_dump(mode="json"),
        objective=objective,  # type: ignore[arg-type] (a literal in every caller)
        steps=settings.train.steps,
        images=data,
        captions=data,
        regions=data,
        data_digest="0",
        tokenizer=tokenizer,
        output=str(out),
    )


def trainer(given: TrainingJob) -> Trainer:
    """The only rank of a job."""
    Path(given.output).mkdir(parents=True, exist_ok=True)
    return Trainer(given, Rank(0, 1, torch.device("cpu")), preemption=Preemption())


def train_here(given: TrainingJob) -> TrainingState:
    """Trains on one rank, in this process."""
    return trainer(given).run()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the model that a run left."""
    return load_file(folder / "model.safetensors")


def curve(folder: Path, key: str = "loss/total") -> list[float]:
    """A metric of all steps."""
    return [json.loads(line)[key] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(one: Path, other: Path) -> None:
    """Bitwise."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@dataclass(frozen=True)
class Ended:
    """How a run in a process of its own ended."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line that a user sees."""
        return (self.err.strip() or "\n").splitlines()[-1]


def start(
    settings: Config,
    data: str,
    out: Path,
    *,
    fault: dict[str, Any] | None = None,
    script: str = __file__,
    more: Sequence[str] = (),
) -> "subprocess.Popen[str]":
    """Starts a run as a user has it, in a session of its own.

    Args:
        settings: all of them.
        data: labelled data set.
        out: folder of the model.
        fault: of `faults/sitecustomize.py`.
        script: what runs, with settings, data, folder and `more` for its arguments.
        more: of them.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f"{out.name}.settings.json")
    path.write_text(settings.model_dump_json())
    paths = [str(_FAULTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(item for item in paths if item),
        "TEST_FAULT": json.dumps(fault),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, script, str(path), data, str(out), *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(settings: Config, data: str, out: Path, *, timeout: float = 1500, **more: Any) -> Ended:
    """The same, to its end."""
    process = start(settings, data, out, **more)
    try:
        said, complained = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:  # its agent ends with it, and its ranks with that
            process.kill()
    return Ended(process.returncode, said, complained)


def _main() -> None:
    """The verb `pretrain` without MLflow, by the command line's own entry point."""
    import click

    from cloc import cli
    from cloc.training import stage

    os.environ["TEST_LAUNCHER"] = str(os.getpid())

    @click.command()
    @click.argument("settings")
    @click.argument("data")
    @click.argument("out")
    def pretrain(settings: str, data: str, out: str) -> None:
        inputs = stage.Inputs(data=data, captions=data, regions=data)
        stage.run(
            parse(json.loads(Path(settings).read_text()), source=settings),
            inputs=inputs,
            outputs=stage.Outputs(model=out),
        )

    cli.cloc = pretrain  # type: ignore[assignment] (a group is a command)
    cli.main()


if __name__ == "__main__":
    _main()
