"""Good data sets for the tests of validation: made ones with varied captions, and photographs of COCO."""

import io
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from cloc.data import fingerprints
from cloc.data.dataset import write_manifest
from cloc.data.schema import Manifest, Shard
from cloc.data.shards import Sample, ShardWriter, read_shard
from cloc.data.storage import open_storage
from cloc.data.tables import write_table

COCO = Path(__file__).parents[2] / "shared" / "data" / "coco_val2017_dev"
IMAGES, SHARD = 360, 90
AXES = ("x1", "y1", "x2", "y2")
Rows = list[dict[str, Any]]

LOOKS = (
    "small", "large", "red", "green", "blue", "yellow", "striped", "wooden", "old", "shiny", "painted", "broken", "wet",
    "folded", "open", "dusty",
)  # fmt: skip
THINGS = (
    "dog", "cat", "horse", "bicycle", "umbrella", "bottle", "chair", "laptop", "kite", "boat", "bench", "suitcase",
    "guitar", "teapot", "lantern", "ladder", "basket", "clock", "statue", "fountain", "scooter", "backpack", "mirror",
    "carpet", "candle", "window",
)  # fmt: skip
PLACES = (
    "in a quiet street", "on the beach in the evening", "at a café in the old town", "beside a river",
    "under a bridge at night", "in front of a brick wall", "on a kitchen table", "in the garden of a château",
    "near the entrance of a museum", "in the snow",
)  # fmt: skip
LINKS = ("next to", "behind", "in front of", "above", "below", "left of", "right of")
STARTS = ("", "a photo of ", "there is ", "a close view of ")


def write_good(path: Path) -> Path:
    """Writes the good set: a generated caption, an alt-text and a few detected regions an image."""
    rng, storage, shards = random.Random(7), open_storage(path), []
    for first in range(0, IMAGES, SHARD):
        name, writer = f"{len(shards):05d}", ShardWriter()
        captions: Rows = []
        regions: Rows = []
        for number in range(first, first + SHARD):
            key = f"img-{number:05d}"
            writer.add(Sample(key=key, image=picture(rng), suffix="jpg", meta={"source": "tests"}))
            phrases = [f"{rng.choice(LOOKS)} {rng.choice(THINGS)}" for _ in range(rng.randint(2, 5))]
            text = f"{rng.choice(STARTS)}a {phrases[0]}"
            for phrase in phrases[1:]:
                text += f" {rng.choice(LINKS)} a {phrase}"
            text += f" {rng.choice(PLACES)}" + rng.choice(("", "."))
            captions.append({"key": key, "text": text, "kind": "generated", "model": "captioner"})
            captions.append({"key": key, "text": f"{phrases[-1]} for sale", "kind": "alt_text", "model": ""})
            regions += [{"key": key, **box(rng), "text": phrase, **detected(rng, phrase)} for phrase in phrases]
        shards.append(writer.write(storage, name))
        write_table(storage, "captions", name, captions)
        write_table(storage, "regions", name, regions)
        write_fingerprints(path, shards[-1])
    write_manifest(storage, Manifest(shards=tuple(shards)))
    return path


def picture(rng: random.Random, *, format: str = "JPEG") -> bytes:
    image = Image.new("RGB", rng.choice(((64, 48), (48, 64), (56, 56))), tuple(rng.choices(range(256), k=3)))
    image.putpixel((rng.randrange(40), rng.randrange(40)), (0, 0, 0))
    stream = io.BytesIO()
    image.save(stream, format=format)
    return stream.getvalue()


def box(rng: random.Random) -> dict[str, float]:
    """Higher than wide, as things in photographs are, and anywhere."""
    width, height = rng.uniform(0.08, 0.35), rng.uniform(0.2, 0.7)
    x1, y1 = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return {"x1": x1, "y1": y1, "x2": x1 + width, "y2": y1 + height}


def detected(rng: random.Random, phrase: str) -> dict[str, Any]:
    return {"score": rng.betavariate(3, 4), "source": "detector", "label": phrase.split()[-1]}


def write_fingerprints(path: Path, shard: Shard) -> None:
    """The table that ingest writes; the perceptual hashes are drawn, since these pictures all look alike."""
    storage, rng = open_storage(path), random.Random(shard.sha256)
    with storage.open(shard.path) as stream:
        rows = [fingerprints.row(item.key, item.image, rng.getrandbits(64)) for item in read_shard(stream, source="")]
    write_table(storage, "fingerprints", shard.name, rows, input_hash=shard.sha256)


def write_coco(path: Path, *, images: int) -> Path:
    """The first photographs of the development set with their captions and boxes, as people made them."""
    lines = (COCO / "annotations.jsonl").read_text().splitlines()[:images]
    storage, shards = open_storage(path), []
    for first in range(0, images, 100):
        name, writer = f"{len(shards):05d}", ShardWriter()
        captions: Rows = []
        regions: Rows = []
        for line in lines[first : first + 100]:
            row = json.loads(line)
            key = Path(row["file"]).stem
            body = (COCO / "images" / Path(row["file"]).name).read_bytes()
            writer.add(Sample(key=key, image=body, suffix="jpg", meta={"source": "COCO"}))
            captions += [{"key": key, "text": text, "kind": "human", "model": ""} for text in row["captions"]]
            sides = (row["width"], row["height"]) * 2
            for region in row["regions"]:
                place = dict(
                    zip(AXES, (value / side for value, side in zip(region["box"], sides, strict=True)), strict=True)
                )
                human = {"score": 1.0, "source": "human", "label": region["text"] if region["kind"] == "class" else ""}
                regions.append({"key": key, **place, "text": region["text"], **human})
        shards.append(writer.write(storage, name))
        write_table(storage, "captions", name, captions)
        write_table(storage, "regions", name, regions)
        write_fingerprints(path, shards[-1])
    write_manifest(storage, Manifest(shards=tuple(shards)))
    return path
