"""The tuning loop of one rank: next-token loss on the answers, in one stage or two.

align   projector and region sampler alone (LLaVA's stage 1), `adapter.align_steps` of the steps
tune    with LoRA, or the whole of a made decoder; the encoder, too, where `adapter.train_encoder`

The loss is the mean over the answer tokens of the global batch, so that it is the same whatever the number of ranks.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cloc.config import Config
from cloc.config.schema import AdapterConfig
from cloc.data.streams import joined
from cloc.mllm.job import TuningJob
from cloc.mllm.model import Adapter, Stage
from cloc.mllm.stream import ChatStreams, Step
from cloc.model.factory import autocast
from cloc.model.optimizers import Optimizers
from cloc.training.checkpoint import Checkpoints, TrainingState
from cloc.training.distributed import Rank, gathered, total, world_size
from cloc.training.jobfile import CHECKPOINTS
from cloc.training.preemption import Preempted, Preemption
from cloc.training.schedule import learning_rate
from cloc.training.watch.anomalies import BadBatch, Judge, Judgement, Verdict
from cloc.training.watch.clock import Clock, memory_figures
from cloc.training.watch.record import Recorder
from cloc.training.watch.stall import Watchdog

_BETAS, _WEIGHT_DECAY, _CLIP = (0.9, 0.98), 0.01, 1.0
_LAST_LOSSES = 100  # of which the report has the mean, at most


@dataclass(frozen=True)
class TuningReport:
    """What tuning took.

    Attributes:
        steps, images, conversations, answer_tokens, tokens: done; tokens with the image's and the padding.
        loss: mean over the last tenth of the steps.
        wall_seconds, cpu_seconds: of the loop, by the clock and of all ranks' processors.
        encoder_share: of the wall time that the vision tower's forward passes took.
        skipped: batches that were left out.
    """

    steps: int
    images: int
    conversations: int
    answer_tokens: int
    tokens: int
    loss: float
    wall_seconds: float
    cpu_seconds: float
    encoder_share: float
    skipped: int = 0


@dataclass
class _Counts:
    """What this rank has done; the first one's holds what all did in earlier attempts, too."""

    images: int = 0
    conversations: int = 0
    answer_tokens: int = 0
    tokens: int = 0
    encoder_seconds: float = 0.0  # of all ranks together

    def add(self, step: Step, *, answer_tokens: int) -> None:
        """Counts a step."""
        ids_BL = step.batch.ids_BL
        self.images += len(ids_BL)
        self.tokens += ids_BL.numel()
        self.answer_tokens += answer_tokens
        self.conversations += int(step.batch.segments_BL.amax(dim=1).sum())

    def of_all_ranks(self) -> "_Counts":
        """Sums over the ranks; every rank must call it."""
        own = [self.images, self.conversations, self.answer_tokens, self.tokens, self.encoder_seconds]
        *whole, seconds = total(torch.tensor(own, dtype=torch.float64)).tolist()
        images, conversations, answer_tokens, tokens = (int(value) for value in whole)
        return _Counts(images, conversations, answer_tokens, tokens, encoder_seconds=seconds)


class Tuning:
    """Tunes one adapter; `run` goes to the end, from the last checkpoint if there is one. Every rank makes it.

    Args:
        job: of one seed.
        config: its settings.
        adapter: the model, changed in place; equal on all ranks.
        streams: of this rank.
        rank: this process.
        preemption: whether it was told to stop.
        known: features (N, W) of the images by key, where the encoder need not run.
        live: whether metrics go to MLflow meanwhile: of several seeds those of one.
    """

    def __init__(
        self,
        job: TuningJob,
        config: Config,
        adapter: Adapter,
        streams: ChatStreams,
        *,
        rank: Rank,
        preemption: Preemption,
        known: Mapping[str, Tensor] | None = None,
        live: bool = True,
    ) -> None:
        self.job, self.adapter, self.streams, self.known = job, adapter, streams, known
        self.rank, self.preemption, self.live = rank, preemption, live
        self.train, self.settings = config.train, config.adapter
        self.align = min(self.settings.align_steps, self.settings.steps)
        self.judge, self.skipped = Judge(self.train, rate="adapter.learning_rate"), 0
        changed = adapter.trainable("tune", train_encoder=self.settings.train_encoder)
        ids = {id(parameter) for parameter in changed}
        self.changed = {name: value for name, value in adapter.parts.named_parameters() if id(value) in ids}
        self.checkpoints = Checkpoints(
            f"{job.output}/{CHECKPOINTS}",
            keep=self.train.keep_checkpoints,
            asynchronous=self.train.checkpoint_async,
            rank=rank,
        )
        self.identity = job.identity()
        self.counts, self.losses = _Counts(), deque[float](maxlen=max(1, min(_LAST_LOSSES, self.settings.steps // 10)))
        self.recent = list[float]()
        self.optimizers: Optimizers | None = None
        if self.settings.gradient_checkpointing:
            adapter.checkpoint_gradients()

    def run(self) -> TuningReport:
        """Tunes, and leaves the adapter in evaluation mode.

        Raises:
            Preempted: told to stop; a checkpoint was written.
            TrainingError: tuning cannot go on; the message says why.
        """
        self.adapter.parts.train()
        state = self._restored() or TrainingState(0, self.identity)
        batch_size = self.settings.batch_size
        with ExitStack() as stack:
            recorder = None
            if self.rank.is_first:
                told = Recorder(self.job, start=state.step, batch_size=batch_size, live=self.live)
                recorder = stack.enter_context(told)
            # A checkpoint that is being written when tuning ends is whole, also when it ends with an error.
            stack.enter_context(closing(self.checkpoints))
            watchdog = stack.enter_context(Watchdog(self.rank.rank, seconds=self.train.stall_seconds))
            clock = Clock(state, background=recorder.background_seconds if recorder else lambda: 0.0)
            self._loop(state, clock, recorder=recorder, watchdog=watchdog)
            report = self._report(clock)
        self.adapter.parts.eval()
        return report

    def _loop(self, state: TrainingState, clock: Clock, *, recorder: Recorder | None, watchdog: Watchdog) -> None:
        settings = self.settings
        with closing(self.streams.batches()) as batches:
            for step in range(state.step, settings.steps):
                if self.optimizers is None or step == self.align:
                    self.optimizers = self._optimizers(step)
                norm, stop = self._step(next(batches), step, self.optimizers)
                done = step + 1
                watchdog.beat(done)
                if recorder:
                    recorder.step(done)
                last = done == settings.steps
                if done % settings.log_every == 0 or last:
                    self._record(recorder, done, clock, norm=norm)
                if (done % settings.checkpoint_every == 0 and not last) or stop:
                    self.checkpoints.save(self._tensors(self.optimizers), self._state(done, clock))
                if stop:
                    self.checkpoints.wait()
                    raise Preempted

    # One step

    def _step(self, batch: Step, step: int, optimizers: Optimizers) -> tuple[float, bool]:
        """The norm of the global batch's gradient, and whether any rank was told to stop."""
        began = time.monotonic()
        with autocast(self.settings.precision, self.adapter.device):
            features_BND = self._features(batch)
            self.counts.encoder_seconds += time.monotonic() - began
            own, tokens = self.adapter.answer_loss(batch.batch, features_BND)
        self.counts.add(batch, answer_tokens=int(tokens))
        # One exchange serves the loss, the number of answer tokens and the stop alike.
        told = own.new_tensor([float(own.detach()), float(tokens), float(self.preemption.asked)], dtype=torch.float64)
        loss_sum, all_tokens, asked = total(told).tolist()
        (own / all_tokens).backward()
        parameters = [parameter for parameter in self.changed.values() if parameter.requires_grad]
        sum_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, _CLIP))
        loss = loss_sum / all_tokens
        judgement = self.judge.judge(loss=loss, gradient_norm=norm)
        if judgement.verdict is Verdict.APPLY:
            optimizers.step(self._share(step))
            self.losses.append(loss)
            self.recent.append(loss)
        else:
            self._refuse(batch, judgement, step=step + 1, loss=loss, norm=norm)
        return norm, bool(asked)

    def _features(self, batch: Step) -> Tensor:
        if self.known is not None:
            return torch.stack([self.known[key] for key in batch.keys])
        assert batch.batch.pixels_BSS3 is not None
        with torch.set_grad_enabled(self.settings.train_encoder):
            return self.adapter.features(batch.batch.pixels_BSS3)

    def _refuse(self, batch: Step, judgement: Judgement, *, step: int, loss: float, norm: float) -> None:
        """Leaves a bad batch out, and says which images it held, or stops."""
        for parameter in self.changed.values():
            parameter.grad = None
        keys = [key for part in gathered(list(batch.keys)) for key in part]
        bad = BadBatch(step, judgement.verdict, judgement.reason, loss=loss, gradient_norm=norm, keys=keys)
        bad.leave_out(self.job.output, advice=judgement.advice, tell=self.rank.is_first)
        self.skipped += 1

    # Stages

    def _stage(self, step: int) -> tuple[Stage, int, int]:
        """The stage of a step, its first step and its number of steps."""
        if step < self.align:
            return "align", 0, self.align
        return "tune", self.align, self.settings.steps - self.align

    def _share(self, step: int) -> float:
        """Of the peak learning rates: each stage warms up and decays to zero."""
        _, first, count = self._stage(step)
        return learning_rate(step - first, peak=1.0, warmup=min(self.settings.warmup_steps, count), steps=count)

    def _optimizers(self, step: int) -> Optimizers:
        """Those of the stage of a step, without a history; exactly what it changes requires gradients afterwards."""
        stage, _, _ = self._stage(step)
        parameters = self.adapter.trainable(stage, train_encoder=self.settings.train_encoder)
        return Optimizers(_groups(self.adapter, parameters, self.settings, stage), [], betas=_BETAS)

    # Going on

    def _restored(self) -> TrainingState | None:
        state = self.checkpoints.newest()
        if state is None:
            return None
        where = f"{self.job.output}/{CHECKPOINTS}"
        state.check(self.identity, where=where)
        self.optimizers = self._optimizers(state.step - 1)
        self.optimizers.prepare()
        state = self.checkpoints.load(self._tensors(self.optimizers))  # an older one where the newest is damaged
        state.check(self.identity, where=where)
        self.judge.load_state_dict(state.judge)
        self.streams.load_state_dict(state.loader)
        self.skipped, counts = state.skipped, dict(state.counts)
        self.losses.extend(counts.pop("losses"))
        self.counts = _Counts(**counts) if self.rank.is_first else _Counts()
        return state

    def _tensors(self, optimizers: Optimizers) -> dict[str, Tensor]:
        """All tensors that a run goes on from, the live ones: of the model what any stage changes."""
        names = {id(parameter): name for name, parameter in self.changed.items()}
        found = {f"model.{name}": parameter.detach() for name, parameter in self.changed.items()}
        return found | {f"optimizer.{name}": tensor for name, tensor in optimizers.tensors(names).items()}

    def _state(self, step: int, clock: Clock) -> TrainingState:
        """The state after `step` steps; every rank must call it."""
        return TrainingState(
            step,
            self.identity,
            cpu_seconds=clock.cpu(),
            wall_seconds=clock.wall,
            loader=joined(gathered(self.streams.state_dict())),
            judge=self.judge.state_dict(),
            skipped=self.skipped,
            counts={**asdict(self.counts.of_all_ranks()), "losses": list(self.losses)},
        )

    # What it says

    def _record(self, recorder: Recorder | None, step: int, clock: Clock, *, norm: float) -> None:
        """Records a step; every rank must call it."""
        counts, seconds = self.counts.of_all_ranks(), max(clock.wall, 1e-9)
        stage, _, _ = self._stage(step - 1)
        peak = self.settings.align_learning_rate if stage == "align" else self.settings.learning_rate
        values = {
            "train/learning_rate": peak * self._share(step - 1),
            "train/gradient_norm": norm,
            "speed/tokens_per_second": counts.tokens / seconds,
            "speed/answer_tokens_per_second": counts.answer_tokens / seconds,
            "speed/encoder_share": counts.encoder_seconds / (world_size() * seconds),
            "samples": counts.images,
            "train/skipped_batches": self.skipped,
            **memory_figures(self.rank.device),
        }
        if self.recent:
            values["loss/answers"] = sum(self.recent) / len(self.recent)
        self.recent.clear()
        if recorder:
            recorder.write(step, seconds=seconds, values=values)

    def _report(self, clock: Clock) -> TuningReport:
        """What it took; every rank must call it."""
        counts = self.counts.of_all_ranks()
        return TuningReport(
            steps=self.settings.steps,
            images=counts.images,
            conversations=counts.conversations,
            answer_tokens=counts.answer_tokens,
            tokens=counts.tokens,
            loss=sum(self.losses) / max(1, len(self.losses)),
            wall_seconds=clock.wall,
            cpu_seconds=clock.cpu(),
            encoder_share=counts.encoder_seconds / (world_size() * max(clock.wall, 1e-9)),
            skipped=self.skipped,
        )


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Gradients become their sums over the ranks, those that a rank has none of being 0; every rank must call it."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() == 1 or not gradients:
        return
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        part = [gradient for gradient in gradients if gradient.dtype == dtype]
        summed = total(torch.cat([gradient.flatten() for gradient in part]))
        for gradient, values in zip(part, summed.split([gradient.numel() for gradient in part]), strict=True):
            gradient.copy_(values.view_as(gradient))


def _groups(
    adapter: Adapter, parameters: Sequence[nn.Parameter], settings: AdapterConfig, stage: Stage
) -> list[dict[str, Any]]:
    """Matrices decay, the rest does not; the encoder has a rate of its own."""
    tower = {id(parameter) for parameter in adapter.encoder_parameters()}
    peak = settings.align_learning_rate if stage == "align" else settings.learning_rate
    groups: list[dict[str, Any]] = []
    for rate, chosen in (
        (peak, [each for each in parameters if id(each) not in tower]),
        (settings.encoder_learning_rate, [each for each in parameters if id(each) in tower]),
    ):
        for decay, part in (
            (_WEIGHT_DECAY, [each for each in chosen if each.ndim > 1]),
            (0.0, [each for each in chosen if each.ndim <= 1]),
        ):
            if part:
                groups.append({"params": part, "weight_decay": decay, "rate": rate})
    return groups
