"""Instruction files: LLaVA's, and those with boxes of Ferret (GRIT) and ViP-LLaVA, as `Conversation`s.

    {"id": ..., "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "<image>\\nwhat is this?"}, ...]}

- Boxes in texts, `[x1, y1, x2, y2]`: see `BoxFrame` for what the numbers mean.
- `<bbox_location0>` (Ferret): a box of `box_x1y1x2y2`, which lists boxes for each message, in pixels of `image_w` and
  `image_h`. `<bbox0>` (ViP-LLaVA): the item's box of this number. `<region>`, `<bbox>`: the next one.
- `<image>` and `<region_fea>` are left out: the chat format puts the image first and a token behind regions itself.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloc.boxes import BoxesXYXY, as_boxes
from cloc.mllm.boxtext import box_to_text, write_region
from cloc.mllm.conversation import Conversation, Task, Turn
from cloc.mllm.foreign.boxes import BoxFrame, Frames, numbers_of
from cloc.mllm.foreign.items import ForeignImage, FrameOf, Item, find_image, given_size, items_of, key_of_image, size_of

_NUMBER = r"\s*(-?\d+(?:\.\d+)?|-?\.\d+)\s*"
_PLACE = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]|<(bbox_location|bbox|region)(\d*)>")
_LEFT_OUT = re.compile(r"\s*<region_fea>|<image>\n?|\n?<image>")
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")
_BOX_LISTS = ("box_x1y1x2y2", "bboxes", "bbox", "boxes", "regions")


@dataclass
class _OwnBoxes:
    """The boxes that an item lists apart: for each message, or for all of them together."""

    item: Item
    by_message: list[list[list[float]]]
    shared: bool
    taken: int = 0  # unnumbered marks so far, of the message or, where shared, of the item

    def take(self, message: int, number: str, name: str) -> list[float]:
        """The box of a mark. Raises DataError when there is none."""
        boxes = self.by_message[0 if self.shared else message] if self.by_message else []
        place = int(number) if number else self.taken
        self.taken += not number
        if place >= len(boxes):
            raise self.item.error(
                f"<{name}{number}> has no box: there are {len(boxes)} for it; give its {_BOX_LISTS[0]}"
            )
        return boxes[place]


def read_conversations(
    file: str | Path,
    *,
    images: str | Path,
    frame_of: FrameOf,
    region_tokens: bool = False,
    box_frame: BoxFrame = BoxFrame.AUTO,
    left_out: Counter[str] | None = None,
) -> Iterator[ForeignImage]:
    """The items of a file that have an image, in order.

    Args:
        file: a JSON array, or an object a line.
        images: folder of the images.
        frame_of: width and height of an image -> its map to the padded network input.
        region_tokens: whether REGION_TOKEN stands behind a box of a question.
        box_frame: what the numbers of boxes in texts mean.
        left_out: counts the items that are no use here, by reason: those without an image or with several.

    Raises:
        DataError: the file is not JSON, or an item names no image but regions, an image that is not there, a box that
            is none in its frame, or turns that do not alternate.
    """
    for item in items_of(Path(file)):
        named = image_of(item, images=Path(images), left_out=left_out)
        if named:
            yield conversation_of(item, *named, frame_of, region_tokens=region_tokens, box_frame=box_frame)


def image_of(item: Item, *, images: Path, left_out: Counter[str] | None = None) -> tuple[str, Path] | None:
    """Key and file of the image that an item speaks about; None where it has none, or several.

    Raises:
        DataError: as `read_conversations`, but for boxes, which are not looked at.
    """
    messages, name = _messages(item), item.value.get("image")
    names = name if isinstance(name, list) else [name] if name else []
    if len(names) == 1 and isinstance(names[0], str):
        return key_of_image(item, names[0]), find_image(item, names[0], images=images)
    if not names and _points(item, messages):
        raise item.error("a region or <image> stands in its texts, but it names no image")
    if left_out is not None:
        left_out["several images" if names else "no image"] += 1
    return None


def conversation_of(
    item: Item, key: str, image: Path, frame_of: FrameOf, *, region_tokens: bool, box_frame: BoxFrame
) -> ForeignImage:
    """An item with its boxes in our format; arguments and errors as in `read_conversations`."""
    messages = _messages(item)
    conversation = _conversation(item, messages, image, frame_of, tokens=region_tokens, box_frame=box_frame)
    return ForeignImage(key, image, (conversation,))


def _points(item: Item, messages: list[str]) -> bool:
    """Whether an item speaks of an image; numbers in brackets may be anything where there is none."""
    places = (match for text in messages for match in _PLACE.finditer(text))
    return any(item.value.get(name) for name in _BOX_LISTS) or any(
        ["<image>" in text for text in messages] + [bool(match[5]) for match in places]
    )


def _messages(item: Item) -> list[str]:
    """The texts of a human and of the model by turns, in order."""
    entries = item.value.get("conversations")
    if not isinstance(entries, list) or len(entries) < 2:
        raise item.error("expected `conversations` with a question and an answer, each with `from` and `value`")
    texts = []
    for number, entry in enumerate(entries):
        role, text = (entry.get("from"), entry.get("value")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str) or role not in _ASKS + _ANSWERS:
            raise item.error(
                f"turn {number}: expected `from` (human or gpt) and `value` (a text), got {str(entry)[:80]}"
            )
        if role not in (_ANSWERS if number % 2 else _ASKS):
            wanted = "gpt" if number % 2 else "human"
            raise item.error(f"turn {number} is of {role}, {wanted}'s is due: they must alternate, human first")
        texts.append(text)
    if len(texts) % 2:
        raise item.error(f"turn {len(texts) - 1}, the last one, is a question without an answer")
    return texts


def _conversation(
    item: Item, messages: list[str], image: Path, frame_of: FrameOf, *, tokens: bool, box_frame: BoxFrame
) -> Conversation:
    written: list[tuple[str, list[BoxesXYXY]]] = [(_LEFT_OUT.sub("", text).strip(), []) for text in messages]
    if any(_PLACE.search(text) for text in messages):
        width, height = size_of(item, image)
        frames = Frames(item, (width, height), given_size(item), frame_of(width, height))
        written = _write_boxes(item, messages, frames, tokens=tokens, box_frame=box_frame)
    asked = [box for _, found in written[::2] for box in found]
    answered = written[-1][1]
    texts = [text for text, _ in written]
    return Conversation(
        task=Task.OTHER,
        turns=tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True)),
        regions=as_boxes(asked if tokens else []),
        truth=as_boxes(answered),
    )


def _write_boxes(
    item: Item, messages: list[str], frames: Frames, *, tokens: bool, box_frame: BoxFrame
) -> list[tuple[str, list[BoxesXYXY]]]:
    """The texts with their boxes in our format, each with these, padded."""
    own = _own_boxes(item, messages=len(messages))
    matches = [match for text in messages for match in _PLACE.finditer(text)]
    numbers = [float(value) for match in matches if not match[5] for value in match.groups()[:4]]
    frame = frames.choose(box_frame, numbers)
    written = []
    for number, text in enumerate(messages):
        found: list[BoxesXYXY] = []
        own.taken = own.taken if own.shared else 0

        def write(match: re.Match[str], number: int = number, found: list[BoxesXYXY] = found) -> str:
            if match[5]:
                box = own.take(number, match[6], match[5])
                found.append(frames.padded(box, frames.own_frame(box)))
            else:
                found.append(frames.padded([float(value) for value in match.groups()[:4]], frame))
            return box_to_text(found[-1]) if number % 2 else write_region(found[-1], tokens=tokens)

        written.append((_PLACE.sub(write, _LEFT_OUT.sub("", text)).strip(), found))
    return written


def _own_boxes(item: Item, *, messages: int) -> _OwnBoxes:
    value: Any = next((item.value[name] for name in _BOX_LISTS if item.value.get(name) is not None), [])
    if not isinstance(value, list):
        raise item.error(f"expected a list of boxes, got {str(value)[:80]}")
    if value and not isinstance(value[0], list):
        value = [value]
    nested = [part for part in value if isinstance(part, list) and (not part or isinstance(part[0], list))]
    if value and len(nested) == len(value):
        if len(value) != messages:
            raise item.error(f"there are boxes for {len(value)} messages, and {messages} messages")
        return _OwnBoxes(item, [[numbers_of(item, box) for box in part] for part in value], shared=False)
    return _OwnBoxes(item, [[numbers_of(item, box) for box in value]], shared=True)
