"""Items of instruction files in any order, for training: kept compressed, read one by one.

LLaVA's 665,000 items take about 0.4 GB.
"""

import json
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloc.errors import DataError
from cloc.mllm.foreign.boxes import BoxFrame
from cloc.mllm.foreign.conversations import conversation_of, image_of
from cloc.mllm.foreign.items import ForeignImage, FrameOf, Item, items_of

_LEVEL = 1  # of compression: the fastest


@dataclass(frozen=True)
class _Kept:
    """An item, compressed: where it stands, the key and the file of its image, its JSON."""

    where: str
    key: str
    image: Path
    body: bytes


class ConversationStore:
    """The items of files that have an image.

    Args:
        files: JSON arrays, or an object a line; see `read_conversations`.
        images: folder of the images.
        frame_of: width and height of an image -> its map to the padded network input.
        region_tokens: whether a region token stands behind a box of a question.
        box_frame: what the numbers of boxes in texts mean.
        test_keys: keys of images that must not be trained on.

    Attributes:
        left_out: how many items are no use, by reason.

    Raises:
        DataError: as `read_conversations`, but for boxes, which are read when one is taken; or no item is left.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        *,
        images: str | Path,
        frame_of: FrameOf,
        region_tokens: bool,
        box_frame: BoxFrame,
        test_keys: Collection[str] = (),
    ) -> None:
        self._frame_of, self._region_tokens, self._box_frame = frame_of, region_tokens, box_frame
        self.left_out = Counter[str]()
        self._items = list[_Kept]()
        for item in (item for file in files for item in items_of(Path(file))):
            named = image_of(item, images=Path(images), left_out=self.left_out)
            if named is None:
                continue
            if named[0] in test_keys:
                self.left_out["a test image"] += 1
                continue
            body = zlib.compress(json.dumps(item.value, ensure_ascii=False).encode(), _LEVEL)
            self._items.append(_Kept(item.where, *named, body))
        if not self._items:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items()) or "it is empty"
            raise DataError(f"{files[0]}: no item of it can be trained on ({reasons})")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> ForeignImage:
        """An item. Raises DataError when its boxes are none in their frame, or its image cannot be read."""
        kept = self._items[number]
        item = Item(kept.where, json.loads(zlib.decompress(kept.body)))
        return conversation_of(
            item, kept.key, kept.image, self._frame_of, region_tokens=self._region_tokens, box_frame=self._box_frame
        )
