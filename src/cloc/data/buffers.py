"""Memory for the pixels of batches, used again: fresh pages cost a fifth of what decoding into them does."""

import weakref
from collections import deque

import numpy as np
import numpy.typing as npt


class Buffers:
    """Arrays of one shape. One that nobody holds any more, nor a tensor that was made of it, is given out again.

    Args:
        shape: of every array, uint8.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._free: deque[npt.NDArray[np.uint8]] = deque()  # of many threads: the last holder may be anywhere

    def take(self) -> npt.NDArray[np.uint8]:
        """An array of any content. A view of it holds the memory only if it holds the array as well, as tensors do."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self._shape, dtype=np.uint8)
        given = memory.view()
        weakref.finalize(given, self._free.append, memory).atexit = False
        return given
