"""How fast a training goes, and what it waits for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from cloc.data.batches import Batch
from cloc.training.distributed import Rank, total
from cloc.training.flops import Costs, Load, Peak
from cloc.training.watch.clock import memory_figures


@dataclass
class _Window:
    """What happened on this rank since the last record; `squares` as in `Load`."""

    began: float = field(default_factory=lambda: time.monotonic())
    paused: float = 0.0
    waited: float = 0.0
    steps: int = 0
    image_size: int = 0
    image_tokens: int = 0
    texts: int = 0
    text_tokens: int = 0
    squares: int = 0
    regions: int = 0

    def add(self, batch: Batch, *, patch_size: int) -> None:
        """Counts a step."""
        images, self.image_size = len(batch.pixels_BSS3), batch.pixels_BSS3.shape[1]
        self.steps += 1
        self.image_tokens += images * (self.image_size // patch_size) ** 2
        self.regions += int(batch.present_BM.sum())

    def read(self, texts: int, length: int) -> None:
        """Counts texts that the encoder reads."""
        self.texts += texts
        self.text_tokens += texts * length
        self.squares += texts * length * length


class Meter:
    """Measures windows of steps, between one record and the next. Needs no synchronisation with a GPU.

    Args:
        rank: this process.
        batch_size: images a step over all processes.
        patch_size: side of an image token in pixels.
        reads_regions: whether the text encoder reads the regions' texts (the objective "cloc").
        costs, peak: what a step takes and what a device can do, for MFU; the first rank's.
    """

    def __init__(
        self,
        rank: Rank,
        *,
        batch_size: int,
        patch_size: int,
        reads_regions: bool,
        costs: Costs | None = None,
        peak: Peak | None = None,
    ) -> None:
        self._rank, self._batch_size, self._patch_size, self._reads_regions = (
            rank,
            batch_size,
            patch_size,
            reads_regions,
        )
        self._costs, self._peak, self._window = costs, peak, _Window()

    def start(self) -> None:
        """Begins the first window."""
        self._window = _Window()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around taking the next batch."""
        began = time.monotonic()
        yield
        self._window.waited += time.monotonic() - began

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Around what is no part of a step: an evaluation, a checkpoint."""
        began = time.monotonic()
        yield
        self._window.paused += time.monotonic() - began

    def step(self, batch: Batch) -> None:
        """Counts a step; the batch is where the loader made it, in the processor's memory."""
        window = self._window
        window.add(batch, patch_size=self._patch_size)
        window.read(*batch.caption_ids_BL.shape)
        if self._reads_regions:
            window.read(*batch.text_ids_UL.shape)

    def close(self) -> dict[str, float]:
        """Ends a window, begins the next, and returns the figures by their name; every rank must call it.

        speed/images_per_second, tokens_per_second (patches of images, and tokens of captions and region texts with
        their padding), regions_per_second, step_seconds (mean), data_wait_share (of the rank that waited longest: the
        others wait for it), mfu (model FLOPs over what all devices can do); and `memory_figures` of this rank.
        """
        window, self._window = self._window, _Window()
        seconds = max(self._window.began - window.began - window.paused, 1e-9)
        counts = [window.image_tokens, window.texts, window.text_tokens, window.squares, window.regions]
        waits = [0.0] * self._rank.world_size
        waits[self._rank.rank] = window.waited
        sums = total(torch.tensor([*counts, *waits], dtype=torch.float64, device=self._rank.device)).tolist()
        image_tokens, texts, text_tokens, squares, regions, *waits = sums
        steps = max(window.steps, 1)
        figures = {
            "speed/images_per_second": window.steps * self._batch_size / seconds,
            "speed/tokens_per_second": (image_tokens + text_tokens) / seconds,
            "speed/regions_per_second": regions / seconds,
            "speed/step_seconds": seconds / steps,
            "speed/data_wait_share": min(1.0, max(waits) / seconds),
        }
        if self._costs and self._peak and window.steps:
            load = Load(
                images=self._batch_size,
                image_size=window.image_size,
                texts=texts / steps,
                tokens=text_tokens / steps,
                squares=squares / steps,
                regions=regions / steps,
                ranks=self._rank.world_size,
            )
            flops = self._costs.step(load).total * steps
            figures["speed/mfu"] = flops / (seconds * self._peak.flops * self._rank.world_size)
        return figures | memory_figures(self._rank.device)
