"""The tuning loop: next-token loss on the answers, in one stage or two.

align   projector and region sampler alone (LLaVA's stage 1), `adapter.align_steps` of the steps
tune    with LoRA, or the whole of a made decoder; the encoder, too, where `adapter.train_encoder`
"""

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cloc.config.schema import AdapterConfig
from cloc.data.prefetch import prefetched
from cloc.errors import TrainingError
from cloc.mllm.features import KnownFeatures
from cloc.mllm.model import Adapter, Stage
from cloc.mllm.stream import Step
from cloc.model.factory import autocast

_BETAS, _WEIGHT_DECAY, _CLIP = (0.9, 0.98), 0.01, 1.0
_SILENCE = 5.0  # seconds between lines of progress at most


@dataclass(frozen=True)
class TuningReport:
    """What tuning took.

    Attributes:
        steps, images, conversations, answer_tokens, tokens: done; tokens with the image's and the padding.
        loss: mean over the last tenth of the steps.
        wall_seconds, cpu_seconds: of the loop.
        encoder_share: of the wall time that the vision tower's forward passes took.
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


def learning_rate(step: int, *, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then cosine decay to zero; steps count from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * share))


def tune(
    adapter: Adapter,
    stream: Iterator[Step],
    config: AdapterConfig,
    *,
    metrics: Path,
    known: KnownFeatures | None = None,
) -> TuningReport:
    """Trains for `config.steps` steps.

    Args:
        adapter: the model, changed in place.
        stream: batches, at least `config.steps`.
        config: section `adapter`.
        metrics: file that gets a JSON line {step, loss, learning_rate, ...} every `config.log_every` steps.
        known: features of the images, where the encoder need not run.

    Raises:
        TrainingError: the loss is not finite.
    """
    if config.gradient_checkpointing:
        adapter.checkpoint_gradients()
    adapter.parts.train()
    watch = _Watch(config, metrics)
    steps = itertools.islice(prefetched(stream, depth=2), config.steps)
    align = min(config.align_steps, config.steps)
    stages: tuple[tuple[Stage, int], ...] = (("align", align), ("tune", config.steps - align))
    for stage, count in stages:
        if count:
            _run(adapter, itertools.islice(steps, count), config, stage, count, watch=watch, known=known)
    adapter.parts.eval()
    return watch.report()


def _run(
    adapter: Adapter,
    steps: Iterator[Step],
    config: AdapterConfig,
    stage: Stage,
    count: int,
    *,
    watch: "_Watch",
    known: KnownFeatures | None,
) -> None:
    """One stage of `count` steps."""
    parameters = adapter.trainable(stage, train_encoder=config.train_encoder)
    optimizer = torch.optim.AdamW(_groups(adapter, parameters, config, stage), betas=_BETAS)
    peaks = [group["lr"] for group in optimizer.param_groups]
    for number, step in enumerate(steps):
        share = learning_rate(number, steps=count, peak=1.0, warmup=min(config.warmup_steps, count))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * share
        began = time.monotonic()
        with autocast(config.precision, adapter.device):
            features_BND = known.of(step.keys) if known else _features(adapter, step, config)
            seen = time.monotonic()
            total, tokens = adapter.answer_loss(step.batch, features_BND)
            loss = total / tokens
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"adapter tuning: the loss is {value} at step {watch.done + 1} (images {', '.join(step.keys[:3])}, "
                "...); lower adapter.learning_rate"
            )
        optimizer.step()
        watch.step(step, value, answer_tokens=int(tokens), encoder=seen - began, rate=optimizer.param_groups[0]["lr"])


def _features(adapter: Adapter, step: Step, config: AdapterConfig) -> torch.Tensor:
    assert step.batch.pixels_BSS3 is not None
    with torch.set_grad_enabled(config.train_encoder):
        return adapter.features(step.batch.pixels_BSS3)


def _groups(
    adapter: Adapter, parameters: Sequence[nn.Parameter], config: AdapterConfig, stage: Stage
) -> list[dict[str, object]]:
    """Matrices decay, the rest does not; the encoder has a rate of its own."""
    tower = {id(parameter) for parameter in adapter.encoder_parameters()}
    peak = config.align_learning_rate if stage == "align" else config.learning_rate
    groups: list[dict[str, object]] = []
    for rate, chosen in (
        (peak, [each for each in parameters if id(each) not in tower]),
        (config.encoder_learning_rate, [each for each in parameters if id(each) in tower]),
    ):
        for decay, part in (
            (_WEIGHT_DECAY, [each for each in chosen if each.ndim > 1]),
            (0.0, [each for each in chosen if each.ndim <= 1]),
        ):
            if part:
                groups.append({"params": part, "weight_decay": decay, "lr": rate})
    return groups


class _Watch:
    """Counts, writes metrics every so many steps, and a line of progress every few seconds."""

    def __init__(self, config: AdapterConfig, metrics: Path) -> None:
        self._config, self._metrics = config, metrics
        self._wall, self._cpu, self._said = time.monotonic(), time.process_time(), 0.0
        self._losses, self._encoder = list[float](), 0.0
        self._images = self._conversations = self._answer_tokens = self._tokens = 0
        metrics.parent.mkdir(parents=True, exist_ok=True)
        metrics.write_text("")

    @property
    def done(self) -> int:
        """Steps that are done."""
        return len(self._losses)

    def step(self, step: Step, loss: float, *, answer_tokens: int, encoder: float, rate: float) -> None:
        """Tells that a step is done."""
        ids_BL = step.batch.ids_BL
        self._losses.append(loss)
        self._encoder += encoder
        self._images += len(ids_BL)
        self._tokens += ids_BL.numel()
        self._answer_tokens += answer_tokens
        self._conversations += int(step.batch.segments_BL.amax(dim=1).sum())
        last, now = self.done == self._config.steps, time.monotonic()
        mean = _mean(self._losses[-self._config.log_every :])
        if self.done % self._config.log_every == 0 or last:
            seconds = now - self._wall
            row = {
                "step": self.done,
                "seconds": round(seconds, 3),
                "loss": mean,
                "learning_rate": rate,
                "tokens_per_second": self._tokens / seconds,
                "answer_tokens_per_second": self._answer_tokens / seconds,
                "encoder_share": self._encoder / seconds,
            }
            with self._metrics.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        if now - self._said > _SILENCE or last:
            self._said = now
            steps, each = self._config.steps, (now - self._wall) / self.done
            left = each * (steps - self.done)
            print(
                f"adapter: step {self.done}/{steps}, loss {mean:.3f}, {each:.2f} s/step, {left:.0f} s left", flush=True
            )

    def report(self) -> TuningReport:
        """What it took."""
        seconds = time.monotonic() - self._wall
        return TuningReport(
            steps=self.done,
            images=self._images,
            conversations=self._conversations,
            answer_tokens=self._answer_tokens,
            tokens=self._tokens,
            loss=_mean(self._losses[-max(1, self.done // 10) :]),
            wall_seconds=seconds,
            cpu_seconds=time.process_time() - self._cpu,
            encoder_share=self._encoder / seconds,
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
