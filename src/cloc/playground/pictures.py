"""Pictures of clients, in memory alone: decoded by the project's own checks, named by their content, and let go of
when the room is needed. Nothing that a client says is a path or a file's name.
"""

import asyncio
import io
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from typing import Generic, TypeVar

from PIL import Image

from cloc.data.images import decode_untrusted
from cloc.pages.pictures import fit
from cloc.playground import limits

V = TypeVar("V")
_QUALITY = 90


class Shelf(Generic[V]):
    """Values by key, within a budget: those that were not used for longest go first.

    Args:
        budget: bytes of all values; the newest one stays, however large.
    """

    def __init__(self, budget: int) -> None:
        self._budget, self._used = budget, 0
        self._values: OrderedDict[str, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> V | None:
        """The value, which now counts as used; None when it is not or no longer here."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: str, value: V, *, size: int) -> None:
        """Keeps a value of so many bytes."""
        self.drop(key)
        self._values[key] = (value, size)
        self._used += size
        while self._used > self._budget and len(self._values) > 1:
            _, (_, freed) = self._values.popitem(last=False)
            self._used -= freed

    def drop(self, key: str) -> None:
        """Lets go of a value, if it is here."""
        if (found := self._values.pop(key, None)) is not None:
            self._used -= found[1]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it is seen.

    Attributes:
        name: hash of the file.
        image: RGB, its long side at most `limits.KEPT_SIDE`.
        width, height: of the original, pixels.
    """

    name: str
    image: Image.Image
    width: int
    height: int


def read_picture(body: bytes) -> Picture | str:
    """A file's picture, or in a few words why there is none."""
    opened = decode_untrusted(body, max_pixels=limits.IMAGE_PIXELS)
    if isinstance(opened, str):
        return opened
    kept = fit(opened, side=limits.KEPT_SIDE, enlarge=False)
    return Picture(sha256(body).hexdigest()[:32], kept, opened.width, opened.height)


def as_jpeg(image: Image.Image, *, side: int, quality: int = _QUALITY) -> bytes:
    """The picture as a JPEG whose long side is at most `side` pixels."""
    sink = io.BytesIO()
    fit(image, side=side, enlarge=False).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


class Pictures:
    """The pictures that requests can name."""

    def __init__(self) -> None:
        self._shelf: Shelf[Picture] = Shelf(limits.PICTURES_BYTES)

    def __len__(self) -> int:
        return len(self._shelf)

    def get(self, name: str) -> Picture | None:
        """A picture by its name; None when it is not or no longer here."""
        return self._shelf.get(name)

    async def add(self, body: bytes) -> Picture | str:
        """Decodes and keeps a file's picture, or says why it cannot be used."""
        picture = await asyncio.to_thread(read_picture, body)
        if isinstance(picture, Picture):
            self._shelf.put(picture.name, picture, size=3 * picture.image.width * picture.image.height)
        return picture
