"""Streams: the global batch is the same on any number of ranks, and goes on on any other number."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloc.data.batches import Batch
from cloc.data.dataset import Dataset
from cloc.data.loader import LoaderSettings, TrainLoader, check_division, joined, streams_of, unusable_of
from cloc.data.tables import write_table
from cloc.errors import ConfigError, DataError
from tests.conftest import write_dataset
from tests.unit.test_loader import lengths

SETTINGS = LoaderSettings(image_size=32, batch_size=4, max_regions=3, alt_text_share=0.5, seed=0, buffer=6)
Drawn = tuple[int, str]  # epoch and key


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """One whose shards divide unevenly, and one of whose images two fifths have no caption."""
    folder = tmp_path_factory.mktemp("data")
    whole = Dataset.open(write_dataset(folder / "whole", 31, shard_size=4))
    thin = Dataset.open(write_dataset(folder / "thin", 29, shard_size=5))
    for shard in thin.manifest.shards:
        rows = [row for rows in thin.rows("captions", shard).values() for row in rows if int(row["key"]) % 5 > 1]
        write_table(thin.captions, "captions", shard.name, rows)
    return {"whole": whole, "thin": thin}


def ranks(dataset: Dataset, world_size: int, *, batch_size: int, **changed: Any) -> list[TrainLoader]:
    """The loaders of all ranks; `batch_size` is the global one."""
    own = replace(SETTINGS, batch_size=batch_size // world_size, world_size=world_size, **changed)
    return [TrainLoader(dataset, replace(own, rank=rank), tokenize=lengths) for rank in range(world_size)]


@dataclass(frozen=True)
class Global:
    """What all ranks together draw for a batch, and the state of all streams behind it, as a checkpoint keeps it."""

    samples: list[Drawn]
    state: dict[str, Any]


def drawn(loaders: list[TrainLoader], count: int) -> Iterator[Global]:
    """Global batches, nothing decoded."""
    with ExitStack() as stack:
        tasks = [stack.enter_context(closing(loader._tasks())) for loader in loaders]
        for parts in islice(zip(*tasks, strict=True), count):
            for loader, part in zip(loaders, parts, strict=True):
                loader._places = part.tag
            samples = [(sample.epoch, sample.record.key) for part in parts for sample in part.samples]
            states = [loader.state_dict() for loader in reversed(loaders)]
            yield Global(samples, json.loads(json.dumps(joined(states))))


divided = st.sampled_from([1, 2, 3, 4, 6]).flatmap(
    lambda streams: st.tuples(
        st.just(streams),
        *[st.sampled_from([ranks for ranks in range(1, streams + 1) if streams % ranks == 0])] * 2,
    )
)


@given(
    name=st.sampled_from(["whole", "thin"]),
    counts=divided,
    each=st.integers(1, 3),
    buffer=st.integers(1, 9),
    stop=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_global_batches_are_the_same_on_any_ranks_and_go_on_on_any_others(
    sets: dict[str, Dataset], name: str, counts: tuple[int, int, int], each: int, buffer: int, stop: int
) -> None:
    """Up to ten batches: several epochs of the larger ones."""
    streams, before, after = counts
    given_ = {"batch_size": streams * each, "streams": streams, "buffer": buffer}
    expected = list(drawn(ranks(sets[name], streams, **given_), 10))
    assert list(drawn(ranks(sets[name], before, **given_), stop)) == expected[:stop]
    resumed = ranks(sets[name], after, **given_)
    for loader in resumed:
        loader.load_state_dict(expected[stop - 1].state)
    assert list(drawn(resumed, 10 - stop)) == expected[stop:]


@pytest.mark.parametrize("name", ["whole", "thin"])
def test_every_position_of_three_epochs_goes_on_on_another_number_of_ranks(sets: dict[str, Dataset], name: str) -> None:
    given_ = {"batch_size": 8, "streams": 4}
    expected = list(drawn(ranks(sets[name], 2, **given_), 14))
    epochs = {place["epoch"] for step in expected for place in step.state["streams"]}
    assert epochs >= {0, 1, 2, 3}
    for number in range(13):
        resumed = ranks(sets[name], (1, 2, 4)[number % 3], **given_)
        for loader in resumed:
            loader.load_state_dict(expected[number].state)
        assert list(drawn(resumed, 1)) == expected[number + 1 : number + 2]
    if name == "thin":
        assert unusable_of(expected[-1].state) == sum(loader.unusable for loader in resumed) > 30


def test_a_stream_is_the_rank_of_as_many_ranks_as_streams(sets: dict[str, Dataset]) -> None:
    """`streams: 0`, and a stream's part of a batch is the batch of its rank."""
    unset = list(drawn(ranks(sets["whole"], 2, batch_size=8), 9))
    assert unset == list(drawn(ranks(sets["whole"], 2, batch_size=8, streams=2), 9))
    together = list(drawn(ranks(sets["whole"], 1, batch_size=8, streams=2), 9))
    assert together == unset
    assert streams_of(unset[0].state) == 2
    epoch_0 = [key for step in unset for epoch, key in step.samples if epoch == 0]
    assert sorted(epoch_0) == [f"{number:06d}" for number in range(31)]


def assert_same(found: Batch, parts: list[Batch]) -> None:
    assert found.keys == tuple(key for part in parts for key in part.keys)
    for field in ("pixels_BSS3", "caption_ids_BL", "boxes_BM4", "points_BM2", "pointed_BM", "present_BM"):
        assert torch.equal(getattr(found, field), torch.cat([getattr(part, field) for part in parts])), field
    texts = [batch.text_ids_UL[batch.text_index_BM][batch.present_BM] for batch in (found, *parts)]
    assert torch.equal(texts[0], torch.cat(texts[1:]))


def test_whole_batches_are_equal_and_a_run_goes_on_with_other_ranks_workers_and_size(sets: dict[str, Dataset]) -> None:
    given_ = {"batch_size": 8, "streams": 4, "point_share": 0.3}
    (one,), pair = ranks(sets["thin"], 1, workers=1, **given_), ranks(sets["thin"], 2, **given_)
    with closing(one.batches()) as batches, closing(pair[0].batches()) as left, closing(pair[1].batches()) as right:
        for batch, *parts in islice(zip(batches, left, right, strict=True), 7):
            assert_same(batch, parts)
            assert one.state_dict() == joined([loader.state_dict() for loader in pair])
        state = one.state_dict()
        following = next(batches)
    for world_size, changed in ((1, {}), (4, {}), (2, {"image_size": 48})):
        found = list[Batch]()
        for loader in ranks(sets["thin"], world_size, **given_, **changed):
            loader.load_state_dict(state)
            with closing(loader.batches()) as batches:
                found.append(next(batches))
        if changed.get("image_size"):
            assert found[0].pixels_BSS3.shape[1:] == (48, 48, 3)
            assert tuple(key for part in found for key in part.keys) == following.keys
        else:
            assert_same(following, found)


def test_an_error_in_one_of_many_streams_is_raised_and_ends_all(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", 16, shard_size=4)
    (Path(data) / "images" / "00002.tar").unlink()
    (loader,) = ranks(Dataset.open(data), 1, batch_size=8, streams=4)
    with pytest.raises(DataError, match=r"there is no images/00002\.tar"):
        list(islice(loader.batches(), 4))


# --- what does not divide or belong together


@pytest.mark.parametrize(
    ("batch_size", "streams", "processes", "message"),
    [
        (24, 4, 3, r"train\.streams: 3 processes do not divide 4 streams; start 1, 2 or 4 processes .*multiple of 3"),
        (8, 1, 2, r"2 processes do not divide 1 streams; start 1 processes"),
        (10, 4, 2, r"train\.batch_size 10 is not divisible by 4 streams \(train\.streams\); set it to 8, for example"),
        (3, 0, 2, r"train\.batch_size 3 is not divisible by 2 processes; set it to 4, for example"),
        (2, 0, 8, r"train\.batch_size 2 is not divisible by 8 processes; set it to 8, for example"),
    ],
)
def test_what_does_not_divide_is_told(batch_size: int, streams: int, processes: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_division(batch_size=batch_size, streams=streams, processes=processes)
    assert "\n" not in str(caught.value)


def test_what_divides_passes() -> None:
    for batch_size, streams, processes in ((8, 0, 1), (8, 0, 4), (8, 4, 2), (32_768, 1024, 256)):
        check_division(batch_size=batch_size, streams=streams, processes=processes)


def test_the_loader_checks_it(sets: dict[str, Dataset]) -> None:
    with pytest.raises(ConfigError, match="2 processes do not divide 3 streams; start 1 or 3 processes"):
        ranks(sets["whole"], 2, batch_size=12, streams=3)


def test_states_that_do_not_belong_together_are_refused(sets: dict[str, Dataset]) -> None:
    first, second = (loader.state_dict() for loader in ranks(sets["whole"], 2, batch_size=8, streams=4))
    assert joined([second, first]) == joined([first, second])
    with pytest.raises(DataError, match="do not hold each of 4 streams once"):
        joined([first])
    with pytest.raises(DataError, match="do not hold each of 4 streams once"):
        joined([first, second, second])
    (other, _) = ranks(sets["whole"], 2, batch_size=8, streams=4, seed=1)
    with pytest.raises(DataError, match="the ranks read with different settings or data"):
        joined([other.state_dict(), second])
    (alone,) = ranks(sets["whole"], 1, batch_size=8, streams=4)
    with pytest.raises(DataError, match="no place of stream 2; join the states of all ranks"):
        alone.load_state_dict(first)
