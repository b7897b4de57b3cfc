"""Tables of images, boxes and texts through a model: what a service asks of it, and what the registered model answers.

A row asks about one image: `image` (an encoded file, or its base64 text), `boxes` (xyxy in [0, 1] of the image as it is
seen) and `texts`; both lists may be empty or absent. Nothing is read from paths or addresses.
Shapes: R boxes, T texts, E embedding width.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from cloc.config.schema import DataConfig
from cloc.data.images import decode_untrusted
from cloc.errors import DataError
from cloc.model.api import CLOC, EncodedImage, Floats

_COLUMNS = ("image", "boxes", "texts")


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model says of a row.

    Attributes:
        image_embedding: (E,), of unit length, as all embeddings.
        region_embeddings: (R, E).
        text_embeddings: (T, E).
        region_text_scores: (R, T), cosines of regions and texts.
        text_boxes: (T, 4), where the model finds each text in the image as it is seen; None for a model that finds no
            boxes.
    """

    image_embedding: Floats
    region_embeddings: Floats
    text_embeddings: Floats
    region_text_scores: Floats
    text_boxes: Floats | None

    def to_json(self) -> dict[str, Any]:
        """The attributes as nested lists."""
        return {name: None if value is None else value.tolist() for name, value in vars(self).items()}


def answer(cloc: CLOC, rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """The answers to rows, in order. Each image is encoded once, and each text once in all rows.

    Raises:
        DataError: a row cannot be used; the message names row and column.
    """
    texts = [_texts(row, number) for number, row in enumerate(rows)]
    distinct = sorted({text for listed in texts for text in listed})
    width = cloc.model.embed_dim
    known = cloc.embed_texts(distinct) if distinct else np.zeros((0, width), dtype=np.float32)
    places = {text: place for place, text in enumerate(distinct)}
    found = []
    for number, (row, listed) in enumerate(zip(rows, texts, strict=True)):
        unknown = sorted(str(name) for name in row if name not in _COLUMNS)
        if unknown:
            raise DataError(f"row {number}: the column {unknown[0]!r} is unknown; there are {', '.join(_COLUMNS)}")
        photo = cloc.encode(_image(row.get("image"), number))
        boxes = _boxes(row, number)
        try:
            regions_RE = photo.embed(boxes) if len(boxes) else np.zeros((0, width), dtype=np.float32)
        except ValueError as error:
            raise DataError(f"row {number}: {error}") from None
        texts_TE = known[[places[text] for text in listed]]
        grounded = _grounded(photo, texts_TE) if cloc.model.has_prompter else None
        found.append(Answer(photo.embedding, regions_RE, texts_TE, regions_RE @ texts_TE.T, grounded))
    return found


def _grounded(photo: EncodedImage, texts_TE: Floats) -> Floats:
    boxes_T4 = photo.find_all(texts_TE) if len(texts_TE) else np.zeros((0, 4))
    return boxes_T4.astype(np.float32)


def _image(value: Any, number: int) -> Image.Image:
    seen = decode_untrusted(_body(value, number), max_pixels=DataConfig().max_pixels)
    if isinstance(seen, str):
        raise DataError(f"row {number}: image: {seen}; give the whole file of a jpg, png or webp")
    return seen


def _body(value: Any, number: int) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise DataError(
            f"row {number}: image: expected the bytes of an image file or their base64 text, got {type(value).__name__}"
        )
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DataError(
            f"row {number}: image: {value[:60]!r} is not base64; paths and addresses are not read: give the bytes"
        ) from None


def _items(row: Mapping[str, Any], name: str, number: int) -> list[Any]:
    """A list column's value; absent, None and NaN (as tables write what is absent) are empty."""
    value = row.get(name)
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return []
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise DataError(f"row {number}: {name}: expected a list, got {str(value)[:60]!r}")
    return list(value)


def _texts(row: Mapping[str, Any], number: int) -> list[str]:
    texts = _items(row, "texts", number)
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise DataError(f"row {number}: texts: expected strings, got {str(wrong[0])[:60]!r}")
    return texts


def _boxes(row: Mapping[str, Any], number: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    boxes = _items(row, "boxes", number)
    try:
        boxes_R4 = np.asarray([np.asarray(box, dtype=np.float64) for box in boxes], dtype=np.float64)
    except (TypeError, ValueError):
        boxes_R4 = np.zeros((0, 0))
    if boxes and (boxes_R4.ndim != 2 or boxes_R4.shape[1] != 4):
        raise DataError(f"row {number}: boxes: expected [x1, y1, x2, y2] each, got {str(boxes)[:60]}")
    return boxes_R4.reshape(-1, 4)
