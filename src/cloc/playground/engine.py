"""A model that answers many requests at once: what they ask goes through queues, a batch at a time.

Regions are read as evaluation reads them (`cloc.evaluation.models`), so that a public CLIP stands beside CLOC by the
same rules. Shapes: R regions, T texts, E embedding width, S side of the network input.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cloc.boxes import Letterbox
from cloc.data.transforms import letterbox
from cloc.evaluation.encoding import crop
from cloc.evaluation.heatmap import Heat, similarity
from cloc.evaluation.models import EncodedBatch, EvaluatedModel, Reader
from cloc.playground import limits
from cloc.playground.batching import Batcher
from cloc.playground.meters import Meters
from cloc.playground.pictures import Picture, Shelf

Floats = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]
Point = tuple[float, float]

_TRAINED = ("prompter", "region_head")  # readers that CLOC trains, with a temperature of their own
_AROUND = 1 / 6  # least side of the box around a point, share of the input, where a model takes no points
_PATCHES = 2  # and in patches
_HEAT_BATCH = 32  # windows a call, for the reader that encodes each
_HEATS = 64  # heat maps that may wait


@dataclass(frozen=True)
class Read:
    """Regions that were read.

    Attributes:
        embeds: normalised, (R, E).
        boxes: what was read of the image: a point's is the box around it where the model takes no points.
    """

    embeds: Floats
    boxes: list[Box]


@dataclass(frozen=True)
class Found:
    """Where a phrase is.

    Attributes:
        box: the model's own answer; None for a model that was not trained to find boxes.
        heat: its cosines over the image.
    """

    box: Box | None
    heat: Heat


@dataclass(frozen=True)
class _Prompt:
    """A region to read of an encoded image: a padded box, or a padded point."""

    encoded: EncodedBatch
    reader: Reader
    place: tuple[float, ...]


@dataclass(frozen=True)
class _Search:
    """A phrase to find."""

    picture: Picture
    encoded: EncodedBatch
    reader: Reader
    phrase: str
    text_E: Floats


class Engine:
    """A model behind queues.

    Args:
        model: with all its readers.
        pool: of one thread, which all models share: two that compute at the same time only wait for each other.
        largest: items a batch.
        meters: counts batches.
    """

    def __init__(self, model: EvaluatedModel, pool: Executor, *, largest: int, meters: Meters) -> None:
        self.model = model
        self._texts: Shelf[Floats] = Shelf(limits.TEXTS_BYTES)
        self._encoded: Shelf[asyncio.Task[EncodedBatch]] = Shelf(limits.ENCODED_BYTES)

        def queue(kind: str, work: Any, *, most: int = largest, limit: int = 0) -> Batcher[Any, Any]:
            tell = meters.batches.labels(model.name, kind).observe
            made: Batcher[Any, Any] = Batcher(work, pool, largest=most, limit=limit or limits.QUEUE, tell=tell)
            meters.waiting.labels(model.name, kind).set_function(lambda: made.waiting)
            return made

        self._images: Batcher[npt.NDArray[np.uint8], EncodedBatch] = queue("images", self._encode_images)
        self._crops: Batcher[npt.NDArray[np.uint8], Floats] = queue("crops", self._embed_images)
        self._words: Batcher[str, Floats] = queue("texts", self._embed_texts, limit=limits.TEXTS_QUEUE)
        self._prompts: Batcher[_Prompt, Floats] = queue("regions", self._read)
        self._searches: Batcher[_Search, Found] = queue("phrases", self._find, most=1, limit=_HEATS)

    @property
    def name(self) -> str:
        """Of the model, as it was given."""
        return self.model.name

    @property
    def reader(self) -> Reader:
        """What reads regions unless a request says otherwise: what the model was trained with, else crops."""
        return next((reader for reader in self.model.readers if reader in _TRAINED), "crop")

    @property
    def dense_reader(self) -> Reader:
        """The same where very many regions are read: of heat maps and of the index."""
        return next((reader for reader in self.model.readers if reader in _TRAINED), "masked")

    @property
    def takes_points(self) -> bool:
        """Whether it was trained with points; else a box around a point is read."""
        return self.model.grounds and bool((self.model.model.config.cloc or {}).get("points"))

    def scale(self, reader: Reader) -> float:
        """What cosines are multiplied by before the softmax over labels: the temperature that the reader learnt."""
        network = self.model.model
        scale = network.region_logit_scale if reader in _TRAINED else network.logit_scale
        return float(scale.detach().exp())

    async def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Normalised embeddings (T, E). Raises Busy."""
        known = {text: row for text in texts if (row := self._texts.get(text)) is not None}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for text, row in zip(new, await self._words.submit_all(new), strict=True):
            known[text] = row
            self._texts.put(text, row, size=row.nbytes)
        return np.stack([known[text] for text in texts])

    async def read(self, picture: Picture, regions: Sequence[Box | Point], reader: Reader) -> Read:
        """Embeddings of regions: boxes of four numbers and points of two, in [0, 1] of the picture. Raises Busy."""
        frame = self._frame(picture)
        native = self.takes_points and reader == "prompter"
        boxes = [region if len(region) == 4 else self._around(region, frame) for region in regions]
        if reader == "crop":
            pixels = await asyncio.to_thread(self._cut, picture, boxes)
            return Read(np.stack(await self._crops.submit_all(pixels)), boxes)
        encoded = await self.encode(picture)
        padded = frame.to_padded(boxes)
        prompts = []
        for region, row in zip(regions, padded, strict=True):
            place = tuple(map(float, row))
            if native and len(region) == 2:
                place = tuple(map(float, frame.to_padded([[*region, *region]])[0, :2]))
            prompts.append(_Prompt(encoded, reader, place))
        return Read(np.stack(await self._prompts.submit_all(prompts)), boxes)

    async def encode(self, picture: Picture) -> EncodedBatch:
        """The picture through the model, once for all requests. Raises Busy."""
        task = self._encoded.get(picture.name)
        if task is None:
            task = asyncio.ensure_future(self._encode(picture))
            self._encoded.put(picture.name, task, size=self._encoded_bytes())
            task.add_done_callback(lambda done: self._forget(picture.name, done))
        return await asyncio.shield(task)

    async def find(self, picture: Picture, phrase: str, reader: Reader) -> Found:
        """Where a phrase is in a picture. Raises Busy."""
        encoded, (text_E,) = await asyncio.gather(self.encode(picture), self.embed_texts([phrase]))
        return await self._searches.submit(_Search(picture, encoded, reader, phrase, text_E))

    def _frame(self, picture: Picture) -> Letterbox:
        return Letterbox(picture.image.width, picture.image.height, self.model.size)

    def _around(self, point: Sequence[float], frame: Letterbox) -> Box:
        """The box around a point, as heat maps read them."""
        side = max(_AROUND, _PATCHES / self.model.model.grid)
        x, y = (float(value) for value in frame.to_padded([[*point, *point]])[0, :2])
        half = side / 2
        x1, y1, x2, y2 = (float(v) for v in frame.from_padded([[x - half, y - half, x + half, y + half]])[0])
        return x1, y1, x2, y2

    def _cut(self, picture: Picture, boxes: Sequence[Box]) -> list[npt.NDArray[np.uint8]]:
        return [letterbox(crop(picture.image, box), size=self.model.size)[0] for box in boxes]

    async def _encode(self, picture: Picture) -> EncodedBatch:
        pixels_SS3, _ = await asyncio.to_thread(letterbox, picture.image, size=self.model.size)
        return await self._images.submit(pixels_SS3)

    def _forget(self, name: str, done: "asyncio.Task[EncodedBatch]") -> None:
        if done.cancelled() or done.exception():
            self._encoded.drop(name)

    def _encoded_bytes(self) -> int:
        network = self.model.model
        tokens = network.grid**2 + network.prefix_tokens
        return 2 * 4 * tokens * int(network.config.vision_config.hidden_size)

    @torch.inference_mode()
    def _encode_images(self, pixels: Sequence[npt.NDArray[np.uint8]]) -> list[EncodedBatch]:
        batch = self.model.encode_images(np.stack(pixels), batch_size=len(pixels))
        # Copies: a row must not keep its whole batch in memory.
        return [
            EncodedBatch(
                batch.embeds[row : row + 1].copy(),
                batch.tokens_BND[row : row + 1].clone(),
                None if batch.pooled_BND is None else batch.pooled_BND[row : row + 1].clone(),
            )
            for row in range(len(pixels))
        ]

    @torch.inference_mode()
    def _embed_images(self, pixels: Sequence[npt.NDArray[np.uint8]]) -> list[Floats]:
        return list(self.model.embed_images(np.stack(pixels), batch_size=len(pixels)))

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> list[Floats]:
        return list(self.model.embed_texts(texts, batch_size=len(texts)))

    @torch.inference_mode()
    def _read(self, prompts: Sequence[_Prompt]) -> list[Floats]:
        """Prompts of one kind are read in one call, each image's together."""
        rows: dict[int, Floats] = {}
        kinds = {(prompt.reader, len(prompt.place)) for prompt in prompts}
        for reader, numbers in sorted(kinds):
            places: dict[int, list[int]] = {}
            for number, prompt in enumerate(prompts):
                if (prompt.reader, len(prompt.place)) == (reader, numbers):
                    places.setdefault(id(prompt.encoded), []).append(number)
            order = [number for group in places.values() for number in group]
            encoded = _joined([prompts[group[0]].encoded for group in places.values()])
            asked = [np.array([prompts[number].place for number in group]) for group in places.values()]
            read = self._read_points if numbers == 2 else self.model.read_regions
            rows.update(zip(order, read(encoded, asked, reader), strict=True))
        return [rows[number] for number in range(len(prompts))]

    def _read_points(self, encoded: EncodedBatch, points: Sequence[npt.NDArray[np.floating]], reader: Reader) -> Floats:
        parts = []
        for row, places in enumerate(points):
            asked = torch.from_numpy(places).float()[None].to(self.model.device)
            read = self.model.model.embed_points(encoded.tokens_BND[row : row + 1], asked)[0]
            parts.append(F.normalize(read.float(), dim=-1).cpu().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def _find(self, searches: Sequence[_Search]) -> list[Found]:
        return [self._found(item) for item in searches]

    def _found(self, item: _Search) -> Found:
        image = item.picture.image
        (heat,) = similarity(
            self.model, item.reader, image, [item.phrase], batch_size=_HEAT_BATCH, encoded=item.encoded
        )
        if not self.model.grounds:
            return Found(None, heat)
        padded = self.model.ground(item.encoded.tokens_BND, [item.text_E[None]])
        x1, y1, x2, y2 = (float(side) for side in self._frame(item.picture).from_padded(padded)[0])
        # The box head gives four numbers; nothing but training has it put them in order.
        return Found((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), heat)


def _joined(parts: Sequence[EncodedBatch]) -> EncodedBatch:
    pooled = [part.pooled_BND for part in parts if part.pooled_BND is not None]
    return EncodedBatch(
        np.concatenate([part.embeds for part in parts]),
        torch.cat([part.tokens_BND for part in parts]),
        torch.cat(pooled) if pooled else None,
    )
