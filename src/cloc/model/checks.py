"""What the model's public functions check of their arguments: a `ValueError` names argument, value and fix."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor


def one_of(**prompts: Tensor | None) -> None:
    """Exactly one kind of prompt is given."""
    given = [name for name, value in prompts.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(prompts)}; got {' and '.join(given) or 'none'}")


def boxes(boxes_BM4: Tensor) -> None:
    """Boxes (B, M, 4) are finite, in [0, 1] and not empty."""
    _shape("boxes", boxes_BM4, 4, "xyxy corners")
    _inside("boxes", boxes_BM4)
    degenerate = (boxes_BM4[..., 2:] <= boxes_BM4[..., :2]).any(dim=-1)
    if degenerate.any():
        place = _first(degenerate)
        raise ValueError(
            f"boxes{place}: {_values(boxes_BM4[tuple(place)])} is empty (x2 <= x1 or y2 <= y1); give the corners as "
            "left, top, right, bottom, not as width and height"
        )


def points(points_BM2: Tensor) -> None:
    """Points (B, M, 2) are finite and in [0, 1]."""
    _shape("points", points_BM2, 2, "(x, y)")
    _inside("points", points_BM2)


def masks(masks_BMHW: Tensor) -> None:
    """Masks (B, M, H, W) that mark at least one pixel each."""
    if masks_BMHW.ndim != 4:
        raise ValueError(
            f"masks: expected the shape (images, masks, height, width), got {tuple(masks_BMHW.shape)}; "
            "add the missing dimensions with unsqueeze"
        )
    empty = ~(masks_BMHW != 0).flatten(2).any(dim=2)
    if empty.any():
        raise ValueError(f"masks{_first(empty)}: marks no pixel; leave empty masks out")


def pixels(pixel_values: Tensor, *, size: int) -> None:
    """Network input (B, 3, size, size)."""
    if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, size, size):
        raise ValueError(
            f"pixel_values: expected the shape (images, 3, {size}, {size}), got {tuple(pixel_values.shape)}; "
            "make it with CLOCProcessor.pixels"
        )


def same_images(images: int, **prompts: Tensor | None) -> None:
    """As many rows of prompts as images."""
    for name, value in prompts.items():
        if value is not None and len(value) != images:
            raise ValueError(
                f"{name}: {len(value)} rows of prompts for {images} images; give one row an image, "
                "(images, prompts an image, ...)"
            )


def prompt_shapes(tokens_BND: Tensor, *, boxes: Any, points: Any, texts: Any, embed_dim: int) -> None:
    """Shapes alone, which cost nothing on any device."""
    for name, value, width, form in (
        ("boxes", boxes, 4, "xyxy corners"),
        ("points", points, 2, "(x, y)"),
        ("texts", texts, embed_dim, "text embeddings"),
    ):
        if value is not None:
            _shape(name, value, width, form)
            same_images(len(tokens_BND), **{name: value})


def text_length(input_ids: Tensor, *, longest: int) -> None:
    """Token ids (T, L) no longer than the text encoder takes."""
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids: expected the shape (texts, tokens), got {tuple(input_ids.shape)}")
    if input_ids.shape[1] > longest:
        raise ValueError(
            f"input_ids: texts of {input_ids.shape[1]} tokens are longer than the text encoder takes ({longest}); "
            f"tokenize with CLOCProcessor, or with truncation=True, max_length={longest}"
        )


def family(source: Any, found: str | None, *, expected: str) -> None:
    """The checkpoint's family is the class's."""
    if found != expected:
        raise ValueError(
            f"{source}: model_type {found!r} does not fit this class, which is of the family {expected!r}; "
            "load it with cloc.model.factory.load"
        )


def shapes(source: Any, mismatched: Collection[tuple[str, Any, Any]]) -> None:
    """No weight of a checkpoint has another shape than the configuration says."""
    if mismatched:
        name, found, expected = min(mismatched)
        raise ValueError(
            f"{source}: {len(mismatched)} weights have other shapes than the configuration says, as {name}: "
            f"{tuple(found)} in the checkpoint, {tuple(expected)} expected; load it with its own configuration, or set "
            "the sizes in the settings (section model) to the checkpoint's"
        )


def _shape(name: str, value: Tensor, width: int, form: str) -> None:
    if value.ndim != 3 or value.shape[2] != width:
        raise ValueError(
            f"{name}: expected the shape (images, prompts an image, {width}), {form}, got {tuple(value.shape)}"
        )


def _inside(name: str, value: Tensor) -> None:
    bad = ~torch.isfinite(value).all(dim=-1)
    if bad.any():
        place = _first(bad)
        raise ValueError(f"{name}{place}: {_values(value[tuple(place)])} is not finite; leave absent prompts out")
    # Rounding may leave a corner a little outside.
    outside = ((value < -1e-4) | (value > 1 + 1e-4)).any(dim=-1)
    if outside.any():
        place = _first(outside)
        raise ValueError(
            f"{name}{place}: {_values(value[tuple(place)])} lies outside [0, 1] of the padded input; divide pixels by "
            "the image's size and map with CLOCProcessor.letterbox"
        )


def _first(where: Tensor) -> list[int]:
    return [int(index) for index in where.nonzero()[0]]


def _values(row: Tensor) -> str:
    return "[" + ", ".join(f"{float(value):g}" for value in row) + "]"
