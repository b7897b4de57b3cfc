"""Examples beside a page, for places that show pictures and tables but no pages of ours: MLflow's, above all.

    examples/01.jpg, 02.jpg, ...     pictures with their boxes drawn
    examples/examples.json           a row for each thing said of a picture; MLflow shows it as a table

They are those that the page shows first: chosen by the report, never by hand.
"""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from PIL import Image

FOLDER, TABLE_FILE = "examples", "examples.json"
MOST = 8
"""Pictures that are kept; a table names every thing said of these."""
_SCHEME = "data:image/jpeg;base64,"
_QUALITY = 80

Cell = str | float | bool


class Writer(Protocol):
    """What is used of a storage."""

    def write_bytes(self, path: str, body: bytes) -> None:
        """Writes a file."""


@dataclass(frozen=True)
class Example:
    """A picture, as a JPEG or as the data URL of one, and what is said of it: rows with equal keys in all examples."""

    picture: bytes | str
    rows: Sequence[Mapping[str, Cell]]


def write_examples(place: Writer, examples: Iterable[Example]) -> bool:
    """Writes the first `MOST` examples below a report's folder.

    Args:
        place: storage of the report.
        examples: in the page's order.

    Returns:
        Whether there were any.
    """
    columns: list[str] = []
    data: list[list[Cell]] = []
    for number, example in enumerate(islice(examples, MOST), start=1):
        name = f"{number:02d}.jpg"
        place.write_bytes(f"{FOLDER}/{name}", _bytes(example.picture))
        for row in example.rows:
            columns = columns or ["picture", *row]
            data.append([name, *(row[column] for column in columns[1:])])
    if data:
        body = json.dumps({"columns": columns, "data": data}, indent=1, ensure_ascii=False)
        # Text from the web may hold lone surrogates, which UTF-8 cannot carry.
        place.write_bytes(f"{FOLDER}/{TABLE_FILE}", (body + "\n").encode(errors="backslashreplace"))
    return bool(data)


def jpeg(image: Image.Image) -> bytes:
    """An RGB image as a JPEG."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_QUALITY)
    return stream.getvalue()


def _bytes(picture: bytes | str) -> bytes:
    return base64.b64decode(picture.removeprefix(_SCHEME)) if isinstance(picture, str) else picture
