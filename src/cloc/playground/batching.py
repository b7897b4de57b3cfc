"""A queue before a model: what several requests ask within a few milliseconds is computed in one call.

    queue = Batcher(work, pool, largest=32)
    row = await queue.submit(item)       # work([item, ...]) -> [row, ...] in the pool

While a batch is computed the next one gathers, so that a busy model is given full batches and an idle one answers at
once. The queue is bounded: what does not fit is refused, and the client told to come again.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

GATHER = 0.004  # seconds that an idle queue waits for company


class Busy(Exception):  # noqa: N818 (a state that passes, no fault)
    """The queue is full."""


class Batcher(Generic[T, R]):
    """A queue of one kind of work. It belongs to the event loop that calls `submit`.

    Args:
        work: a batch of items -> as many results; runs in the pool.
        pool: one that runs one batch at a time serves several queues in turn.
        largest: items a batch.
        limit: items that may wait.
        gather: seconds that an idle queue waits for more items.
        tell: is told the size of each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], Sequence[R]],
        pool: Executor,
        *,
        largest: int,
        limit: int,
        gather: float = GATHER,
        tell: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._work, self._pool, self._largest, self._limit = work, pool, largest, limit
        self._gather, self._tell = gather, tell
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._full = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Items that no batch has taken."""
        return len(self._waiting)

    async def submit(self, item: T) -> R:
        """The result of an item.

        Raises:
            Busy: too many wait.
            Exception: what `work` raised for the item's batch.
        """
        (result,) = await self.submit_all([item])
        return result

    async def submit_all(self, items: Sequence[T]) -> list[R]:
        """The results of items, which are taken together or not at all; see `submit`."""
        if len(self._waiting) + len(items) > self._limit:
            raise Busy
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        if len(self._waiting) >= self._largest:
            self._full.set()
        if self._waiting and self._runner is None:
            self._runner = loop.create_task(self._run())
        return list(await asyncio.gather(*futures))

    async def _run(self) -> None:
        """Batches until nothing waits."""
        loop = asyncio.get_running_loop()
        try:
            if self._gather and self._largest > 1 and len(self._waiting) < self._largest:
                self._full.clear()
                with contextlib.suppress(TimeoutError):  # an incomplete batch goes all the same
                    await asyncio.wait_for(self._full.wait(), self._gather)
            while self._waiting:
                taken = [self._waiting.popleft() for _ in range(min(self._largest, len(self._waiting)))]
                batch = [(item, future) for item, future in taken if not future.cancelled()]
                if batch:
                    self._tell(len(batch))
                    await self._answer(loop, batch)
        finally:
            self._runner = None

    async def _answer(self, loop: asyncio.AbstractEventLoop, batch: list[tuple[T, "asyncio.Future[R]"]]) -> None:
        try:
            results = await loop.run_in_executor(self._pool, self._work, [item for item, _ in batch])
        except Exception as error:  # handed to everyone who waits for it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
