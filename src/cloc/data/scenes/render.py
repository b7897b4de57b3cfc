"""Renders a demo picture: objects of an icon font, shaded and shadowed, on a textured backdrop, with exact boxes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from cloc.data.scenes.backdrop import Backdrop, Canvas, paint
from cloc.data.scenes.glyphs import Stamp, stamp
from cloc.data.scenes.layout import Placement, arrange
from cloc.data.scenes.vocabulary import Kind, Pair, Size, Tint

MIN_VISIBLE = 0.35  # objects of which less is seen are left out
_ASPECTS = (1.0, 1.0, 1.0, 1.0, 8 / 7, 5 / 4, 4 / 3)  # long side over short side
_MARKS = 0.5  # brightness of the marks on an object, of that of the object


@dataclass(frozen=True)
class SceneObject:
    """One object of a picture.

    Attributes:
        box: xyxy, floats in [0, 1] of the picture: the object's whole silhouette, what others hide included, what
            lies outside the picture not.
        size: size word, or None.
        visible: share of the silhouette that is seen, 0 to 1.
    """

    kind: Kind
    tint: Tint
    size: Size | None
    box: tuple[float, float, float, float]
    visible: float


@dataclass(frozen=True)
class Scene:
    """A picture and the truth about it.

    Attributes:
        pixels: sRGB, uint8, shape (H, W, 3).
        objects: back to front.
        backdrop: what is behind them.
        closeup: one or two large objects instead of three to eight.
    """

    pixels: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    backdrop: Backdrop
    closeup: bool


@dataclass(frozen=True)
class _Item:
    """A stamp in its place: `left` and `top` are pixels of the picture and may be negative."""

    placement: Placement
    stamp: Stamp
    left: int
    top: int


def render(rng: np.random.Generator, *, pairs: Sequence[Pair], size: int = 128, closeup_share: float = 0.5) -> Scene:
    """Renders one picture.

    Args:
        rng: everything random comes from it.
        pairs: the pairs of kind and tint that may appear.
        size: long side of the picture, pixels; four in seven are square.
        closeup_share: chance of a close-up.
    """
    aspect = float(rng.choice(_ASPECTS))
    sides = (size, round(size / aspect))
    width, height = sides if rng.random() < 0.6 else sides[::-1]
    closeup = bool(rng.random() < closeup_share)
    items, visible = _arrange_visible(rng, pairs=pairs, width=width, height=height, closeup=closeup)
    canvas, backdrop = paint(rng, width=width, height=height)
    light = float(rng.uniform(-2.6, -0.5))  # radians: from the upper half
    for item in items:
        _draw(rng, canvas, item, light=light)
    objects = tuple(
        SceneObject(
            kind=item.placement.kind,
            tint=item.placement.tint,
            size=item.placement.size,
            box=silhouette_box(item.stamp.body, left=item.left, top=item.top, width=width, height=height),
            visible=share,
        )
        for item, share in zip(items, visible, strict=True)
    )
    return Scene(pixels=_finish(rng, canvas), objects=objects, backdrop=backdrop, closeup=closeup)


def encode_jpeg(pixels: npt.NDArray[np.uint8], *, quality: int) -> bytes:
    """JPEG bytes of an sRGB picture of shape (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def silhouette_box(
    body: npt.NDArray[np.uint8], *, left: int, top: int, width: int, height: int
) -> tuple[float, float, float, float]:
    """The tight box (xyxy, in [0, 1] of the picture) of a silhouette that stands at (left, top) pixels."""
    solid = body >= 128
    columns, rows = np.flatnonzero(solid.any(axis=0)), np.flatnonzero(solid.any(axis=1))
    x1, x2 = max(left + int(columns[0]), 0), min(left + int(columns[-1]) + 1, width)
    y1, y2 = max(top + int(rows[0]), 0), min(top + int(rows[-1]) + 1, height)
    return x1 / width, y1 / height, x2 / width, y2 / height


def _arrange_visible(
    rng: np.random.Generator, *, pairs: Sequence[Pair], width: int, height: int, closeup: bool
) -> tuple[list[_Item], list[float]]:
    """Arranges until enough objects can be seen; those that hardly can are left out. Also their visible shares."""
    while True:
        placements = arrange(rng, pairs=pairs, width=width, height=height, closeup=closeup)
        items = [_item(placement) for placement in placements]
        shares = _visible(items, width=width, height=height)
        kept = [item for item, share in zip(items, shares, strict=True) if share >= MIN_VISIBLE]
        if len(kept) >= (1 if closeup else 3):
            return kept, shares if len(kept) == len(items) else _visible(kept, width=width, height=height)


def _item(placement: Placement) -> _Item:
    drawn = stamp(placement.kind, extent=placement.extent, angle=placement.angle)
    height, width = drawn.body.shape
    return _Item(placement, drawn, left=round(placement.x - width / 2), top=round(placement.y - height / 2))


def _window(item: _Item, *, width: int, height: int, dx: int = 0, dy: int = 0) -> tuple[tuple[slice, slice], ...]:
    """Slices of the canvas and of the stamp where the stamp, moved by (dx, dy) pixels, lies inside the picture."""
    rows, columns = item.stamp.body.shape
    left, top = item.left + dx, item.top + dy
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height)
    return (
        (slice(y1, max(y1, y2)), slice(x1, max(x1, x2))),
        (slice(y1 - top, max(y1, y2) - top), slice(x1 - left, max(x1, x2) - left)),
    )


def _visible(items: Sequence[_Item], *, width: int, height: int) -> list[float]:
    """Share of each silhouette that is inside the picture and not covered by later ones."""
    owner = np.zeros((height, width), np.uint8)
    full = []
    for index, item in enumerate(items, start=1):
        inside, part = _window(item, width=width, height=height)
        solid = item.stamp.body >= 128
        owner[inside][solid[part]] = index
        full.append(int(solid.sum()))
    seen = np.bincount(owner.ravel(), minlength=len(items) + 1)[1:]
    return [float(count) / total for count, total in zip(seen, full, strict=True)]


def _draw(rng: np.random.Generator, canvas: Canvas, item: _Item, *, light: float) -> None:
    """Draws an object's shadow and then the object, brighter towards the light, darker at its rim."""
    _, height, width = canvas.shape
    reach = item.placement.extent * rng.uniform(0.03, 0.07)
    dx, dy = round(-np.cos(light) * reach), round(-np.sin(light) * reach)
    inside, part = _window(item, width=width, height=height, dx=dx, dy=dy)
    canvas[:, *inside] *= 1 - item.stamp.shadow[part] * np.float32(rng.uniform(0.35, 0.6) / 255)
    inside, part = _window(item, width=width, height=height)
    body, marks, soft = (
        layer[part].astype(np.float32) * np.float32(1 / 255)
        for layer in (item.stamp.body, item.stamp.marks, item.stamp.shadow)
    )
    rows, columns = body.shape
    y, x = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    slope = x.astype(np.float32) * np.float32(np.cos(light)) + y.astype(np.float32) * np.float32(np.sin(light))
    shade = (1 + np.float32(rng.uniform(0.06, 0.2)) * slope) * (np.float32(0.72) + np.float32(0.3) * soft)
    shade *= _MARKS + (1 - _MARKS) * marks
    colour = np.asarray(item.placement.tint.rgb, np.float32) * rng.uniform(0.92, 1.06) + rng.uniform(-7, 7, 3)
    view = canvas[:, *inside]
    painted = shade * colour.astype(np.float32)[:, None, None]
    painted -= view
    painted *= body
    view += painted


def _finish(rng: np.random.Generator, canvas: Canvas) -> npt.NDArray[np.uint8]:
    """The camera: exposure, colour cast, grain, and in a third of the pictures a slight blur. Overwrites `canvas`."""
    _, height, width = canvas.shape
    gain = rng.uniform(0.88, 1.1) * (1 + rng.uniform(-0.035, 0.035, 3))
    noise = _grain(height=2 * height, width=2 * width)
    top, left = int(rng.integers(height)), int(rng.integers(width))
    grain = noise[top : top + height, left : left + width] * np.float32(rng.uniform(0.5, 5))
    canvas *= gain.astype(np.float32)[:, None, None]
    canvas += grain
    pixels = np.ascontiguousarray(np.clip(canvas, 0, 255, out=canvas).astype(np.uint8).transpose(1, 2, 0))
    if rng.random() < 0.35:
        blurred = Image.fromarray(pixels).filter(ImageFilter.BoxBlur(rng.uniform(0.25, 0.8) * max(width, height) / 128))
        pixels = np.asarray(blurred)
    return pixels


@lru_cache(maxsize=32)
def _grain(*, height: int, width: int) -> npt.NDArray[np.float32]:
    """Normal noise, always the same, of which each picture takes a random part: drawing it anew costs time."""
    return np.random.default_rng(0).standard_normal((height, width), dtype=np.float32)
