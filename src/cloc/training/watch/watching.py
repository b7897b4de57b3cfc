"""All that watches a run, put together: what the training loop tells, it tells here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType

from torch import Tensor

from cloc.config import Config
from cloc.data.batches import Batch
from cloc.model import factory
from cloc.model.factory import AnyCLOCModel
from cloc.training.checkpoint import TrainingState
from cloc.training.distributed import Rank
from cloc.training.flops import Costs, Load, peak_flops
from cloc.training.job import TrainingJob
from cloc.training.watch.clock import Clock
from cloc.training.watch.meter import Meter
from cloc.training.watch.record import Recorder
from cloc.training.watch.stall import Watchdog


class Watch:
    """Clock, meter, watchdog and, on the first rank, recorder of a run. Use it as a context around the training loop.

    Args:
        job: of the run.
        config: its settings.
        rank: this process.
        model: that is trained.
        state: where the run goes on from.
        sizes: of the network input, in pixels, that the run will have.

    Attributes:
        clock: seconds in the loop.
    """

    def __init__(
        self,
        job: TrainingJob,
        config: Config,
        *,
        rank: Rank,
        model: AnyCLOCModel,
        state: TrainingState,
        sizes: Sequence[int],
    ) -> None:
        train, costs, peak = config.train, None, None
        self._recorder = Recorder(job, start=state.step, batch_size=train.batch_size) if rank.is_first else None
        if rank.is_first:  # before the clock runs
            costs = Costs(model.config, objective=job.objective, loss=config.loss, train=train)
            for size in sizes:
                costs.step(Load(images=1, image_size=size, texts=1, tokens=1, squares=1, regions=1))
            peak = peak_flops(rank.device, bfloat16=factory.uses_bfloat16(train.precision, rank.device))
        self._meter = Meter(
            rank,
            batch_size=train.batch_size,
            patch_size=model.config.vision_config.patch_size,
            reads_regions=job.objective == "cloc",
            costs=costs,
            peak=peak,
        )
        self._watchdog = Watchdog(rank.rank, seconds=train.stall_seconds)
        background = self._recorder.background_seconds if self._recorder else (lambda: 0.0)
        self.clock, self._stack = Clock(state, background=background), ExitStack()

    def __enter__(self) -> "Watch":
        if self._recorder:
            self._stack.enter_context(self._recorder)
        self._stack.enter_context(self._watchdog)
        self._meter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def take(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, for which training waits."""
        with self._meter.waiting():
            return next(batches)

    def pausing(self) -> AbstractContextManager[None]:
        """Around what is no part of a step: an evaluation, a checkpoint."""
        return self._meter.pausing()

    def step(self, step: int, batch: Batch) -> None:
        """Tells that a step is done with a batch, as it was taken."""
        self._meter.step(batch)
        self._watchdog.beat(step)
        if self._recorder:
            self._recorder.step(step)

    def record(self, step: int, values: Mapping[str, Tensor | float]) -> None:
        """Records numbers of a step, once a step, beside those that are measured; every rank must call it."""
        measured = self._meter.close()
        if self._recorder:
            floats = {name: float(value) for name, value in values.items()}
            self._recorder.write(step, seconds=self.clock.wall, values={**floats, **measured})
