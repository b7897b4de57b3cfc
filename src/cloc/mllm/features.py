"""Features of the training images, computed once: a frozen encoder says the same of an image each time.

They are kept where images come more than once and all of them fit into memory; else the encoder runs in each step.
Images are taken in the data set's order and in parts of one size, so that they come out alike whenever, and by however
many ranks, they are made.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from cloc.config.schema import AdapterConfig
from cloc.data.dataset import Dataset, LabeledSample
from cloc.mllm.model import Adapter
from cloc.mllm.stream import Picture, picture_of, stacked
from cloc.model.factory import autocast

_PART = 64  # images that the encoder sees together
_GIGABYTE = 1_000_000_000


def pays(adapter: Adapter, settings: AdapterConfig, *, images: int) -> bool:
    """Whether features are worth keeping: the encoder is frozen, images come twice on average, there is room, and
    all of them are the data set's.

    Args:
        adapter: the model.
        settings: section `adapter`.
        images: of the training data.
    """
    vision = adapter.model.config.vision_config
    room = images * adapter.image_tokens * vision.hidden_size * 4 <= settings.cache_gigabytes * _GIGABYTE
    return (
        room
        and not settings.train_encoder
        and not settings.files
        and settings.steps * settings.batch_size >= 2 * images
    )


def known_features(
    adapter: Adapter,
    dataset: Dataset,
    settings: AdapterConfig,
    *,
    keep: Callable[[str, bytes], bool],
    rank: int = 0,
    ranks: int = 1,
) -> dict[str, Tensor]:
    """Runs the encoder over the images that may be trained on; of several ranks each over its share.

    Args:
        adapter: the model; its encoder must be frozen.
        dataset: the training data.
        settings: section `adapter`.
        keep: which images may be used, by key and encoded image.
        rank, ranks: which process of how many.

    Returns:
        (N, W) by key.

    Raises:
        DataError: an image cannot be decoded.
    """
    samples = (sample for sample in dataset.read_all() if keep(sample.sample.key, sample.sample.image))
    seen = looked_at(adapter, samples, settings, rank=rank, ranks=ranks)
    return {picture.key: features_ND.cpu().clone() for picture, features_ND in seen}


@torch.no_grad()
def looked_at(
    adapter: Adapter, samples: Iterator[LabeledSample], settings: AdapterConfig, *, rank: int, ranks: int
) -> Iterator[tuple[Picture, Tensor]]:
    """Images and their features (N, W), float32; of several ranks each sees its share.

    Args:
        adapter: the model.
        samples: in the same order on all ranks.
        settings: section `adapter`.
        rank, ranks: which process of how many.

    Raises:
        DataError: an image cannot be decoded.
    """
    for number, part in enumerate(iter(lambda: list(islice(samples, _PART)), [])):
        if number % ranks != rank:
            continue
        pictures = [picture_of(sample, image_size=adapter.image_size) for sample in part]
        with autocast(settings.precision, adapter.device):
            features_BND = adapter.features(stacked(pictures))
        yield from zip(pictures, features_BND.float(), strict=True)
