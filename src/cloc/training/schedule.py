"""What changes with the step: the learning rate, and the size of the network input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cloc.config.schema import ResolutionConfig
from cloc.errors import ConfigError


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up, then cosine to zero (METHOD, Table A); `step` counts from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Phase:
    """Neighbouring steps at one size of the network input.

    Attributes:
        first, stop: the steps `first` to `stop - 1`, counted from 0.
        image_size: side in pixels.
    """

    first: int
    stop: int
    image_size: int


def phases(resolutions: Sequence[ResolutionConfig], *, steps: int, image_size: int, patch_size: int = 1) -> list[Phase]:
    """The parts of a training by size; the last one is at `image_size`, the model's own. Empty parts are left out.

    Raises:
        ConfigError: a size that is no multiple of the patch size, or not smaller than the model's own.
    """
    found, share = list[Phase](), 0.0
    for number, part in enumerate(resolutions):
        where = f"train.resolutions[{number}].image_size {part.image_size}"
        if part.image_size % patch_size:
            fits = part.image_size // patch_size * patch_size or patch_size
            raise ConfigError(f"{where} is not a multiple of the model's patch size {patch_size}; take {fits}")
        if part.image_size >= image_size:
            raise ConfigError(
                f"{where} is not smaller than the model's own {image_size}, which the last steps have; leave it out"
            )
        first, share = found[-1].stop if found else 0, share + part.share
        found.append(Phase(first, round(steps * share), part.image_size))
    found.append(Phase(found[-1].stop if found else 0, steps, image_size))
    return [part for part in found if part.first < part.stop]
