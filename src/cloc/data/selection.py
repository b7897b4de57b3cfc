"""Which part of the work is this process's, where many machines share it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cloc.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Selection:
    """Some of a row of things (shards, blocks of them): from `first` to before `last`, of these every `workers`-th from
    the `worker`-th on."""

    first: int = 0
    last: int | None = None
    worker: int = 0
    workers: int = 1

    @classmethod
    def parse(cls, *, shards: str = "", worker: str = "") -> "Selection":
        """Reads "first:last" (either may be left out, one number is one shard) and "i/n".

        Raises:
            ConfigError: either is something else.
        """
        span = re.fullmatch(r"(\d*):(\d*)|(\d+)", shards or ":")
        if span is None:
            raise ConfigError(f"--shards {shards!r}: write first:last, as in 0:100, or one number")
        share = re.fullmatch(r"(\d+)/(\d+)", worker or "0/1")
        if share is None or int(share[1]) >= int(share[2]):
            raise ConfigError(f"--worker {worker!r}: write i/n with i from 0 to n - 1, as in 0/4")
        single = int(span[3]) if span[3] else None
        return cls(
            first=int(span[1] or 0) if single is None else single,
            last=(int(span[2]) if span[2] else None) if single is None else single + 1,
            worker=int(share[1]),
            workers=int(share[2]),
        )

    def of(self, shards: Sequence[T]) -> Sequence[T]:
        """The selected ones."""
        return shards[self.first : self.last][self.worker :: self.workers]


ALL = Selection()
