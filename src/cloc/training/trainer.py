"""The training loop of one rank.

Started by the launcher on every rank as `python -m cloc.training.trainer JOB.json`; a job file is all a rank knows.
"""

import json
import math
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cloc.config import parse
from cloc.config.schema import RECORDING
from cloc.data.batches import Batch
from cloc.data.dataset import Dataset
from cloc.data.loader import LoaderSettings, TrainLoader
from cloc.errors import ClocError, TrainingError
from cloc.model import factory
from cloc.stage import fingerprint
from cloc.training.checkpoint import Checkpoints, TrainingState
from cloc.training.distributed import Rank, gathered, leave, process_group, total
from cloc.training.optimizer import make_optimizers
from cloc.training.task import CLOCTask, Losses, Objective

SUMMARY_FILE = "training.json"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class TrainingJob:
    """Everything a rank needs to know, as JSON.

    Attributes:
        config: all settings, as `Config.model_dump(mode="json")`.
        objective: "cloc" or "clip".
        steps: optimiser steps.
        images, captions, regions: roots of the labelled data set.
        data_digest: hash of images and labels; a run goes on from a checkpoint only with the same data.
        tokenizer: folder of the tokenizer.
        output: folder of the trained model; checkpoints and metrics lie in it as well.
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

    @classmethod
    def load(cls, path: str | Path) -> "TrainingJob":
        """Reads a job file."""
        return cls(**json.loads(Path(path).read_text()))

    def save(self, path: str | Path) -> None:
        """Writes a job file."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up, then cosine to zero (METHOD, Table A); `step` counts from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Trainer:
    """One rank of one job; `run` trains to the end, from the last checkpoint if there is one."""

    def __init__(self, job: TrainingJob, rank: Rank) -> None:
        self.job, self.rank, self.config = job, rank, parse(job.config, source="training job")
        self.output = Path(job.output)
        torch.manual_seed(self.config.train.seed)
        self.model, self.processor = factory.create(
            self.config.model,
            self.config.loss,
            tokenizer=job.tokenizer,
            attention=factory.attention(self.config.train.precision, rank.device),
        )
        self.task = CLOCTask(
            self.model, self.config.loss, objective=job.objective, normalize=self.processor.normalize
        ).to(rank.device)
        self.optimizers = make_optimizers(self.task, self.config.train)
        self.checkpoints = Checkpoints(self.output / "checkpoints", keep=self.config.train.keep_checkpoints)
        dataset = Dataset.open(job.images, captions=job.captions, regions=job.regions)
        self.fingerprint = self._fingerprint()
        self.loader = TrainLoader(dataset, self._loader_settings(), tokenize=self.processor.tokenize)

    def _fingerprint(self) -> str:
        train = self.config.train.model_dump(exclude=set(RECORDING))
        sections = [self.config.model.model_dump(), self.config.loss.model_dump(), train]
        return fingerprint(sections, self.job.objective, self.job.steps, self.rank.world_size, self.job.data_digest)

    def _loader_settings(self) -> LoaderSettings:
        train, ranks = self.config.train, self.rank.world_size
        if train.batch_size % ranks:
            raise TrainingError(f"train.batch_size {train.batch_size} is not divisible by {ranks} processes")
        return LoaderSettings(
            image_size=self.processor.image_size,
            batch_size=train.batch_size // ranks,
            max_regions=self.config.loss.max_regions,
            alt_text_share=train.alt_text_share,
            point_share=self.config.loss.point_share,
            seed=train.seed,
            rank=self.rank.rank,
            world_size=ranks,
            buffer=train.shuffle_buffer,
            augmentation=train.augmentation,
            workers=train.workers,
        )

    def run(self) -> TrainingState:
        """Trains, saves the model on the first rank and returns where it ended."""
        state = self.checkpoints.restore(
            self.task, self.optimizers, fingerprint=self.fingerprint, device=self.rank.device
        ) or TrainingState(0, self.fingerprint, 0.0, 0.0)
        module: torch.nn.Module = self.task
        if self.rank.world_size > 1:
            devices = [self.rank.device] if self.rank.device.type == "cuda" else None
            module = DistributedDataParallel(self.task, device_ids=devices, gradient_as_bucket_view=True)
        if state.loaders:
            self.loader.load_state_dict(state.loaders[self.rank.rank])
        log = _MetricsLog(self.output / METRICS_FILE, start=state.step, job=self.job) if self.rank.is_first else None
        clock = _Clock(state)
        with closing(self.loader.batches()) as batches:
            for step in range(state.step, self.job.steps):
                losses, gradient_norm = self._step(module, next(batches), step)
                done = step + 1
                last = done == self.job.steps
                if done % self.config.train.log_every == 0 or last or done == 1:
                    self._log(log, done, losses, gradient_norm, clock)
                if done % self.config.train.checkpoint_every == 0 and not last:
                    self._save(self._state(clock, done))
        state = self._state(clock, self.job.steps)
        if self.rank.is_first:
            self._finish(state)
        return state

    def _state(self, clock: "_Clock", step: int) -> TrainingState:
        """The state after `step` steps; every rank must call it."""
        return clock.state(step, self.fingerprint, loaders=gathered(self.loader.state_dict()))

    def _rate(self, step: int) -> float:
        train = self.config.train
        return learning_rate(step, peak=train.learning_rate, warmup=train.warmup_steps, steps=self.job.steps)

    def _step(self, module: torch.nn.Module, batch: Batch, step: int) -> tuple[Losses, Tensor]:
        train = self.config.train
        rate = self._rate(step)
        batch = Batch(**{name: value.to(self.rank.device) for name, value in vars(batch).items()})
        with factory.autocast(train.precision, self.rank.device):
            losses: Losses = module(batch)
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.task.parameters(), train.grad_clip)
        if not torch.isfinite(norm):
            raise TrainingError(f"step {step + 1}: the gradient is not finite; lower train.learning_rate")
        self.optimizers.step(rate)
        self.task.clamp_scales()
        return losses, norm

    def _log(
        self, log: "_MetricsLog | None", step: int, losses: Losses, gradient_norm: Tensor, clock: "_Clock"
    ) -> None:
        if log is None:
            return
        model = self.model
        log.write(
            step,
            seconds=clock.wall,
            values={
                "loss/total": losses.total.detach(),
                "loss/image": losses.image,
                "loss/region": losses.region,
                "loss/grounding": losses.grounding,
                "regions_per_image": losses.regions / self.config.train.batch_size,
                "filtered_share": losses.filtered,
                "gradient_norm": gradient_norm,
                "logit_scale": model.logit_scale.detach().exp(),
                "region_logit_scale": model.region_logit_scale.detach().exp(),
                "learning_rate": self._rate(step - 1),
                "samples": step * self.config.train.batch_size,
            },
        )

    def _save(self, state: TrainingState) -> None:
        if self.rank.is_first:
            self.checkpoints.save(self.task, self.optimizers, state)

    def _finish(self, state: TrainingState) -> None:
        self.model.save_pretrained(self.output)
        self.processor.save_pretrained(self.output)
        summary = {
            "objective": self.job.objective,
            "steps": state.step,
            "samples": state.step * self.config.train.batch_size,
            "batch_size": self.config.train.batch_size,
            "processes": self.rank.world_size,
            "cpu_seconds": round(state.cpu_seconds, 2),
            "wall_seconds": round(state.wall_seconds, 2),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "unusable_samples": sum(loader["unusable"] for loader in state.loaders),
        }
        (self.output / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n")


class _Clock:
    """Seconds in the training loop, those of earlier attempts included: by the clock, and of all ranks' processors."""

    def __init__(self, state: TrainingState) -> None:
        self._state, self._wall, self._cpu = state, time.monotonic(), time.process_time()

    @property
    def wall(self) -> float:
        return self._state.wall_seconds + time.monotonic() - self._wall

    def state(self, step: int, fingerprint: str, *, loaders: Sequence[Mapping[str, Any]]) -> TrainingState:
        """The state after `step` steps; every rank must call it (it sums over them)."""
        own = torch.tensor(time.process_time() - self._cpu, dtype=torch.float64)
        device = "cuda" if torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl" else "cpu"
        cpu = self._state.cpu_seconds + float(total(own.to(device)))
        return TrainingState(step, fingerprint, cpu, self.wall, loaders)


class _MetricsLog:
    """Metrics as JSON lines, and one line for a person."""

    def __init__(self, path: Path, *, start: int, job: TrainingJob) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= start] if start else []
        self._file = path.open("w", buffering=1)
        for line in kept:
            self._file.write(line + "\n")
        self._job, self._start, self._began = job, start, time.monotonic()

    def write(self, step: int, *, seconds: float, values: dict[str, Tensor | float]) -> None:
        numbers = {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "seconds": round(seconds, 3), **numbers}) + "\n")
        spent = time.monotonic() - self._began
        left = spent / max(1, step - self._start) * (self._job.steps - step)
        parts = f"image {numbers['loss/image']:.3f}"
        if self._job.objective == "cloc":
            parts += f" region {numbers['loss/region']:.3f} grounding {numbers['loss/grounding']:.4f}"
        speed = (numbers["samples"] - self._start * numbers["samples"] / step) / max(spent, 1e-9)
        print(
            f"{self._job.objective} step {step}/{self._job.steps} {parts} lr {numbers['learning_rate']:.1e} "
            f"{speed:.0f} images/s, {left:.0f} s left",
            flush=True,
        )


def main() -> NoReturn:
    """Entry point of a rank."""
    job = TrainingJob.load(sys.argv[1])
    try:
        with process_group(parse(job.config, source="training job").train.device) as rank:
            Trainer(job, rank).run()
    except ClocError as error:
        print(f"error: {error}", file=sys.stderr)
        leave(error.exit_code)
    except BaseException:
        traceback.print_exc()
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
