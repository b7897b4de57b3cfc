"""Features of the training images, computed once: a frozen encoder says the same of an image each time.

They are kept where images come more than once and all of them fit into memory; else the encoder runs in each step.
Images are taken in the data set's order and in parts of one size, so that they come out alike whenever they are made.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from cloc.config.schema import AdapterConfig
from cloc.data.dataset import Dataset, LabeledSample
from cloc.mllm.model import Adapter
from cloc.mllm.stream import picture_of, stacked
from cloc.model.factory import autocast

_PART = 64  # images that the encoder sees together
_GIGABYTE = 1_000_000_000


class KnownFeatures:
    """Features by the key of their image.

    Args:
        features: (N, W) of each.
    """

    def __init__(self, features: Mapping[str, Tensor]) -> None:
        self._features = features

    def of(self, keys: Sequence[str]) -> Tensor:
        """(B, N, W), in the order of the keys."""
        return torch.stack([self._features[key] for key in keys])


def pays(adapter: Adapter, settings: AdapterConfig, *, images: int) -> bool:
    """Whether features are worth keeping: the encoder is frozen, images come twice on average, and there is room.

    Args:
        adapter: the model.
        settings: section `adapter`.
        images: of the training data.
    """
    vision = adapter.model.config.vision_config
    room = images * adapter.image_tokens * vision.hidden_size * 4 <= settings.cache_gigabytes * _GIGABYTE
    return room and not settings.train_encoder and settings.steps * settings.batch_size >= 2 * images


@torch.no_grad()
def known_features(
    adapter: Adapter, dataset: Dataset, settings: AdapterConfig, *, keep: Callable[[LabeledSample], bool]
) -> KnownFeatures:
    """Runs the encoder over all images that may be trained on.

    Args:
        adapter: the model; its encoder must be frozen.
        dataset: the training data.
        settings: section `adapter`.
        keep: which samples may be used.

    Raises:
        DataError: an image cannot be decoded.
    """
    found, samples = dict[str, Tensor](), filter(keep, dataset.read_all())
    while part := list(islice(samples, _PART)):
        pictures = [picture_of(sample, image_size=adapter.image_size) for sample in part]
        with autocast(settings.precision, adapter.device):
            features_BND = adapter.features(stacked(pictures))
        for picture, features_ND in zip(pictures, features_BND.float().cpu(), strict=True):
            found[picture.key] = features_ND.clone()
    print(f"adapter: features of {len(found)} images are kept", flush=True)
    return KnownFeatures(found)
