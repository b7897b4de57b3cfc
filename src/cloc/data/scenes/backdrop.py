"""Backdrops of the demo pictures: muted surfaces with texture, uneven light and a little colour drift."""

from enum import StrEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

# A canvas has the shape (3, H, W), channels first because numpy is then much faster; sRGB, 0 to 255, and it may run
# over until the picture is finished. A plane has the shape (H, W).
Canvas = npt.NDArray[np.float32]
Plane = npt.NDArray[np.float32]


class Backdrop(StrEnum):
    """What is behind the objects; the value is the word that a caption uses."""

    PLAIN = "plain"
    TABLE = "two-tone"
    STRIPED = "striped"
    CHECKED = "checked"
    SPOTTED = "spotted"


_SHARES = {
    Backdrop.PLAIN: 0.3,
    Backdrop.TABLE: 0.3,
    Backdrop.STRIPED: 0.15,
    Backdrop.CHECKED: 0.1,
    Backdrop.SPOTTED: 0.15,
}


def paint(rng: np.random.Generator, *, width: int, height: int) -> tuple[Canvas, Backdrop]:
    """Paints a backdrop. Returns the canvas, shape (3, height, width), and what was painted."""
    backdrop = list(_SHARES)[int(rng.choice(len(_SHARES), p=list(_SHARES.values())))]
    x, y = _grid(width, height)
    first, second = _muted(rng), _muted(rng)
    if backdrop is Backdrop.PLAIN:
        mask = _plane(rng, x, y)
    elif backdrop is Backdrop.TABLE:
        mask = _table(rng, x, y)
    else:
        second = first + np.float32(rng.choice((-1, 1)) * rng.uniform(14, 34)) + (second - first) * np.float32(0.25)
        mask = {Backdrop.STRIPED: _stripes, Backdrop.CHECKED: _checks, Backdrop.SPOTTED: _spots}[backdrop](rng, x, y)
    canvas: Canvas = mask * (second - first)[:, None, None]
    canvas += first[:, None, None]
    canvas += _texture(rng, width=width, height=height)
    return canvas, backdrop


@lru_cache(maxsize=32)
def _grid(width: int, height: int) -> tuple[Plane, Plane]:
    """x and y of every pixel, shape (height, width), as shares of the long side."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / np.float32(max(width, height))
    return x, y


def _muted(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A muted colour of middle brightness, shape (3,)."""
    grey = rng.uniform(70, 175)
    hue = rng.uniform(-1, 1, 3)
    hue -= hue.mean()
    colour: npt.NDArray[np.float64] = grey + hue / max(np.abs(hue).max(), 1e-6) * rng.uniform(3, 24)
    return colour.astype(np.float32)


def _plane(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """A gradient in a random direction, 0 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    low, high = along.min(), along.max()
    gradient: Plane = (along - low) / (high - low)
    return gradient


def _table(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """A wall above a table: 0 above a slightly tilted edge, 1 below, with some shade on both sides of it."""
    edge = rng.uniform(0.3, 0.75) + (x - 0.5) * np.float32(rng.uniform(-0.12, 0.12))
    below = np.clip((y - edge) * 60, 0, 1)
    near = np.clip(1 - np.abs(y - edge) * 3, 0, 1)
    mask: Plane = below + np.float32(0.5) * (below - np.float32(0.5)) * near
    return mask


def _stripes(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    angle = rng.choice((0.0, np.pi / 2, rng.uniform(0, np.pi)))
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    wave = np.sin(along * np.float32(2 * np.pi * rng.uniform(4, 9)))
    mask: Plane = np.clip(wave * 4, -1, 1) * np.float32(0.5) + np.float32(0.5)
    return mask


def _checks(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    rate = np.float32(np.pi * rng.uniform(5, 10))
    wave = np.sin(x * rate + np.float32(rng.uniform(0, 6))) * np.sin(y * rate + np.float32(rng.uniform(0, 6)))
    mask: Plane = np.clip(wave * 8, -1, 1) * np.float32(0.5) + np.float32(0.5)
    return mask


def _spots(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Soft discs, as of lights out of focus."""
    mask = np.zeros_like(x)
    for _ in range(int(rng.integers(4, 9))):
        radius = np.float32(rng.uniform(0.06, 0.2))
        square = (x - np.float32(rng.uniform(0, 1))) ** 2 + (y - np.float32(rng.uniform(0, 1))) ** 2
        mask += np.clip((radius * radius - square) * (3 / radius**2), 0, 1) * np.float32(rng.uniform(0.4, 1))
    return np.minimum(mask, np.float32(1.5))


def _texture(rng: np.random.Generator, *, width: int, height: int) -> Plane:
    """Uneven light, shape (height, width): noise at three scales, the finest sometimes drawn out like grain of wood."""
    stretch = int(rng.choice((1, 1, 4)))
    total = rng.standard_normal((40 // stretch, 40), dtype=np.float32) * np.float32(rng.uniform(2, 5))
    for cells, strength in ((3, 12.0), (11, 5.0)):
        noise = rng.standard_normal((cells, cells), dtype=np.float32) * np.float32(strength * rng.uniform(0.5, 1.3))
        total += _enlarge(noise, width=total.shape[1], height=total.shape[0])
    return _enlarge(total, width=width, height=height)


def _enlarge(values: Plane, *, width: int, height: int) -> Plane:
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
