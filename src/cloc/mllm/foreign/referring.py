"""Referring expressions, RefCOCO-style: an image, what somebody called a part of it, and the box of that part.

    [{"file_name": "1.jpg", "sentences": ["woman in red", {"sent": "her"}], "bbox": [x, y, w, h], "split": "val"}, ...]

`image` and `expression` do as well, and an object with COCO's lists: `refs` with `ann_id` and `sentences` beside
`images` and `annotations` (RefCOCO's own files), or `images` whose `caption` is the expression (as MDETR has them).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cloc.boxes import as_boxes
from cloc.data.ingest.json_stream import entries_of_object
from cloc.mllm.boxtext import box_to_text
from cloc.mllm.conversation import Conversation, Task, Turn
from cloc.mllm.foreign.boxes import Frames, numbers_of
from cloc.mllm.foreign.items import (
    ForeignImage,
    FrameOf,
    Item,
    find_image,
    given_size,
    is_object_of_lists,
    items_of,
    key_of_image,
    size_of,
)
from cloc.mllm.instructions.phrases import read_phrase
from cloc.mllm.instructions.templates import WORDINGS, Form
from cloc.mllm.instructions.words import plain, words_of

BoxFormat = Literal["xywh", "xyxy"]

_IMAGE_NAMES = ("image", "file_name", "image_path", "img_path")
_EXPRESSIONS = ("sentences", "expressions", "expression", "sentence", "caption")
_SENTENCES = ("sent", "raw", "sentence")


def read_referring(
    file: str | Path,
    *,
    images: str | Path,
    frame_of: FrameOf,
    split: str = "",
    box_format: BoxFormat = "xywh",
    seed: int = 0,
) -> Iterator[ForeignImage]:
    """The expressions of a file, each as a question for its box; an item an image part, in the file's order.

    Args:
        file: a JSON array, an object a line, or one object with COCO's lists.
        images: folder of the images.
        frame_of: width and height of an image -> its map to the padded network input.
        split: the only one to read, "" for all.
        box_format: of `bbox`, where an item has no `bbox_format` itself: COCO's x, y, width, height, or two corners.
        seed: of the wordings.

    Raises:
        DataError: the file is not JSON, or an item lacks its image, expression or box, or the box is none in the image.
    """
    path = Path(file)
    items = _coco_items(path) if is_object_of_lists(path) else items_of(path)
    wordings = WORDINGS[Form.GROUND].trained
    for index, item in enumerate(items):
        own_split = str(item.value.get("split") or "")
        if split and own_split != split:
            continue
        name = next((item.value[name] for name in _IMAGE_NAMES if item.value.get(name)), None)
        if not isinstance(name, str):
            raise item.error(f"it names no image; give its {_IMAGE_NAMES[0]}")
        image = find_image(item, name, images=Path(images))
        width, height = size_of(item, image)
        frames = Frames(item, (width, height), given_size(item), frame_of(width, height))
        box = _corners(item, box_format)
        padded = frames.padded(box, frames.own_frame(box))
        rng = np.random.default_rng((seed, index))
        conversations = []
        for text in _expressions(item):
            phrase = read_phrase(text)
            wording = wordings[int(rng.integers(len(wordings)))]
            turn = Turn(wording.format_map({"phrase": text, "be": phrase.be}), box_to_text(padded))
            conversations.append(Conversation(Task.GROUND, (turn,), truth=as_boxes([padded])))
        yield ForeignImage(key_of_image(item, name), image, tuple(conversations), own_split)


def _expressions(item: Item) -> list[str]:
    """What an item calls its part, plain, at least one."""
    value: Any = next((item.value[name] for name in _EXPRESSIONS if item.value.get(name)), None)
    found = []
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, dict):
            entry = next((entry[name] for name in _SENTENCES if entry.get(name)), None)
        if not isinstance(entry, str) or not words_of(plain(entry)):
            raise item.error(f"expected `sentences` or an `expression` with a word, got {str(entry)[:80]!r}")
        found.append(plain(entry))
    return found


def _corners(item: Item, box_format: BoxFormat) -> list[float]:
    """The corners of an item's box, in its own frame."""
    own = item.value.get("bbox_format") or box_format
    if own not in ("xywh", "xyxy"):
        raise item.error(f"bbox_format must be xywh or xyxy, got {str(own)[:40]!r}")
    x, y, right, bottom = numbers_of(item, item.value.get("bbox"))
    return [x, y, x + right, y + bottom] if own == "xywh" else [x, y, right, bottom]


def _coco_items(path: Path) -> Iterator[Item]:
    """The items of an object with COCO's lists; images and annotations are held, they may stand behind `refs`."""
    lists: dict[str, list[tuple[str, Mapping[str, Any]]]] = {"images": [], "annotations": [], "refs": []}
    entries = entries_of_object(
        str(path),
        what="expressions",
        lists=("images", "annotations"),
        optional=("refs",),
        skip=("segmentation", "coco_url"),
    )
    for entry in entries:
        where = f"{path}: {entry.place}"
        if not isinstance(entry.value, dict):
            raise Item(where, {}).error(f"expected an object, got {type(entry.value).__name__}")
        lists[entry.name].append((where, entry.value))
    images = {value.get("id"): value for _, value in lists["images"]}
    boxes = {value.get("id"): value for _, value in lists["annotations"]}
    for where, value in lists["refs"] or lists["annotations"]:
        found = boxes.get(value.get("ann_id"), {}) if lists["refs"] else {}
        image = images.get(value.get("image_id", found.get("image_id")))
        if image is None:
            raise Item(where, value).error(f"its image {value.get('image_id')!r} is not among the images")
        yield Item(where, {**image, **found, **value, "file_name": image.get("file_name")})
