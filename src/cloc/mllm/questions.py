"""What an adapter is asked about images that it was not tuned on: the test split's questions, and those of files.

Wordings and choices are the same whatever was tuned, and with whatever seed.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cloc.boxes import Letterbox
from cloc.config.schema import AdapterConfig
from cloc.data.transforms import Picture as EncodedPicture
from cloc.data.transforms import letterbox
from cloc.mllm.api import read_image
from cloc.mllm.evaluation import Questions
from cloc.mllm.foreign import ForeignImage, read_referring
from cloc.mllm.instructions import Facts, PhrasePool, evaluation_conversations
from cloc.mllm.model import Adapter
from cloc.mllm.splits import Splits
from cloc.mllm.stream import Picture, picture_of

_SHOWN = 24  # pictures that are kept for the report


class EvaluationQuestions:
    """The questions of an evaluation.

    Args:
        adapter: that is asked.
        settings: section `adapter`.
        splits: whose test images are asked about.
        pool: phrases of the corpus.
        rank, ranks: which process of how many asks: about every so many-th image.

    Attributes:
        shown: pictures of the first test images, by key, once they have been asked about.
        places: where each image stands among those of all ranks, by source and key, once it has been asked about.
    """

    def __init__(
        self,
        adapter: Adapter,
        settings: AdapterConfig,
        splits: Splits,
        pool: PhrasePool,
        *,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._rank, self._ranks = rank, ranks
        self._size, self._tokens = adapter.image_size, adapter.sampler is not None
        self._settings, self._splits, self._pool = settings, splits, pool
        self.shown: dict[str, Image.Image] = {}
        self.places: dict[tuple[str, str], tuple[int, int]] = {}

    def __iter__(self) -> Iterator[Questions]:
        """All of them, an image at a time.

        Raises:
            DataError: an image cannot be decoded, or a file or what it names cannot be read.
        """
        yield from self._own()
        for number, file in enumerate(self._settings.test_files, start=1):
            yield from self._of_file(Path(file), part=number)

    def _own(self) -> Iterator[Questions]:
        weights = self._settings.tasks.weights
        for number, sample in enumerate(islice(self._splits.test_samples(), self._settings.eval_images)):
            if number % self._ranks != self._rank:
                continue
            picture = picture_of(sample, image_size=self._size)
            if number < _SHOWN:
                self.shown[picture.key] = EncodedPicture(sample.sample.image).rgb()
            asked = evaluation_conversations(
                picture.facts,
                tasks=weights,
                region_tokens=self._tokens,
                pool=self._pool,
                rng=np.random.default_rng((0, number)),
            )
            self.places["", picture.key] = 0, number
            yield Questions(picture, asked)

    def _of_file(self, file: Path, *, part: int) -> Iterator[Questions]:
        """Expressions of a RefCOCO-style file, of its `adapter.test_file_split` where it has splits."""
        frame_of = partial(Letterbox, size=self._size)
        found = read_referring(
            file,
            images=self._settings.test_file_images or file.parent,
            frame_of=frame_of,
            split=self._settings.test_file_split,
        )
        chosen = islice(enumerate(found), self._rank, self._settings.eval_images, self._ranks)
        for number, item in chosen:
            self.places[file.stem, item.key] = part, number
            yield Questions(_foreign_picture(item, image_size=self._size), item.conversations, source=file.stem)


def _foreign_picture(item: ForeignImage, *, image_size: int) -> Picture:
    pixels_SS3, frame = letterbox(read_image(item.image), size=image_size)
    return Picture(item.key, torch.from_numpy(pixels_SS3), frame, Facts(item.key, (), []))
