"""Features that were computed once, kept by the hash of what they were computed of.

    <cache>/ab/ab12….safetensors   the features of a shard by a model
    <cache>/index.json             sizes, and when each file was last used

The cache is a folder or an S3 prefix that any number of runs may share: an entry never changes, so that a run at worst
computes what another one is computing as well, or what another one removed.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cloc.data.storage import StorageError, open_storage

VARIABLE = "CLOC_CACHE"
NONE = "none"
_FOLDER, _INDEX, _SUFFIX = "features", "index.json", ".safetensors"
_LOOKS = 16  # looks at a storage at a time
_GIGABYTE = 1 << 30

Arrays = dict[str, npt.NDArray[Any]]


class FeatureCache:
    """Arrays by key. Open it with `open_cache`; other processes open its `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._storage = open_storage(url)
        self._used: set[str] = set()

    def present(self, keys: list[str]) -> list[bool]:
        """Whether there is an entry of each key; it may still be broken."""
        with ThreadPoolExecutor(_LOOKS) as pool:
            return list(pool.map(lambda key: self._storage.exists(_path(key)), keys))

    def get(self, key: str) -> Arrays | None:
        """An entry's arrays; None when there is none, or it cannot be read."""
        self._used.add(key)
        try:
            found: Arrays = load(self._storage.read_bytes(_path(key)))
        except (StorageError, SafetensorError):
            return None
        return found

    def put(self, key: str, arrays: Arrays) -> None:
        """Keeps an entry. Raises StorageError when it cannot be written."""
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        self._storage.write_bytes(_path(key), save(contiguous))

    def trim(self, gigabytes: float) -> int:
        """Notes what this run used, and removes what was not used for longest until the rest fits.

        Returns:
            Number of entries removed.
        """
        index, now = self._index(), time.time()
        paths = {_key(path): path for path in self._storage.list("") if path.endswith(_SUFFIX)}
        unknown = [key for key in paths if key not in index]
        with ThreadPoolExecutor(_LOOKS) as pool:
            sizes = dict(zip(unknown, pool.map(lambda key: self._size(paths[key]), unknown), strict=True))
        # What a run left behind that did not come to its end counts as unused.
        entries = {key: [*index.get(key, (sizes.get(key, 0), 0.0))] for key in paths}
        for key in self._used & entries.keys():
            entries[key][1] = now
        total, removed = sum(size for size, _ in entries.values()), 0
        for key in sorted(entries, key=lambda key: entries[key][1]):
            if total <= gigabytes * _GIGABYTE:
                break
            total -= entries.pop(key)[0]
            self._storage.delete(paths[key])
            removed += 1
        self._storage.write_bytes(_INDEX, (json.dumps(entries) + "\n").encode())
        return removed

    def _size(self, path: str) -> int:
        try:
            return self._storage.size(path)
        except StorageError:  # another run removed it meanwhile
            return 0

    def _index(self) -> dict[str, tuple[int, float]]:
        try:
            body = json.loads(self._storage.read_bytes(_INDEX))
            return {str(key): (int(size), float(used)) for key, (size, used) in body.items()}
        except (StorageError, ValueError, AttributeError, TypeError):
            return {}


@contextmanager
def open_cache(setting: str, *, gigabytes: float) -> Iterator[FeatureCache]:
    """The cache that `evaluation.cache` means, trimmed at the end.

    Without one, features lie in a temporary folder, so that they are never all in memory.

    Args:
        setting: folder or s3:// prefix; "" takes $CLOC_CACHE or ~/.cache/cloc, "none" keeps nothing.
        gigabytes: what it may hold.

    Raises:
        StorageError: a cache that was named cannot be written.
    """
    place = setting or os.environ.get(VARIABLE, "")
    cache = None if place == NONE else FeatureCache(f"{(place or _home()).rstrip('/')}/{_FOLDER}")
    try:
        if cache:
            cache._storage.write_bytes(f"{_INDEX}.probe", b"")
            cache._storage.delete(f"{_INDEX}.probe")
    except StorageError as error:
        if place:
            raise
        print(f"evaluation: features are not kept: {error}", flush=True)
        cache = None
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="cloc-features-") as folder:
            yield FeatureCache(folder)
        return
    yield cache
    try:
        removed = cache.trim(gigabytes)
    except StorageError as error:
        print(f"evaluation: the cache of features was not trimmed: {error}", flush=True)
        return
    if removed:
        print(f"evaluation: {removed} files of features removed: evaluation.cache_gigabytes {gigabytes:g}", flush=True)


def _home() -> str:
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloc")


def _path(key: str) -> str:
    return f"{key[:2]}/{key}{_SUFFIX}"


def _key(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(_SUFFIX)
