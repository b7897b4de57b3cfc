"""Records parted over files on disk, so that each part is worked on in memory alone: the step of an external join."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[Any]  # of a structured dtype
_BLOCK = 1 << 20  # records read at a time where they are only passed on


def run_starts(*sorted_N: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Where runs of equal values begin in sorted columns."""
    new_N = np.zeros(len(sorted_N[0]), dtype=bool)
    new_N[:1] = True
    for column_N in sorted_N:
        new_N[1:] |= column_N[1:] != column_N[:-1]
    return np.flatnonzero(new_N)


class Spill:
    """Files of records of one dtype, one a part, in a folder of its own."""

    def __init__(self, folder: Path, dtype: Any, *, parts: int) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.dtype = np.dtype(dtype)
        self.parts = parts

    def _path(self, part: int) -> Path:
        return self._folder / f"{part:06d}.bin"

    def append(self, records: Records, part_N: npt.NDArray[Any]) -> None:
        """Adds records to the parts that `part_N` names."""
        order = np.argsort(part_N, kind="stable")
        ordered, parts = records[order], part_N[order]
        starts = run_starts(parts)
        for start, stop in zip(starts, np.append(starts[1:], len(parts)), strict=True) if len(parts) else ():
            # Opened for each write: a thousand parts would be a thousand open files.
            with self._path(int(parts[start])).open("ab") as file:
                ordered[start:stop].tofile(file)

    def read(self, part: int) -> Records:
        """All records of a part, in the order in which they came."""
        path = self._path(part)
        return np.fromfile(path, dtype=self.dtype) if path.exists() else np.empty(0, dtype=self.dtype)

    def blocks(self) -> Iterator[Records]:
        """All records, a bounded number at a time."""
        for part in range(self.parts):
            if self._path(part).exists():
                with self._path(part).open("rb") as file:
                    while len(block := np.fromfile(file, dtype=self.dtype, count=_BLOCK)):
                        yield block

    def remove(self) -> None:
        """Deletes the files."""
        for path in self._folder.glob("*.bin"):
            path.unlink()
        self._folder.rmdir()
