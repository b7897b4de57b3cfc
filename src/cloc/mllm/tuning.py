"""The tuning loop: next-token loss on the answers, the vision tower frozen.

Vision features are computed as they are needed: tuning sees most images once, so that a cache would only hold memory.
Shapes: B images, L tokens, K supervised tokens of a batch, D decoder width.
"""

import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cloc.config.schema import AdapterConfig
from cloc.data.prefetch import prefetched
from cloc.errors import TrainingError
from cloc.mllm.chat import IGNORED, ChatBatch, attention_mask
from cloc.mllm.model import Adapter
from cloc.model.factory import autocast
from cloc.model.processing import normalize

_BETAS, _WEIGHT_DECAY, _CLIP = (0.9, 0.98), 0.01, 1.0
_SILENCE = 5.0  # seconds between lines of progress at most


@dataclass(frozen=True)
class TuningReport:
    """What tuning took.

    Attributes:
        steps, images, questions: done.
        loss: mean over the last tenth of the steps.
        wall_seconds, cpu_seconds: of the loop.
    """

    steps: int
    images: int
    questions: int
    loss: float
    wall_seconds: float
    cpu_seconds: float


def answer_loss(adapter: Adapter, batch: ChatBatch) -> Tensor:
    """Mean cross-entropy of the answers' tokens (their end included), a scalar.

    The output layer is applied where there is something to learn: elsewhere its logits, the largest tensor of a
    small decoder by far, would be thrown away.
    """
    device = adapter.model.device
    hidden_BLD = adapter.model.model(
        input_ids=batch.ids_BL.to(device),
        attention_mask=attention_mask(batch.segments_BL.to(device)),
        position_ids=batch.positions_BL.to(device),
        pixel_values=normalize(batch.pixels_BSS3.to(device)),
        use_cache=False,
    ).last_hidden_state
    targets_BL = batch.labels_BL[:, 1:].to(device)
    chosen_BL = targets_BL != IGNORED
    logits_KV = adapter.model.lm_head(hidden_BLD[:, :-1][chosen_BL])
    return F.cross_entropy(logits_KV.float(), targets_BL[chosen_BL])


def learning_rate(step: int, config: AdapterConfig) -> float:
    """Linear warm-up, then cosine decay to zero; steps count from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def tune(adapter: Adapter, stream: Iterator[ChatBatch], config: AdapterConfig, *, metrics: Path) -> TuningReport:
    """Trains what is trainable for `config.steps` steps.

    Args:
        adapter: the model, changed in place.
        stream: batches, at least `config.steps`.
        config: section `adapter`.
        metrics: file that gets a JSON line {step, loss, learning_rate} every `config.log_every` steps.

    Raises:
        TrainingError: the loss is not finite.
    """
    parameters = adapter.trainable()
    optimizer = torch.optim.AdamW(_groups(parameters), betas=_BETAS)
    adapter.model.train()
    losses: list[float] = []
    images = questions = 0
    watch = _Watch(config, metrics)
    for step, batch in enumerate(itertools.islice(prefetched(stream, depth=2), config.steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        with autocast(config.precision, adapter.model.device):
            loss = answer_loss(adapter, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"adapter tuning: the loss is {losses[-1]} at step {step + 1}; lower the learning rate")
        images += len(batch.ids_BL)
        questions += int(batch.segments_BL.amax(dim=1).sum())
        watch.step(losses, rate=learning_rate(step, config))
    adapter.model.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return TuningReport(
        steps=len(losses),
        images=images,
        questions=questions,
        loss=sum(last) / len(last),
        wall_seconds=time.monotonic() - watch.wall,
        cpu_seconds=time.process_time() - watch.cpu,
    )


def _groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, object]]:
    return [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": _WEIGHT_DECAY},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]


class _Watch:
    """Writes metrics every so many steps, and a line of progress every few seconds."""

    def __init__(self, config: AdapterConfig, metrics: Path) -> None:
        self._config, self._metrics = config, metrics
        self.wall, self.cpu, self._said = time.monotonic(), time.process_time(), 0.0
        metrics.parent.mkdir(parents=True, exist_ok=True)
        metrics.write_text("")

    def step(self, losses: list[float], *, rate: float) -> None:
        """After a step: `losses` of all steps so far."""
        done, now = len(losses), time.monotonic()
        recent = losses[-self._config.log_every :]
        mean = sum(recent) / len(recent)
        if done % self._config.log_every == 0 or done == self._config.steps:
            with self._metrics.open("a") as stream:
                stream.write(json.dumps({"step": done, "loss": mean, "learning_rate": rate}) + "\n")
        if now - self._said > _SILENCE or done == self._config.steps:
            self._said = now
            each = (now - self.wall) / done
            left = each * (self._config.steps - done)
            print(
                f"adapter: step {done}/{self._config.steps}, loss {mean:.3f}, {each:.2f} s/step, {left:.0f} s left",
                flush=True,
            )
