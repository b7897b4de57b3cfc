"""One shard as three data frames: what the expectations look at, with the columns derived that they need."""

import io
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.schema import Shard, Table
from cloc.data.shards import Sample
from cloc.data.storage import Storage
from cloc.errors import DataError
from cloc.validation.texts import normalised

SHARD, ROW = "_shard", "_row"
"""Columns that say where a row stands, once tables of several shards are put together."""

_BOX = ["x1", "y1", "x2", "y2"]
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True)
class ShardFrames:
    """A shard's tables; rows keep the order of the files.

    Attributes:
        name: the shard's name.
        images: key, suffix, format (the suffix that the file's header asks for), width, height, side, pixels (missing
            where it cannot be opened), has_caption, n_regions.
        captions: the contract's columns, and words, images_with_key, described (the text; missing for an alt-text and
            where there is none), described_words.
        regions: the contract's columns, and words, images_with_key, described (the text; missing where there is none),
            finite (coordinates), side (share of the image), detected (by a model, not by people), supported (its text
            occurs in a text of its image), supported_near (in how many of its two neighbours' texts).
        lost: images of the shard that a labelling stage quarantined and left without caption or region.
    """

    name: str
    images: pd.DataFrame
    captions: pd.DataFrame
    regions: pd.DataFrame
    lost: int


@dataclass(frozen=True)
class ImageSize:
    """Pixels, or None where the file's header cannot be read; `format` is the suffix it asks for, "" when it has none
    of its own in a data set."""

    width: int | None
    height: int | None
    format: str | None = None


def load_shard(dataset: Dataset, shard: Shard, *, watch: Callable[[Sample], None] | None = None) -> ShardFrames:
    """Reads a shard's tar (headers only of the images) and its tables.

    Args:
        dataset: the open data set.
        shard: which one.
        watch: is shown every sample as it streams by.

    Raises:
        DataError: the shard is empty or holds another number of images than the manifest says, or a table is missing.
    """
    rows: list[dict[str, Any]] = []
    alt_texts: list[str] = []
    for sample in dataset.read_samples(shard):
        rows.append({"key": sample.key, "suffix": sample.suffix, **vars(image_size(sample.image))})
        alt_text = sample.meta.get("alt_text")
        alt_texts.append(alt_text if isinstance(alt_text, str) else "")
        if watch is not None:
            watch(sample)
    images = pd.DataFrame(rows).astype({"width": "float64", "height": "float64"})
    captions = _labels(dataset.captions, "captions", shard, stage="captioning")
    regions = _labels(dataset.regions, "regions", shard, stage="grounding")
    counts = images["key"].value_counts()
    for frame in (captions, regions):
        frame["images_with_key"] = frame["key"].map(counts).fillna(0).astype("int64")
        frame["text"] = frame["text"].fillna("")
        frame["words"] = [len(text.split()) for text in frame["text"]]
    captions["kind"] = captions["kind"].fillna("")
    captions["described"] = captions["text"].where((captions["kind"] != "alt_text") & (captions["words"] > 0))
    captions["described_words"] = captions["words"].where(captions["described"].notna())
    _derive_regions(regions)
    _derive_support(regions, captions=captions, keys=images["key"], alt_texts=pd.Series(alt_texts, dtype="str"))
    _derive_images(images, captions=captions, regions=regions)
    return ShardFrames(shard.name, images, captions, regions, lost=_lost(dataset, shard, images))


def image_size(body: bytes) -> ImageSize:
    """Width and height from an encoded image's header, without decoding its pixels."""
    try:
        with warnings.catch_warnings():
            # The check on the number of pixels judges bombs; nothing is decoded here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(body))
    except (Image.DecompressionBombError, UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return ImageSize(width=None, height=None)
    return ImageSize(width=image.width, height=image.height, format=_SUFFIXES.get(image.format or "", ""))


def _labels(storage: Storage, table: Table, shard: Shard, *, stage: str) -> pd.DataFrame:
    if not tables.has_table(storage, table, shard.name):
        path = tables.table_path(table, shard.name)
        raise DataError(f"{storage.url}: there is no {path}; run {stage} to its end before validation")
    return tables.read_table(storage, table, shard.name).to_pandas()


def _derive_regions(regions: pd.DataFrame) -> None:
    # Missing scores must break the range rule, and expectations skip missing values.
    regions["score"] = regions["score"].astype("float64").fillna(-np.inf)
    box = regions[_BOX].to_numpy(dtype=np.float64, na_value=np.nan)
    regions[_BOX] = box
    regions["finite"] = np.isfinite(box).sum(axis=1)
    regions["detected"] = (regions["source"].fillna("") != "human").astype(bool)
    regions["described"] = regions["text"].where(regions["words"] > 0)
    with np.errstate(invalid="ignore"):
        regions["side"] = np.minimum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])


def _derive_support(regions: pd.DataFrame, *, captions: pd.DataFrame, keys: pd.Series, alt_texts: pd.Series) -> None:
    """Whether the texts of regions occur in the texts of their image, and, to compare with, of those
    before and after it in the shard."""
    said: dict[str, str] = defaultdict(str)
    for key, text in (
        *zip(captions["key"], normalised(captions["text"]), strict=True),
        *zip(keys, normalised(alt_texts), strict=True),
    ):
        said[key] += text
    order = keys.tolist()
    before = dict(zip(order, [order[-1], *order[:-1]], strict=True))
    after = dict(zip(order, [*order[1:], order[0]], strict=True))
    pairs = [(key, text) for key, text in zip(regions["key"], normalised(regions["text"]), strict=True)]
    regions["supported"] = [key in after and text in said[key] for key, text in pairs]
    regions["supported_near"] = [
        (text in said[before[key]]) + (text in said[after[key]]) if key in after else 0 for key, text in pairs
    ]


def _derive_images(images: pd.DataFrame, *, captions: pd.DataFrame, regions: pd.DataFrame) -> None:
    real = captions[(captions["kind"] != "alt_text") & (captions["words"] > 0)]
    images["side"] = images[["width", "height"]].min(axis=1)
    images["pixels"] = images["width"] * images["height"]
    images["has_caption"] = images["key"].isin(real["key"])
    images["n_regions"] = images["key"].map(regions["key"].value_counts()).fillna(0).astype("int64")


def _lost(dataset: Dataset, shard: Shard, images: pd.DataFrame) -> int:
    """Labelled images that a stage gave up on. A quarantined box of an image that keeps others does not count."""
    keys: set[str] = set()
    for storage in {item.url: item for item in (dataset.captions, dataset.regions)}.values():
        if tables.has_table(storage, "quarantine", shard.name):
            keys.update(tables.read_table(storage, "quarantine", shard.name).column("key").to_pylist())
    unusable = ~images["has_caption"] | (images["n_regions"] == 0)
    return int((images["key"].isin(keys) & unusable).sum())
