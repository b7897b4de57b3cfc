"""The training stream: determinism, resumption, workers, split over ranks, what a batch holds."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from cloc.config.schema import AugmentationConfig
from cloc.data.batches import Batch
from cloc.data.buffers import Buffers
from cloc.data.dataset import Dataset, write_manifest
from cloc.data.loader import LoaderSettings, TrainLoader
from cloc.data.prefetch import prefetched
from cloc.data.tables import write_table
from cloc.errors import DataError
from tests.conftest import children

SETTINGS = LoaderSettings(image_size=32, batch_size=4, max_regions=3, alt_text_share=0.5, seed=0, buffer=6)
AUGMENTED = AugmentationConfig(min_crop_area=0.5, flip=0.5, color_jitter=0.2)


def lengths(texts: list[str]) -> Tensor:
    """A stand-in tokenizer: a text is its length and a weighted sum of its characters."""
    rows = [[len(text), sum(place * ord(letter) for place, letter in enumerate(text, 1))] for text in texts]
    return torch.tensor(rows)


def broken_tokenizer(texts: list[str]) -> Tensor:
    """A defect."""
    raise KeyError(f"no {len(texts)} texts")


def loader(data: str | Dataset, **changed: Any) -> TrainLoader:
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    return TrainLoader(dataset, replace(SETTINGS, **changed), tokenize=lengths)


@dataclass(frozen=True)
class Step:
    """A batch, and the loader's state behind it, as a checkpoint keeps it."""

    batch: Batch
    state: dict[str, Any]


def taken(own: TrainLoader, count: int) -> list[Step]:
    with closing(own.batches()) as batches:
        return [Step(batch, json.loads(json.dumps(own.state_dict()))) for batch in islice(batches, count)]


def place(step: Step) -> dict[str, int]:
    """Where the only stream stands."""
    (found,) = step.state["streams"]
    return found


def assert_equal(found: list[Step], expected: list[Step]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.state == other.state
        assert one.batch.keys == other.batch.keys
        for name, value in one.batch.tensors().items():
            assert torch.equal(value, getattr(other.batch, name)), name


@pytest.fixture
def data(tmp_path: Path, make_dataset) -> str:
    return make_dataset(tmp_path / "train", 18, shard_size=4)


# --- order, determinism, resumption


@pytest.mark.parametrize("augmentation", [AugmentationConfig(), AUGMENTED], ids=["plain", "augmented"])
def test_the_stream_goes_on_from_any_batch_to_the_exact_next_one(data: str, augmentation: AugmentationConfig) -> None:
    """Three epochs of 18 images; 4 a batch, so that batches reach over the ends of epochs."""
    whole = taken(loader(data, augmentation=augmentation), 14)
    assert_equal(taken(loader(data, augmentation=augmentation), 14), whole)
    assert {place(step)["epoch"] for step in whole} == {0, 1, 2, 3}
    for number in range(13):
        resumed = loader(data, augmentation=augmentation)
        resumed.load_state_dict(whole[number].state)
        assert_equal(taken(resumed, 2 if number < 12 else 1), whole[number + 1 : number + 3])


def test_seeds_and_epochs_give_other_orders(data: str) -> None:
    def order(batches: list[Step]) -> list[float]:
        return [float(pixels.sum()) for step in batches for pixels in step.batch.pixels_BSS3.double()]

    first, other = order(taken(loader(data, batch_size=18), 2)), order(taken(loader(data, batch_size=18, seed=1), 1))
    assert sorted(first[:18]) == sorted(first[18:]) == sorted(other)
    assert first[:18] != first[18:]
    assert first[:18] != other


def test_resumption_reads_no_more_than_it_must(tmp_path: Path, make_dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.open(make_dataset(tmp_path / "d", 60, shard_size=6))
    opened: list[str] = []
    before = Dataset.open_images
    monkeypatch.setattr(Dataset, "open_images", lambda own, shard: (opened.append(shard.name), before(own, shard))[1])
    last = taken(loader(dataset, buffer=3), 11)[-1]
    assert place(last)["position"] == 44
    opened.clear()
    resumed = loader(dataset, buffer=3, batch_size=4)
    resumed.load_state_dict(last.state)
    next(islice(resumed._tasks(), 3, 4))  # to the end of the epoch
    assert 2 <= len(opened) <= 5


@pytest.mark.parametrize(("images", "shard_size", "world_size"), [(18, 4, 2), (16, 16, 3), (17, 5, 4)])
def test_ranks_share_an_epoch_without_overlap_or_loss(
    tmp_path: Path, make_dataset, images: int, shard_size: int, world_size: int
) -> None:
    dataset = Dataset.open(make_dataset(tmp_path / "d", images, shard_size=shard_size))
    seen: list[str] = []
    for rank in range(world_size):
        own = loader(dataset, rank=rank, world_size=world_size, batch_size=1)
        for task in own._tasks():
            if task.tag[0].epoch:
                break
            seen += [sample.record.key for sample in task.samples]
    assert sorted(seen) == sorted(
        sample.key for shard in dataset.manifest.shards for sample in dataset.read_samples(shard)
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 3}, "seed was 0 and is 3"),
        ({"buffer": 7, "streams": 2}, "buffer was 6 and is 7; streams was 1 and is 2"),
        ({"world_size": 2}, "batch_size was 4 and is 8; streams was 1 and is 2"),
        ({"augmentation": AUGMENTED}, "augmentation was {.*'flip': 0.0.*} and is {.*'flip': 0.5"),
    ],
)
def test_a_state_of_another_stream_is_refused(data: str, changed: dict[str, Any], message: str) -> None:
    state = loader(data).state_dict()
    with pytest.raises(DataError, match=message) as caught:
        loader(data, **changed).load_state_dict(state)
    assert "\n" not in str(caught.value)
    loader(data, workers=2).load_state_dict(state)


def test_a_state_of_other_data_or_another_release_is_refused(data: str, tmp_path: Path, make_dataset) -> None:
    state = loader(data).state_dict()
    other = make_dataset(tmp_path / "other", 18, shard_size=4, seed=5)
    with pytest.raises(DataError, match=r"data was '\w+' and is '\w+'; restore these, or start training anew"):
        loader(other).load_state_dict(state)
    with pytest.raises(DataError, match="version 0 is not 2"):
        loader(data).load_state_dict({**state, "version": 0})


# --- what cannot be used


@pytest.fixture
def thin(tmp_path: Path, make_dataset) -> str:
    """A third of the images have no caption, and one shard has no table at all."""
    data = make_dataset(tmp_path / "thin", 18, shard_size=4)
    dataset = Dataset.open(data)
    for number, shard in enumerate(dataset.manifest.shards):
        rows = [row for rows in dataset.rows("captions", shard).values() for row in rows if int(row["key"]) % 3]
        write_table(dataset.captions, "captions", shard.name, rows)
        if number == 2:
            (Path(data) / "captions" / f"{shard.name}.parquet").unlink()
    return data


def test_images_without_a_caption_are_left_out_counted_and_resumed_over(thin: str) -> None:
    whole = taken(loader(thin, batch_size=5), 12)  # 60 samples; 9 of the 18 have a caption
    last = place(whole[-1])
    assert last["epoch"] == 6
    assert last["unusable"] == 18 * 6 + last["position"] - 60
    for number in range(11):
        resumed = loader(thin, batch_size=5)
        resumed.load_state_dict(whole[number].state)
        assert_equal(taken(resumed, 1), whole[number + 1 : number + 2])
        assert resumed.unusable == place(whole[number + 1])["unusable"]


def test_data_without_captions_is_told(tmp_path: Path, make_dataset) -> None:
    data = make_dataset(tmp_path / "d", 8, captions=False)
    with pytest.raises(DataError, match="no image has a caption; run captioning first"):
        next(loader(data).batches())


def test_too_little_data_is_told_before_training(data: str) -> None:
    with pytest.raises(DataError, match=r"18 images are fewer than a batch of 40; lower train\.batch_size"):
        loader(data, batch_size=40)


def test_a_broken_image_is_named(tmp_path: Path, make_dataset) -> None:
    data = make_dataset(tmp_path / "d", 8, broken=[3])
    with pytest.raises(DataError, match="image '000003' cannot be decoded"):
        taken(loader(data), 2)


def test_broken_tables_and_shards_are_named(data: str) -> None:
    table = Path(data) / "regions" / "00001.parquet"
    whole, body = pq.read_table(table), table.read_bytes()
    pq.write_table(whole.drop_columns("score"), table)
    with pytest.raises(DataError, match=r"regions/00001\.parquet: columns .* are not the contract's"):
        taken(loader(data), 5)
    pq.write_table(whole.set_column(5, "text", pa.nulls(len(whole), pa.string())), table)
    with pytest.raises(DataError, match=r"regions/00001\.parquet: 8 rows without text; make this table again"):
        taken(loader(data), 5)
    table.write_bytes(body)
    tar = Path(data) / "images" / "00002.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"images/00002\.tar: truncated"):
        taken(loader(data), 5)
    tar.unlink()
    with pytest.raises(DataError, match=r"there is no images/00002\.tar"):
        taken(loader(data), 5)


def test_a_shard_with_fewer_samples_than_the_manifest_says_is_told(data: str) -> None:
    dataset = Dataset.open(data)
    first, *rest = dataset.manifest.shards
    write_manifest(dataset.images, replace(dataset.manifest, shards=(replace(first, images=6), *rest)))
    with pytest.raises(DataError, match=r"00000\.tar: 4 samples, the manifest says 6; write this shard again"):
        taken(loader(data), 5)


# --- what a batch holds


def test_a_batch_holds_boxes_in_the_padded_frame_and_each_text_once(data: str) -> None:
    (step,) = taken(loader(data), 1)
    batch = step.batch
    assert batch.pixels_BSS3.shape == (4, 32, 32, 3)
    assert batch.pixels_BSS3.dtype == torch.uint8
    assert batch.present_BM.sum() == 8  # two regions an image
    assert (batch.boxes_BM4[~batch.present_BM] == 0).all()
    boxes = batch.boxes_BM4[batch.present_BM]
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    points = batch.points_BM2[batch.present_BM]
    assert ((points >= boxes[:, :2]) & (points <= boxes[:, 2:])).all()
    assert len({tuple(row) for row in batch.text_ids_UL.tolist()}) == len(batch.text_ids_UL)
    assert batch.text_index_BM.max() < len(batch.text_ids_UL)


def test_a_batch_names_its_samples(data: str) -> None:
    own = loader(data)
    (task,) = islice(own._tasks(), 1)
    expected = tuple(sample.record.key for sample in task.samples)
    (step,) = taken(own, 1)
    assert step.batch.keys == expected


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 100])
def test_chunks_are_neighbours_with_their_own_texts(data: str, size: int) -> None:
    (step,) = taken(loader(data, batch_size=8), 1)
    gone = torch.zeros(8, 3, dtype=torch.bool)
    gone[3], gone[5, 1] = True, True  # an image without regions, and one that lost a region
    whole = replace(step.batch, present_BM=step.batch.present_BM & ~gone)
    parts = whole.chunks(size)
    assert [len(part.keys) for part in parts] == [min(size, 8 - first) for first in range(0, 8, size)]
    assert tuple(key for part in parts for key in part.keys) == whole.keys
    for name in ("pixels_BSS3", "caption_ids_BL", "boxes_BM4", "points_BM2", "pointed_BM", "present_BM"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    found = torch.cat([part.text_ids_UL[part.text_index_BM] for part in parts])
    assert torch.equal(found[whole.present_BM], whole.text_ids_UL[whole.text_index_BM][whole.present_BM])
    if size < 8:
        for part in parts:
            named = part.text_index_BM[part.present_BM].unique().tolist()
            assert named == list(range(len(part.text_ids_UL))) if named else len(part.text_ids_UL) == 1
            assert (part.text_index_BM[~part.present_BM] == 0).all()


def test_texts_and_boxes_stay_together(data: str) -> None:
    """Each region's text is found again by its box, through crops and flips."""
    dataset = Dataset.open(data)
    own = loader(dataset, augmentation=AugmentationConfig(flip=1.0), batch_size=18, buffer=1)
    (task,) = islice(own._tasks(), 1)
    (step,) = taken(own, 1)
    batch, flips = step.batch, 0
    for number, sample in enumerate(task.samples):
        labels = sample.record.labels
        for place in range(2):
            ids = batch.text_ids_UL[batch.text_index_BM[number, place]]
            source = next(i for i, text in enumerate(labels.texts) if torch.equal(lengths([text])[0], ids))
            left = labels.boxes_R4[source, 0] < 0.5
            flips += bool(left) != bool(batch.boxes_BM4[number, place, 0] < 0.4)
    captions = [caption for sample in task.samples for caption in sample.record.labels.captions]
    assert all("left of" in caption for caption in captions)
    assert 0 < flips < 36  # the alt-texts name no side, the captions do


def test_at_most_m_regions_are_sampled(data: str) -> None:
    steps = taken(loader(data, max_regions=1, alt_text_share=0.0), 18)
    assert all(step.batch.present_BM.shape == (4, 1) for step in steps)
    assert all(step.batch.present_BM.all() for step in steps)
    lefts = torch.cat([step.batch.boxes_BM4[:, 0, 0] for step in steps])
    assert 0.3 < (lefts < 0.4).float().mean() < 0.7  # of the two, each in its turn


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 0.18, 0.42), (1.0, 1, 1)])
def test_the_alt_text_share_is_kept(data: str, share: float, low: float, high: float) -> None:
    dataset = Dataset.open(data)
    rows = [row for shard in dataset.manifest.shards for own in dataset.rows("captions", shard).values() for row in own]
    alt_texts = {tuple(lengths([row["text"]])[0].tolist()) for row in rows if row["kind"] == "alt_text"}
    ids = [row for step in taken(loader(data, alt_text_share=share), 45) for row in step.batch.caption_ids_BL.tolist()]
    assert low <= sum(tuple(row) in alt_texts for row in ids) / len(ids) <= high


def test_the_share_of_points_is_kept(data: str) -> None:
    steps = taken(loader(data, point_share=0.25), 45)
    pointed = torch.cat([step.batch.pointed_BM[step.batch.present_BM] for step in steps]).float()
    assert 0.15 < pointed.mean() < 0.35
    assert not any((step.batch.pointed_BM & ~step.batch.present_BM).any() for step in steps)


# --- processes that decode


def test_workers_give_the_same_stream_and_go_on_with_another_number_of_them(thin: str) -> None:
    whole = taken(loader(thin, augmentation=AUGMENTED), 9)
    assert_equal(taken(loader(thin, augmentation=AUGMENTED, workers=3), 9), whole)
    resumed = loader(thin, augmentation=AUGMENTED, workers=1)
    resumed.load_state_dict(whole[4].state)
    assert_equal(taken(resumed, 4), whole[5:])
    assert not children()


def test_a_worker_names_the_image_that_cannot_be_decoded(tmp_path: Path, make_dataset) -> None:
    data = make_dataset(tmp_path / "d", 8, broken=[3])
    with pytest.raises(DataError, match="image '000003' cannot be decoded"):
        taken(loader(data, workers=1), 2)


def test_a_defect_in_a_worker_comes_with_its_traceback(data: str) -> None:
    own = TrainLoader(Dataset.open(data), replace(SETTINGS, workers=1), tokenize=broken_tokenizer)
    with pytest.raises(RuntimeError, match=r"(?s)a process that decodes failed:.*broken_tokenizer.*KeyError: 'no 4"):
        taken(own, 1)


def test_a_worker_that_is_killed_is_one_line(data: str) -> None:
    with closing(loader(data, workers=1).batches()) as batches:
        next(batches)
        (worker,) = children()
        worker.send_signal(signal.SIGKILL)
        with pytest.raises(DataError, match=r"train\.workers: a process that decodes died \(signal 9") as caught:
            for _ in batches:
                pass
    assert "\n" not in str(caught.value)


def test_workers_end_with_their_parent(data: str) -> None:
    script = (
        "import sys\nfrom tests.unit.test_loader import loader\n"
        f"if __name__ == '__main__':\n    batches = loader({data!r}, workers=1).batches()\n"
        "    next(batches)\n    print('ready', flush=True)\n    sys.stdin.read()\n"
    )
    root = Path(__file__).parents[2]
    path = Path(data) / "hold.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (worker,) = children(psutil.Process(process.pid))
        process.kill()
        worker.wait(timeout=10)


# --- parts


def test_memory_is_given_out_again_when_nobody_holds_it() -> None:
    buffers = Buffers((2, 3))
    first = buffers.take()
    address, tensor = first.ctypes.data, torch.from_numpy(first)
    del first
    assert buffers.take().ctypes.data != address  # the tensor still holds it
    view = tensor[1:]
    del tensor
    assert buffers.take().ctypes.data != address
    del view
    assert buffers.take().ctypes.data == address


def test_prefetched_hands_over_items_and_errors_and_closes_its_maker() -> None:
    closed: list[int] = []

    def items(last: bool) -> Iterator[int]:
        try:
            yield from (1, 2, 3)
            if last:
                raise DataError("broken")
        finally:
            closed.append(1)

    stream = prefetched(items(last=True), depth=2)
    assert [next(stream) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(DataError, match="broken"):
        next(stream)
    early = prefetched(items(last=False), depth=1)
    assert next(early) == 1
    early.close()
    deadline = time.monotonic() + 5
    while len(closed) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(closed) == 2
