"""Texts of the corpus: what a made decoder's tokenizer is trained on, and phrases to ask about."""

from collections.abc import Iterator

from cloc.data.dataset import Dataset
from cloc.mllm.instructions import bare_wordings, plain

_SHARDS = 16  # of which texts are taken
_WORDING_WEIGHT = 100  # times that a wording of questions is shown to the tokenizer's trainer


def region_texts(dataset: Dataset) -> Iterator[str]:
    """What regions of the first shards are described by."""
    for shard in dataset.manifest.shards[:_SHARDS]:
        for rows in dataset.rows("regions", shard).values():
            yield from (plain(row["text"]) for row in rows)


def vocabulary_texts(dataset: Dataset) -> Iterator[str]:
    """What conversations about the data set are written with: wordings, descriptions of regions, captions."""
    for wording in bare_wordings():
        yield from [wording] * _WORDING_WEIGHT
    yield from region_texts(dataset)
    for shard in dataset.manifest.shards[:_SHARDS]:
        for rows in dataset.rows("captions", shard).values():
            yield from (plain(row["text"]) for row in rows)
