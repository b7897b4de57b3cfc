"""The demo's classification set: pictures of one kind of object each, as a WebDataset tar with class numbers.

classes/classnames.txt   the names of all trained kinds, one a line
classes/test/0.tar       <key>.jpg + <key>.json with `cls`, the number of the kind
"""

import json
import zlib

import numpy as np

from cloc.data.scenes.render import encode_jpeg, render
from cloc.data.scenes.splits import LICENCE, SOURCE
from cloc.data.scenes.vocabulary import TRAINED_KINDS, Kind, trained_pairs
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import Storage
from cloc.stage import fingerprint

FOLDER = "classes"
NAMES_FILE, TAR_FILE, RECORD_FILE = "classnames.txt", "test/0.tar", "made_by.json"
# Raise it whenever the same settings give other pictures.
_VERSION = 1
_QUALITY = 90


def write_classes(
    storage: Storage, *, images: int, seed: int, image_size: int, kinds: tuple[Kind, ...] = TRAINED_KINDS
) -> int:
    """Writes the set, unless it is there and was made so; returns the number of pictures rendered.

    Args:
        storage: folder of the set.
        images: pictures a kind, at least 1.
        seed: of everything random.
        image_size: long side, pixels.
        kinds: what is shown, in tints that training may show.
    """
    settings = fingerprint(_VERSION, images, seed, image_size, [kind.name for kind in kinds])
    record = (json.dumps({"tool": "cloc data scenes", "hash": settings}) + "\n").encode()
    if storage.exists(RECORD_FILE) and storage.read_bytes(RECORD_FILE) == record:
        return 0
    storage.delete(RECORD_FILE)
    writer = ShardWriter()
    for index in range(images):
        for number, kind in enumerate(kinds):
            writer.add(_picture(kind, number=number, index=index, seed=seed, image_size=image_size))
    storage.write_bytes(NAMES_FILE, "".join(f"{kind.name}\n" for kind in kinds).encode())
    storage.write_bytes(TAR_FILE, writer.finish())
    storage.write_bytes(RECORD_FILE, record)
    return images * len(kinds)


def _picture(kind: Kind, *, number: int, index: int, seed: int, image_size: int) -> Sample:
    """A close-up of a kind: one object, or two of it, so that the class is never in doubt."""
    rng = np.random.default_rng([seed, zlib.crc32(FOLDER.encode()), number, index])
    pairs = [pair for pair in trained_pairs() if pair[0] == kind]
    scene = render(rng, pairs=pairs, size=image_size, closeup_share=1.0)
    meta = {"cls": number, "source": SOURCE, "licence": LICENCE}
    return Sample(f"{FOLDER}-{index:04d}-{number:03d}", encode_jpeg(scene.pixels, quality=_QUALITY), "jpg", meta)
