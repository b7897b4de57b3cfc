"""The training stream: determinism, resumption, split over ranks, what a batch holds."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cloc.data.dataset import Dataset
from cloc.data.loader import LoaderSettings, TrainLoader
from cloc.data.order import shuffled
from cloc.data.prefetch import prefetched
from cloc.errors import DataError


def lengths(texts: list[str]) -> Tensor:
    """A stand-in tokenizer: a text is its length and a weighted sum of its characters."""
    rows = [[len(text), sum(place * ord(letter) for place, letter in enumerate(text, 1))] for text in texts]
    return torch.tensor(rows)


def loader(data: str | Dataset, *, rank: int = 0, world_size: int = 1, batch_size: int = 4, share: float = 0.5, seed=0):
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    settings = LoaderSettings(
        image_size=32,
        batch_size=batch_size,
        max_regions=3,
        alt_text_share=share,
        seed=seed,
        rank=rank,
        world_size=world_size,
        buffer=6,
    )
    return TrainLoader(dataset, settings, tokenize=lengths)


def fingerprints(batches) -> list[float]:
    return [float(batch.pixels_BSS3.double().sum()) + float(batch.caption_ids_BL.sum()) for batch in batches]


@pytest.fixture
def data(tmp_path: Path, make_dataset) -> str:
    return make_dataset(tmp_path / "train", 18, shard_size=4)


def test_the_stream_depends_on_the_seed_alone_and_goes_on_anywhere(data: str) -> None:
    first = fingerprints(islice(loader(data).batches(), 12))
    assert fingerprints(islice(loader(data).batches(), 12)) == first
    assert fingerprints(islice(loader(data).batches(skip=7), 5)) == first[7:]
    assert fingerprints(islice(loader(data, seed=1).batches(), 12)) != first


@pytest.mark.parametrize(("images", "shard_size"), [(18, 4), (16, 16)])
def test_ranks_share_an_epoch_without_overlap_or_loss(
    tmp_path: Path, make_dataset, images: int, shard_size: int
) -> None:
    dataset = Dataset.open(make_dataset(tmp_path / "d", images, shard_size=shard_size))
    keys = {sample.sample.key for sample in dataset.read_all()}
    seen: list[str] = []
    for rank in range(2):
        stream = loader(dataset, rank=rank, world_size=2)._samples()
        own: list[str] = []
        for sample in stream:
            if sample.sample.key in own:
                break
            own.append(sample.sample.key)
        seen += own
    assert sorted(seen) == sorted(keys)


def test_a_batch_holds_boxes_in_the_padded_frame_and_each_text_once(data: str) -> None:
    batch = next(loader(data).batches())
    assert batch.pixels_BSS3.shape == (4, 32, 32, 3)
    assert batch.pixels_BSS3.dtype == torch.uint8
    assert batch.present_BM.sum() == 8  # two regions an image
    assert (batch.boxes_BM4[~batch.present_BM] == 0).all()
    boxes = batch.boxes_BM4[batch.present_BM]
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len({tuple(row) for row in batch.text_ids_UL.tolist()}) == len(batch.text_ids_UL)
    assert batch.text_index_BM.max() < len(batch.text_ids_UL)


def test_at_most_m_regions_are_sampled(data: str) -> None:
    settings = LoaderSettings(image_size=32, batch_size=4, max_regions=1, alt_text_share=0, seed=0)
    batch = next(TrainLoader(Dataset.open(data), settings, tokenize=lengths).batches())
    assert batch.present_BM.shape == (4, 1)
    assert batch.present_BM.all()


def test_the_alt_text_share_is_kept(data: str) -> None:
    dataset = Dataset.open(data)
    texts = {row["text"]: row["kind"] for shard in dataset.manifest.shards for row in _rows(dataset, shard)}
    for share, kind in ((0.0, "human"), (1.0, "alt_text")):
        ids = torch.cat([batch.caption_ids_BL for batch in islice(loader(data, share=share).batches(), 5)])
        known = {tuple(lengths([text])[0].tolist()): found for text, found in texts.items()}
        assert {known[tuple(row)] for row in ids.tolist()} == {kind}


def _rows(dataset: Dataset, shard):
    return [row for rows in dataset.rows("captions", shard).values() for row in rows]


def test_too_little_data_is_told_before_training(data: str) -> None:
    with pytest.raises(DataError, match=r"18 images are fewer than a batch of 40; lower train\.batch_size"):
        loader(data, batch_size=40)


def test_data_without_captions_is_told(tmp_path: Path, make_dataset) -> None:
    data = make_dataset(tmp_path / "d", 8, captions=False)
    with pytest.raises(DataError, match="no image has a caption; run captioning first"):
        next(loader(data).batches())


def test_a_broken_image_is_named(tmp_path: Path, make_dataset) -> None:
    data = make_dataset(tmp_path / "d", 8, broken=[3])
    with pytest.raises(DataError, match="image '000003' cannot be decoded"):
        list(islice(loader(data).batches(), 2))


def test_shuffled_keeps_every_item() -> None:
    mixed = list(shuffled(range(50), rng=np.random.default_rng(0), buffer=8))
    assert sorted(mixed) == list(range(50))
    assert mixed != list(range(50))


def test_prefetched_hands_over_items_and_errors() -> None:
    def items():
        yield 1
        raise DataError("broken")

    stream = prefetched(items(), depth=2)
    assert next(stream) == 1
    with pytest.raises(DataError, match="broken"):
        next(stream)
