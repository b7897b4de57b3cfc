"""What is said of one object, and many of them looked at side by side, in order, few ahead."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from cloc.data.storage import StorageError, Trouble
from cloc.data.verify.report import Difference, Kind, Way

_AHEAD = 4  # looks a thread that are given out before they are asked for
# What is wrong with one object; anything else is wrong with the storage, and no other object would fare better.
_OF_ONE = {Trouble.NO_OBJECT, Trouble.DENIED, Trouble.OTHER}


@dataclass(frozen=True)
class Outcome:
    """What was found of one object.

    Attributes:
        differences: what differs.
        way: how a shard was verified; None where it differs, or is none.
        table: of which table it is one; "" where it is none, or differs.
        unknown: whether that table does not say what it was made of.
        shards: 1 for a shard, for the progress.
        bytes: that the manifest says of it, for the progress.
        read: bytes of it that were read.
    """

    differences: tuple[Difference, ...] = ()
    way: Way | None = None
    table: str = ""
    unknown: bool = False
    shards: int = 0
    bytes: int = 0
    read: int = 0


Look = Callable[[], Outcome]


def in_threads(looks: Iterable[Outcome | Look], *, threads: int, stop: threading.Event) -> Iterator[Outcome]:
    """Outcomes in order; what takes no look is passed through. Threads will do: hashing and waiting hold no lock.

    Args:
        looks: what is known, or how to find out.
        threads: looks at a time.
        stop: set in the end, also after an error, for looks that take long.
    """
    waiting: deque[Outcome | Future[Outcome]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        try:
            for look in looks:
                waiting.append(look if isinstance(look, Outcome) else pool.submit(look))
                while waiting and (isinstance(waiting[0], Outcome) or len(waiting) > _AHEAD * threads):
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        finally:
            stop.set()
            for item in waiting:
                if isinstance(item, Future):
                    item.cancel()


def _result(item: Outcome | Future[Outcome]) -> Outcome:
    return item if isinstance(item, Outcome) else item.result()


def trouble(error: StorageError, path: str) -> Difference:
    """What an error says of one object. Raises it again when it says something of the whole storage."""
    if error.trouble not in _OF_ONE:
        raise error
    if error.trouble is Trouble.NO_OBJECT:
        return Difference(Kind.MISSING, path, detail="it went away after it was listed")
    return Difference(Kind.UNREADABLE, path, detail=str(error))
