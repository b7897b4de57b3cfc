"""The training loop of one rank.

Started by the agent on every rank as `python -m cloc.training.trainer OUTPUT`; the job in that output is all a rank
knows.
"""

import json
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from cloc.config import Config, parse
from cloc.data.batches import Batch
from cloc.data.dataset import Dataset
from cloc.data.fetching import sending
from cloc.data.loader import LoaderSettings, TrainLoader, check_division, joined, streams_of, unusable_of
from cloc.data.storage import open_storage
from cloc.model import factory
from cloc.training.checkpoint import Checkpoints, TrainingState
from cloc.training.distributed import Rank, gathered, seed_everything, total
from cloc.training.ema import Average
from cloc.training.evaluate import make_evaluation
from cloc.training.job import TrainingJob
from cloc.training.jobfile import CHECKPOINTS, SUMMARY_FILE, TOKENIZER
from cloc.training.optimizer import make_optimizers
from cloc.training.parallel import full_state, parallel
from cloc.training.preemption import Preempted, Preemption
from cloc.training.process import run_rank
from cloc.training.schedule import Phase, learning_rate, phases
from cloc.training.step import Stepper
from cloc.training.task import CLOCTask, Losses
from cloc.training.watch.anomalies import BadBatch, Judge, Judgement, Verdict
from cloc.training.watch.clock import Clock
from cloc.training.watch.watching import Watch


class Trainer:
    """One rank of one job; `run` trains to the end, from the last checkpoint if there is one."""

    def __init__(self, job: TrainingJob, rank: Rank, *, preemption: Preemption) -> None:
        self.job, self.rank, self.config = job, rank, parse(job.config, source="training job")
        train = self.config.train
        seed_everything(train.seed)
        with job.source(TOKENIZER, job.tokenizer) as tokenizer:
            self.model, self.processor = factory.create(
                self.config.model,
                self.config.loss,
                tokenizer=tokenizer,
                attention=factory.attention(train.precision, rank.device),
            )
        self.phases = phases(
            train.resolutions,
            steps=job.steps,
            image_size=self.processor.image_size,
            patch_size=self.model.config.vision_config.patch_size,
        )
        self.task = CLOCTask(
            self.model,
            self.config.loss,
            objective=job.objective,
            normalize=self.processor.normalize,
            lock=train.lock,
        ).to(rank.device)
        module = parallel(self.task, train, rank)
        self.optimizers = make_optimizers(self.task, train)
        self.stepper = Stepper(module, self.task, self.optimizers, train=train, rank=rank)
        self.average = Average(self.task, decay=train.ema) if train.ema else None
        self.judge, self.skipped, self.preemption = Judge(train), 0, preemption
        self.checkpoints = Checkpoints(
            f"{job.output}/{CHECKPOINTS}",
            keep=train.keep_checkpoints,
            keep_best=train.keep_best,
            asynchronous=train.checkpoint_async,
            rank=rank,
        )
        self.dataset = Dataset.open(job.images, captions=job.captions, regions=job.regions)
        self.evaluation = make_evaluation(job, self.config, self.processor, rank)
        self.identity = job.identity()

    def run(self) -> TrainingState:
        """Trains, saves the model and returns where it ended.

        Raises:
            Preempted: told to stop; a checkpoint was written.
            TrainingError: training cannot go on; the message says why.
        """
        state = self._restored() or TrainingState(0, self.identity)
        left = [phase for phase in self.phases if state.step < phase.stop]
        sizes = [phase.image_size for phase in left]
        watch = Watch(self.job, self.config, rank=self.rank, model=self.model, state=state, sizes=sizes)
        # A checkpoint that is being written when training ends is whole, also when it ends with an error.
        with closing(self.checkpoints), watch:
            for phase in left:
                state = self._train(phase, state, watch)
        self._finish(state)
        return state

    def _restored(self) -> TrainingState | None:
        state = self.checkpoints.newest()
        if state is None:
            return None
        state.check(self.identity, where=f"{self.job.output}/{CHECKPOINTS}")
        self.optimizers.prepare()
        state = self.checkpoints.load(self._tensors())  # an older one where the newest is damaged
        state.check(self.identity, where=f"{self.job.output}/{CHECKPOINTS}")
        self.judge.load_state_dict(state.judge)
        self.skipped = state.skipped
        return state

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors that a run goes on from, the live ones."""
        names = {id(parameter): name for name, parameter in self.task.named_parameters()}
        found = {f"model.{name}": tensor for name, tensor in self.task.state_dict().items()}
        found |= {f"optimizer.{name}": tensor for name, tensor in self.optimizers.tensors(names).items()}
        if self.average:
            found |= {f"average.{name}": tensor for name, tensor in self.average.tensors().items()}
        return found

    def _loader(self, phase: Phase, state: TrainingState) -> TrainLoader:
        train, ranks = self.config.train, self.rank.world_size
        streams = train.streams or (streams_of(state.loader) if state.loader else 0)
        check_division(batch_size=train.batch_size, streams=streams, processes=ranks)
        settings = LoaderSettings(
            image_size=phase.image_size,
            batch_size=train.batch_size // ranks,
            max_regions=self.config.loss.max_regions,
            alt_text_share=train.alt_text_share,
            point_share=self.config.loss.point_share,
            seed=train.seed,
            rank=self.rank.rank,
            world_size=ranks,
            streams=streams,
            buffer=train.shuffle_buffer,
            augmentation=train.augmentation,
            workers=train.workers,
            pinned=self.rank.device.type == "cuda",
        )
        loader = TrainLoader(self.dataset, settings, tokenize=self.processor.tokenize)
        if state.loader:
            loader.load_state_dict(state.loader)
        return loader

    def _train(self, phase: Phase, state: TrainingState, watch: Watch) -> TrainingState:
        """The steps of a phase that are still to do; returns the state after them."""
        loader, train = self._loader(phase, state), self.config.train
        with closing(loader.batches()) as batches:
            for step in range(state.step, phase.stop):
                batch = watch.take(batches)
                losses, norm, stop = self._step(batch, step)
                done = step + 1
                watch.step(done, batch)
                last = done == self.job.steps
                evaluated = self._evaluated(watch, done)
                if done % train.log_every == 0 or last or done == 1 or evaluated:
                    self._record(watch, done, losses, norm, evaluated)
                # What is evaluated is saved where the best are kept: a score is of the weights that it stands by.
                due = done % train.checkpoint_every == 0 or (evaluated and train.keep_best)
                if (due and not last) or stop:
                    score = self.evaluation.score(evaluated) if self.evaluation and evaluated else None
                    with watch.pausing():
                        self.checkpoints.save(self._tensors(), self._state(done, loader, watch.clock), score=score)
                if stop:
                    self.checkpoints.wait()
                    raise Preempted
            return self._state(phase.stop, loader, watch.clock)

    def _evaluated(self, watch: Watch, step: int) -> dict[str, float]:
        """Figures of the evaluation after `step` steps, where it is its turn; every rank must call it."""
        if not self.evaluation or (step % self.config.train.evaluate_every and step != self.job.steps):
            return {}
        with watch.pausing(), self.average.in_place() if self.average else nullcontext():
            return self.evaluation.run(self.task)

    def _state(self, step: int, loader: TrainLoader, clock: Clock) -> TrainingState:
        """The state after `step` steps; every rank must call it."""
        return TrainingState(
            step,
            self.identity,
            cpu_seconds=clock.cpu(),
            wall_seconds=clock.wall,
            loader=joined(gathered(loader.state_dict())),
            judge=self.judge.state_dict(),
            skipped=self.skipped,
        )

    def _rate(self, step: int) -> float:
        train = self.config.train
        return learning_rate(step, peak=train.learning_rate, warmup=train.warmup_steps, steps=self.job.steps)

    def _step(self, batch: Batch, step: int) -> tuple[Losses, Tensor, bool]:
        """Losses of the global batch, the norm of its gradient, and whether any rank was told to stop."""
        losses = self.stepper.backward(batch.to(self.rank.device))
        norm = self.stepper.clip()
        # A rank's own total has its own part of the grounding loss; their mean is that of the global batch. One
        # exchange a step, and one wait for the device, serve the judge and the stop alike.
        asked = losses.total.new_tensor(self.preemption.asked)
        loss, stop = total(torch.stack([losses.total, asked]))
        losses = replace(losses, total=loss / self.rank.world_size)
        judgement = self.judge.judge(loss=float(losses.total), gradient_norm=float(norm))
        if judgement.verdict is not Verdict.APPLY:
            self._refuse(batch, judgement, step=step + 1, loss=float(losses.total), norm=float(norm))
            return losses, norm, bool(stop)
        self.stepper.apply(self._rate(step))
        if self.average:
            self.average.update(step)
        return losses, norm, bool(stop)

    def _refuse(self, batch: Batch, judgement: Judgement, *, step: int, loss: float, norm: float) -> None:
        """Leaves a bad batch out, and says which samples it held, or stops."""
        self.stepper.discard()
        keys = [key for part in gathered(batch.keys) for key in part]
        bad = BadBatch(step, judgement.verdict, judgement.reason, loss=loss, gradient_norm=norm, keys=keys)
        bad.leave_out(self.job.output, advice=judgement.advice, tell=self.rank.is_first)
        self.skipped += 1

    def _record(self, watch: Watch, step: int, losses: Losses, norm: Tensor, evaluated: Mapping[str, float]) -> None:
        """Records a step; every rank must call it."""
        values: dict[str, Tensor | float] = {
            "loss/total": losses.total,
            "loss/image": losses.image,
            "loss/region": losses.region,
            "loss/grounding": losses.grounding,
            "train/used_regions_per_image": losses.regions / self.config.train.batch_size,
            "train/filtered_share": losses.filtered,
            "train/gradient_norm": norm,
            "train/logit_scale": self.model.logit_scale.detach().exp(),
            "train/region_logit_scale": self.model.region_logit_scale.detach().exp(),
            "train/learning_rate": self._rate(step - 1),
            "samples": step * self.config.train.batch_size,
            "train/skipped_batches": self.skipped,
            **evaluated,
        }
        watch.record(step, values)

    def _finish(self, state: TrainingState) -> None:
        """Saves model and summary; every rank must call it."""
        with self.average.in_place() if self.average else nullcontext():
            weights = full_state(self.model)
        if not self.rank.is_first:
            return
        train = self.config.train
        summary = {
            "objective": self.job.objective,
            "steps": state.step,
            "samples": state.step * train.batch_size,
            "batch_size": train.batch_size,
            "processes": self.rank.world_size,
            "cpu_seconds": round(state.cpu_seconds, 2),
            "wall_seconds": round(state.wall_seconds, 2),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "unusable_samples": unusable_of(state.loader),
        }
        with sending(self.job.output) as folder:
            self.model.save_pretrained(folder, state_dict=weights)
            self.processor.save_pretrained(folder)
        open_storage(self.job.output).write_bytes(SUMMARY_FILE, (json.dumps(summary, indent=2) + "\n").encode())


def train(job: TrainingJob, config: Config, rank: Rank, preemption: Preemption) -> TrainingState:
    """Does a rank's part of a job."""
    return Trainer(job, rank, preemption=preemption).run()


if __name__ == "__main__":
    run_rank(TrainingJob.load, train, section="train")
