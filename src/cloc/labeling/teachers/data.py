"""What teachers are fitted on: pictures of one size with what people said of them, from any labelled split.

Images are stretched to the square, as OWL-ViT takes them: boxes are the same shares of both. Shapes: S side in pixels,
G boxes of an image.
"""

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cloc import boxes
from cloc.data.dataset import Dataset, LabeledSample
from cloc.data.order import shuffled
from cloc.errors import DataError
from cloc.labeling.captioners import Prompt
from cloc.labeling.images import BadImageError, decode
from cloc.labeling.text import clean
from cloc.labeling.worker import Item

_THOUSAND = 1000


@dataclass(frozen=True)
class Picture:
    """One image with its labels.

    Attributes:
        key: of the sample.
        pixels_SS3: uint8.
        captions: people's captions, lower-cased; may be empty.
        phrases: noun phrases of the captions.
        prompt: what a captioner is given besides the image: its alt-text, as a prompt; "" for nothing.
        boxes_G4: people's boxes, xyxy in [0, 1], float32; may be none.
        texts: what each box is described by.
        labels: class name of each box; "" where there is none.
    """

    key: str
    pixels_SS3: npt.NDArray[np.uint8]
    captions: tuple[str, ...]
    phrases: tuple[str, ...]
    prompt: str
    boxes_G4: npt.NDArray[np.float32]
    texts: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class PictureSettings:
    """How images are read.

    Attributes:
        size: S.
        min_side, max_pixels: limits on images, pixels.
        min_box_side: boxes with a shorter side, as a share of the image, are left out.
        held_out: share of the images that is kept for the evaluation.
    """

    size: int
    min_side: int
    max_pixels: int
    min_box_side: float
    held_out: float


class Pictures:
    """The usable images of a labelled split, in two parts told apart by the key: to learn from, and held out.

    Args:
        data: the split.
        settings: how images are read.
        phrases: noun phrases of an image's captions.
        prompts: a captioner's prompt for an image.
        cache: images that are kept decoded, and shuffled together. A split of no more is decoded once; of a larger one,
            every epoch decodes and shuffles anew.
    """

    def __init__(
        self,
        data: Dataset,
        settings: PictureSettings,
        *,
        phrases: Callable[[tuple[str, ...]], list[str]],
        cache: int,
        prompts: Callable[[Item], Prompt] = lambda item: Prompt("", ""),
    ) -> None:
        self._data, self._settings, self._phrases, self._cache = data, settings, phrases, cache
        self._prompts = prompts
        self._kept: list[Picture] | None = None
        self.unusable = 0

    def epoch(self, rng: np.random.Generator) -> Iterator[Picture]:
        """The images to learn from, once, in random order."""
        if self._data.manifest.images > self._cache:
            shards = self._data.manifest.shards
            order = [shards[place] for place in rng.permutation(len(shards))]
            stream = (sample for shard in order for sample in self._data.read(shard))
            yield from shuffled(self._usable(stream, held_out=False), rng=rng, buffer=self._cache)
            return
        if self._kept is None:
            self._kept = list(self._usable(self._data.read_all(), held_out=False))
        for place in rng.permutation(len(self._kept)):
            yield self._kept[place]

    def batches(self, size: int, *, seed: int, keep: Callable[[Picture], bool]) -> Iterator[list[Picture]]:
        """Endless batches of pictures that `keep` takes, epoch after epoch.

        Raises:
            DataError: an epoch has none.
        """
        waiting: list[Picture] = []
        for epoch in itertools.count():
            kept = 0
            for picture in filter(keep, self.epoch(np.random.default_rng((seed, epoch)))):
                kept += 1
                waiting.append(picture)
                if len(waiting) == size:
                    yield waiting
                    waiting = []
            if not kept:
                raise DataError(
                    f"{self._data.images.url}: no image has what a teacher learns from; teachers need human captions "
                    "and human boxes with texts"
                )

    def held_out(self) -> Iterator[LabeledSample]:
        """The samples to evaluate on, in order."""
        return (sample for sample in self._data.read_all() if self.is_held_out(sample.sample.key))

    def is_held_out(self, key: str) -> bool:
        """Whether an image is for the evaluation: by its key alone, so that both teachers keep the same ones."""
        return zlib.crc32(key.encode()) % _THOUSAND < _THOUSAND * self._settings.held_out

    def texts(self) -> Iterator[str]:
        """Captions and box texts to learn from; reads tables alone, no image."""
        for shard in self._data.manifest.shards:
            captions, regions = self._data.rows("captions", shard), self._data.rows("regions", shard)
            for key in dict.fromkeys((*captions, *regions)):
                if not self.is_held_out(key):
                    yield from _human_captions(captions.get(key, ()))
                    yield from (clean(row["text"]) for row in regions.get(key, ()) if row["source"] == "human")

    def _usable(self, samples: Iterator[LabeledSample], *, held_out: bool) -> Iterator[Picture]:
        for sample in samples:
            if self.is_held_out(sample.sample.key) != held_out:
                continue
            try:
                yield self._picture(sample)
            except BadImageError:
                self.unusable += 1  # told in the stage's result

    def _picture(self, sample: LabeledSample) -> Picture:
        settings = self._settings
        image = decode(sample.sample.image, min_side=settings.min_side, max_pixels=settings.max_pixels)
        square = image.resize((settings.size, settings.size), Image.Resampling.BICUBIC)
        captions = tuple(_human_captions(sample.captions))
        rows = [row for row in sample.regions if row["source"] == "human" and (row["text"] or row["label"])]
        usable = [
            row for row in rows
            if boxes.problem([row["x1"], row["y1"], row["x2"], row["y2"]], min_side=settings.min_box_side) is None
        ]  # fmt: skip
        return Picture(
            key=sample.sample.key,
            pixels_SS3=np.array(square),
            captions=captions,
            phrases=tuple(self._phrases(captions)),
            prompt=self._prompts(Item(image, sample)).text,
            boxes_G4=np.array(
                [[row["x1"], row["y1"], row["x2"], row["y2"]] for row in usable], dtype=np.float32
            ).reshape(-1, 4),
            texts=tuple(clean(row["text"] or row["label"]).lower() for row in usable),
            labels=tuple(clean(row["label"] or "").lower() for row in usable),
        )


def _human_captions(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        text = clean(row["text"] or "").lower() if row["kind"] == "human" else ""
        if text:
            yield text
