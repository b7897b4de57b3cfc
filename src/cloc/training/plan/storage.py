"""What a training keeps and costs besides its GPUs: shards, objects, bytes, checkpoints, labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cloc.config import Config
from cloc.training.plan.figures import Figures
from cloc.training.plan.memory import state_bytes
from cloc.training.plan.sizes import Sizes

# Of each shard: the tar, captions, regions, fingerprints, quarantine.
_OBJECTS = 5
_MANIFEST_BYTES = 290  # of a shard in manifest.json
_FINGERPRINT_BYTES = 60  # of an image: SHA-256, perceptual hash, key


@dataclass(frozen=True)
class Kept:
    """What lies on the storage.

    Attributes:
        shards: tars.
        objects: of the data set.
        images, captions, regions, other: bytes.
        checkpoint: bytes of one.
        checkpoints: how many are there at most, the one that is being written included.
    """

    shards: int
    objects: int
    images: float
    captions: float
    regions: float
    other: float
    checkpoint: float
    checkpoints: int

    @property
    def total(self) -> float:
        """Bytes of all."""
        return self.images + self.captions + self.regions + self.other + self.checkpoint * self.checkpoints


def kept(config: Config, sizes: Sizes, figures: Figures, *, images: int, shards: int = 0) -> Kept:
    """What a data set and the training's checkpoints take.

    Args:
        config: all settings.
        sizes: of the model.
        figures: bytes of an image and of its labels.
        images: of the data set.
        shards: of a data set that is there; 0: as `data.images_per_shard` and `data.bytes_per_shard` cut it.
    """
    data, train = config.data, config.train
    a_shard = float(data.images_per_shard)
    if data.bytes_per_shard:
        a_shard = min(a_shard, max(1.0, data.bytes_per_shard / figures("image_bytes")))
    shards = shards or max(1, -(-images // int(a_shard)))
    return Kept(
        shards=shards,
        objects=shards * _OBJECTS + 1,
        images=images * figures("image_bytes"),
        captions=images * figures("caption_bytes"),
        regions=images * figures("regions_per_image") * figures("region_bytes"),
        other=float(images * _FINGERPRINT_BYTES + shards * _MANIFEST_BYTES),
        checkpoint=checkpoint_bytes(sizes, config),
        checkpoints=train.keep_checkpoints + train.keep_best + 1,
    )


def checkpoint_bytes(sizes: Sizes, config: Config) -> float:
    """Bytes of a checkpoint: weights, optimiser, moving average."""
    return sum(state_bytes(sizes, config).values())


def label_rates(config: Config, figures: Figures) -> Mapping[str, float]:
    """Images a second that a GPU captions and grounds, by the settings' backends; infinite where people did it."""
    peak = figures("gpu_peak") * 1e12 * figures("label_utilisation")
    rates = {"caption": float("inf"), "ground": float("inf")}
    captioning, grounding = config.captioning, config.grounding
    if captioning.backend == "openai":
        rates["caption"] = _rate(figures, "caption_rate", lambda: figures("endpoint_tflop") * 1e12 / peak)
    elif captioning.backend == "transformers":
        rates["caption"] = _rate(
            figures,
            "caption_rate",
            lambda: (
                figures("captioner_tflop") * 1e12 / peak
                + figures("label_tokens") * figures("decoder_step") / captioning.batch_size
            ),
        )
    if grounding.backend == "transformers":
        rates["ground"] = _rate(figures, "ground_rate", lambda: figures("detector_tflop") * 1e12 / peak)
    return rates


def _rate(figures: Figures, name: str, seconds: Callable[[], float]) -> float:
    return figures(name) if figures.has(name) else 1 / seconds()
