"""Runs of adapter tuning for tests: in this process (one rank), and as a user has them, in a process of their own.

python tests/integration/tuning_runs.py SETTINGS.json DATA OUT ENCODER     tunes as `cloc tune` does, without MLflow
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cloc.config import Config, parse
from cloc.config.schema import AdapterConfig
from cloc.data.dataset import Dataset
from cloc.mllm.instructions import PhrasePool
from cloc.mllm.job import TuningJob
from cloc.mllm.model import Adapter
from cloc.mllm.stream import ChatSettings, ChatStreams, Mixed
from cloc.mllm.tuning import Tuning
from cloc.training.distributed import Rank
from cloc.training.preemption import Preemption
from tests.integration import training_runs
from tests.tiny_adapters import DECODER

POOL = PhrasePool.of(["red key", "blue box", "green ball", "yellow apple"])
TASKS = {"refer": 1.0, "ground": 1.0}
ADAPTER = AdapterConfig(
    decoder=DECODER,
    steps=4,
    batch_size=4,
    questions=4,
    learning_rate=3e-3,
    warmup_steps=2,
    precision="float32",
    eval_images=4,
    eval_batch_size=8,
    log_every=2,
    device="cpu",
    processes=1,
)


def config(adapter: dict[str, Any] | None = None, **train: Any) -> Config:
    """Settings of a tiny run, with some of `adapter` and of `train` changed."""
    return Config(adapter=ADAPTER.model_copy(update=adapter or {}), train=Config().train.model_copy(update=train))


def job(settings: Config, output: Path) -> TuningJob:
    """A job as the stage writes it; what it reads is handed to `tuning` itself."""
    about = {"encoder_objective": "cloc"}
    given = {"data": "", "captions": "", "regions": "", "encoder": "", "about": about, "digest": "0"}
    return TuningJob(config=settings.model_dump(mode="json"), output=str(output), **given)


def everything(key: str, image: bytes) -> bool:
    """Of the images, all are kept."""
    return True


def streams_of(adapter: Adapter, data: Dataset, *, mixed: Mixed | None = None, **changes: Any) -> ChatStreams:
    """The stream of one rank."""
    settings = {"batch_size": 2, "questions": 4, "tasks": TASKS, "seed": 0, "image_size": adapter.image_size}
    tokens = {"region_tokens": adapter.sampler is not None}
    chosen = ChatSettings(**{**settings, **tokens, **changes})
    return ChatStreams(data, adapter.chat(), POOL, chosen, keep=everything, mixed=mixed)


def tuning_of(
    adapter: Adapter,
    data: Dataset,
    settings: Config,
    output: Path,
    *,
    preemption: Preemption | None = None,
    **more: Any,
) -> Tuning:
    """The only rank of a job, in this process."""
    output.mkdir(parents=True, exist_ok=True)
    own = settings.adapter
    streams = streams_of(
        adapter,
        data,
        batch_size=own.batch_size,
        questions=own.questions,
        streams=settings.train.streams,
        decode=more.get("known") is None,
    )
    rank = Rank(0, 1, torch.device("cpu"))
    return Tuning(
        job(settings, output), settings, adapter, streams, rank=rank, preemption=preemption or Preemption(), **more
    )


def run(settings: Config, data: str, out: Path, encoder: str, *, fault: dict[str, Any] | None = None) -> Any:
    """A run as a user has it, to its end; see `training_runs.run`."""
    return training_runs.run(settings, data, out, fault=fault, script=__file__, more=(encoder,))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of an adapter that a run left, its region sampler included."""
    found = load_file(folder / "model.safetensors")
    sampler = folder / "sampler.safetensors"
    return found | (
        {f"sampler.{name}": value for name, value in load_file(sampler).items()} if sampler.exists() else {}
    )


def _main() -> None:
    """The verb `tune` without MLflow, by the command line's own entry point."""
    import click

    from cloc import cli
    from cloc.mllm import stage

    os.environ["TEST_LAUNCHER"] = str(os.getpid())

    @click.command()
    @click.argument("settings")
    @click.argument("data")
    @click.argument("out")
    @click.argument("encoder")
    def tune(settings: str, data: str, out: str, encoder: str) -> None:
        stage.run(
            parse(json.loads(Path(settings).read_text()), source=settings),
            inputs=stage.Inputs(data=data, captions=f"{data}/train", regions=f"{data}/train", encoder=encoder),
            outputs=stage.Outputs(adapter=out),
        )

    cli.cloc = tune  # type: ignore[assignment] (a group is a command)
    cli.main()


if __name__ == "__main__":
    _main()
