"""Reading ahead in a thread."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
_PATIENCE = 0.1  # seconds between looks whether anybody still wants the items


def prefetched(items: Iterator[T], *, depth: int) -> Generator[T, None, None]:
    """The items, made ahead in a thread; an exception of the maker is raised here.

    Closing the iterator, or leaving it to be collected, ends the thread and closes the maker.

    Args:
        items: what is made ahead; only the thread touches it.
        depth: items that wait at most.
    """
    channel: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: list[T], error: BaseException | None = None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                channel.put((item, error), timeout=_PATIENCE)
                return

    def work() -> None:
        try:
            for item in items:
                put([item])
                if stop.is_set():
                    return
            put([])
        except BaseException as error:  # handed over, not swallowed
            put([], error)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            found, error = channel.get()
            if error is not None:
                raise error
            if not found:
                return
            yield found[0]
    finally:
        stop.set()
        thread.join()
