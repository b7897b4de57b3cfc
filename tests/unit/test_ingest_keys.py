"""Keys are unique over a data set: every clash is found, however little memory there is, and named."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from cloc.data.ingest import keys
from cloc.data.ingest.keys import Clash, find_clash

TINY = 64 * 50  # bytes: 50 records are sorted at once


def shards(count: int, size: int) -> list[list[str]]:
    return [[f"{shard:05d}{index:04d}" for index in range(size)] for shard in range(count)]


def naive(all_keys: Sequence[Sequence[str]]) -> set[Clash]:
    """All clashes by the plain way: the first shard that has a key, and each later one."""
    seen: dict[str, int] = {}
    found = set()
    for number, own in enumerate(all_keys):
        for key in own:
            if key in seen:
                found.add(Clash(key, seen[key], number))
            seen.setdefault(key, number)
    return found


@pytest.mark.parametrize("memory", [640, TINY, keys.MEMORY_BYTES])
@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 0), (1, 1), (3, 1), (7, 13), (40, 25)])
def test_different_keys_do_not_clash(count: int, size: int, memory: int) -> None:
    assert find_clash(count, shards(count, size).__getitem__, memory_bytes=memory) is None


@pytest.mark.parametrize("memory", [640, TINY, keys.MEMORY_BYTES])
@pytest.mark.parametrize("seed", range(8))
def test_every_clash_is_found(seed: int, memory: int) -> None:
    random = np.random.default_rng(seed)
    found = shards(23, 17)
    first, second = sorted(random.choice(23, 2, replace=False).tolist())
    found[second][int(random.integers(17))] = found[first][int(random.integers(17))]
    expected = naive(found)
    assert len(expected) == 1
    assert find_clash(23, found.__getitem__, memory_bytes=memory) in expected


def test_key_twice_in_one_shard_and_in_all_shards() -> None:
    assert find_clash(2, [["a"], ["b", "c", "b"]].__getitem__) == Clash("b", 1, 1)
    same = [["x", "y"]] * 300
    found = find_clash(300, same.__getitem__, memory_bytes=TINY)
    assert found in naive(same)
    assert find_clash(300, same.__getitem__) == Clash("x", 0, 1)


def test_equal_hashes_of_different_keys_are_no_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_hashes", lambda own: np.array([len(key) for key in own], dtype=np.uint64))
    found = shards(5, 6)
    for memory in (640, TINY, keys.MEMORY_BYTES):
        assert find_clash(5, found.__getitem__, memory_bytes=memory) is None
    found[4][0] = found[1][3]
    for memory in (640, TINY, keys.MEMORY_BYTES):
        assert find_clash(5, found.__getitem__, memory_bytes=memory) == Clash(found[1][3], 1, 4)


def test_many_keys_in_little_memory() -> None:
    """200,000 keys with a budget of 1 MiB, one clash among the last: found, in the order of the budget's memory."""
    budget, size = 1 << 20, 1000

    def read(number: int) -> list[str]:
        own = [f"{number:05d}{index:04d}" for index in range(size)]
        return own if number != 199 else [*own[:-1], "000170421"]

    ticks: list[int] = []
    tracemalloc.start()
    found = find_clash(200, read, memory_bytes=budget, tick=ticks.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == Clash("000170421", 17, 199)
    assert ticks == list(range(1, 201))
    assert peak < 3 * budget + 8 * 8 * size * 64, f"{peak} bytes were held"


def test_error_of_reading_is_passed_on() -> None:
    def read(number: int) -> list[str]:
        if number == 3:
            raise ValueError("shard 3")
        return [str(number)]

    with pytest.raises(ValueError, match="shard 3"):
        find_clash(9, read)
