"""What stands where in a demo picture: kinds, tints, sizes, angles and places, before anything is drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloc.data.scenes.vocabulary import Kind, Pair, Size, Tint

# The side of a picture that is not square is the root of its area.
SMALL_BELOW = 0.27  # an object is "small" when its longest side is below this share of the picture's side
LARGE_ABOVE = 0.34  # and "large" above this one
_REPEAT = 0.18  # chance that an object repeats an earlier one: captions count equal ones
_RECOLOUR = 0.12  # chance that it is an earlier kind in another tint: tints must be told apart
_TRIES = 12


@dataclass(frozen=True)
class Placement:
    """One object to draw.

    Attributes:
        extent: longest side of the unturned object, pixels.
        angle: turn, degrees, counter-clockwise.
        x, y: its middle, pixels.
        share: `extent` as a share of the picture's side.
    """

    kind: Kind
    tint: Tint
    extent: float
    angle: float
    x: float
    y: float
    share: float

    @property
    def size(self) -> Size | None:
        """The size word that a person would use, or None."""
        if self.share < SMALL_BELOW:
            return Size.SMALL
        return Size.LARGE if self.share > LARGE_ABOVE else None


def arrange(
    rng: np.random.Generator, *, pairs: Sequence[Pair], width: int, height: int, closeup: bool
) -> list[Placement]:
    """Chooses and places 1 or 2 objects (a close-up) or 3 to 8 (a scene), back to front."""
    count = int(rng.integers(1, 3) if closeup else rng.integers(3, 9))
    shares = [_share(rng, count=count, closeup=closeup) for _ in range(count)]
    placed: list[Placement] = []
    for kind, tint in _choose(rng, pairs=pairs, count=count):
        share = shares[len(placed)]
        extent = share * math.sqrt(width * height)
        angle = float(rng.uniform(-25, 25))
        x, y = _place(rng, placed=placed, extent=extent, width=width, height=height)
        placed.append(Placement(kind, tint, extent=extent, angle=angle, x=x, y=y, share=share))
    return placed


def _share(rng: np.random.Generator, *, count: int, closeup: bool) -> float:
    """Longest side as a share of the picture's side."""
    if closeup:
        low, high = (0.55, 0.88) if count == 1 else (0.42, 0.62)
        return float(rng.uniform(low, high))
    if rng.random() < 0.3 + 0.05 * (count - 3):
        return float(rng.uniform(0.21, SMALL_BELOW - 0.01))
    return float(rng.uniform(LARGE_ABOVE + 0.01, 0.46 if count < 6 else 0.4))


def _choose(rng: np.random.Generator, *, pairs: Sequence[Pair], count: int) -> list[Pair]:
    chosen: list[Pair] = []
    for _ in range(count):
        draw = rng.random()
        earlier = chosen[int(rng.integers(len(chosen)))] if chosen else None
        fresh = pairs[int(rng.integers(len(pairs)))]
        if earlier and draw < _REPEAT:
            fresh = earlier
        elif earlier and draw < _REPEAT + _RECOLOUR:
            others = [pair for pair in pairs if pair[0].name == earlier[0].name and pair[1] != earlier[1]]
            fresh = others[int(rng.integers(len(others)))] if others else fresh
        chosen.append(fresh)
    return chosen


def _place(
    rng: np.random.Generator, *, placed: Sequence[Placement], extent: float, width: int, height: int
) -> tuple[float, float]:
    """The middle, pixels: the first of some random places with little overlap, else the one with the least."""
    inset = 0.42 * extent  # up to an eighth of the object may lie outside
    tolerated = float(rng.uniform(0.0, 0.3))
    best, best_overlap = (width / 2, height / 2), math.inf
    for _ in range(_TRIES):
        x, y = float(rng.uniform(inset, width - inset)), float(rng.uniform(inset, height - inset))
        overlap = max((_overlap(x, y, extent, other) for other in placed), default=0.0)
        if overlap < best_overlap:
            best, best_overlap = (x, y), overlap
        if best_overlap <= tolerated:
            break
    return best


def _overlap(x: float, y: float, extent: float, other: Placement) -> float:
    """Share of the smaller object's square that the two squares have in common."""
    reach = (extent + other.extent) / 2
    across = min(reach - abs(x - other.x), extent, other.extent)
    down = min(reach - abs(y - other.y), extent, other.extent)
    return max(across, 0.0) * max(down, 0.0) / min(extent, other.extent) ** 2
