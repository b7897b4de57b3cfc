"""The models side by side: what a model folder is, and the ways to read regions with it.

Shapes: B images, M boxes an image, R boxes of all images, N tokens, D ViT width, E embedding width, S input side.
Boxes are xyxy in [0, 1] of the padded network input.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from cloc.errors import ConfigError
from cloc.evaluation.summary import slug
from cloc.model import factory
from cloc.model.factory import AnyCLOCModel
from cloc.model.processing import CLOCProcessor
from cloc.model.provenance import public_training, read_training, weights_digest
from cloc.tracking import local_model

_PROMPTS = 256  # padded boxes a call: a Prompter that pools over image tokens repeats them for each box

# Images a call on a CPU: activations that stay near the caches are faster than a large batch.
_CPU_BATCH = 32

Reader = Literal["crop", "roi_align", "masked", "prompter", "region_head"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of images, encoded.

    Attributes:
        embeds: normalised image embeddings (B, E).
        tokens_BND: spatial tokens.
        pooled_BND: what masked attention reads; None where nothing asks for it.
    """

    embeds: Floats
    tokens_BND: Tensor
    pooled_BND: Tensor | None


@dataclass(frozen=True)
class EvaluatedModel:
    """A model of the comparison, ready to encode.

    Attributes:
        name: of its row.
        folder: the folder, hub id or registered model that was named.
        source: what it was loaded from: of a registered model the folder of the version that the name meant then.
        training: see `read_training` and `public_training`.
        digest: sha256 of its weights.
        readers: ways to read regions that are asked for, of those that its objective trained and that any CLIP has.
    """

    name: str
    folder: str
    source: str
    training: Mapping[str, Any]
    digest: str
    readers: tuple[Reader, ...]
    model: AnyCLOCModel
    processor: CLOCProcessor
    device: torch.device

    @property
    def slug(self) -> str:
        """See `slug`."""
        return slug(self.name)

    @property
    def size(self) -> int:
        """Side of the network input, pixels."""
        return self.processor.image_size

    @property
    def grounds(self) -> bool:
        """Whether it was trained to find boxes."""
        return self.training["objective"] == "cloc" and self.model.has_prompter

    def pixels(self, pixels_BSS3: npt.NDArray[np.uint8]) -> Tensor:
        """Letterboxed uint8 images -> network input."""
        return self.processor.normalize(torch.from_numpy(pixels_BSS3).to(self.device))

    def encode_images(self, pixels_BSS3: npt.NDArray[np.uint8], *, batch_size: int) -> EncodedBatch:
        """Encodes letterboxed images."""
        keep_pooled = "masked" in self.readers
        encoded = [
            self.model.encode_image(self.pixels(chunk), keep_pooled=keep_pooled)
            for chunk in self._chunks(pixels_BSS3, batch_size=batch_size)
        ]
        pooled = [part.pooled_BND for part in encoded if part.pooled_BND is not None]
        return EncodedBatch(
            embeds=np.concatenate([_unit(part.embeds_BE) for part in encoded]),
            tokens_BND=torch.cat([part.tokens_BND for part in encoded]),
            pooled_BND=torch.cat(pooled) if pooled else None,
        )

    def embed_images(self, pixels_BSS3: npt.NDArray[np.uint8], *, batch_size: int) -> Floats:
        """Normalised image embeddings (B, E) alone; crops are read this way."""
        parts = [
            _unit(self.model.encode_image(self.pixels(chunk)).embeds_BE)
            for chunk in self._chunks(pixels_BSS3, batch_size=batch_size)
        ]
        return _rows(parts, width=self.model.embed_dim)

    def _chunks(self, pixels_BSS3: npt.NDArray[np.uint8], *, batch_size: int) -> Iterator[npt.NDArray[np.uint8]]:
        size = batch_size if self.device.type == "cuda" else min(batch_size, _CPU_BATCH)
        for first in range(0, len(pixels_BSS3), size):
            yield pixels_BSS3[first : first + size]

    def embed_texts(self, texts: Sequence[str], *, batch_size: int) -> Floats:
        """Normalised text embeddings (T, E). Texts of about equal length are encoded together."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = [
            _unit(self.model.encode_text(self.processor.tokenize([texts[i] for i in chunk]).to(self.device)))
            for chunk in (order[first : first + batch_size] for first in range(0, len(order), batch_size))
        ]
        rows = _rows(parts, width=self.model.embed_dim)
        restored = np.empty_like(rows)
        restored[order] = rows
        return restored

    def read_regions(self, encoded: EncodedBatch, boxes: Sequence[npt.NDArray[np.floating]], reader: Reader) -> Floats:
        """Normalised region embeddings (R, E) by any reader but "crop", in the order of images and their boxes."""
        reads = {"roi_align": self.model.embed_roi, "masked": self.model.embed_masked}
        tokens_BND = encoded.pooled_BND if reader == "masked" else encoded.tokens_BND
        assert tokens_BND is not None
        prompts = [torch.from_numpy(np.asarray(rows, dtype=np.float32)) for rows in boxes]
        read = reads.get(reader, self.model.embed_boxes)
        return _prompt(read, tokens_BND, prompts, width=self.model.embed_dim, normalized=True)

    def ground(self, tokens_BND: Tensor, texts: Sequence[Floats]) -> Floats:
        """Boxes (R, 4), padded, of text embeddings (M, E) of each image, in order."""
        prompts = [torch.from_numpy(rows) for rows in texts]
        return _prompt(self.model.ground_texts, tokens_BND, prompts, width=4, normalized=False)


def load_models(models: Mapping[str, str], *, device: str, readers: Sequence[str] = ()) -> list[EvaluatedModel]:
    """Loads the models of a comparison, in order.

    Args:
        models: row name -> folder that pre-training wrote, folder or hub id of any CLIP or SigLIP, or a registered
            model ("models:/cloc@champion").
        device: "auto" (CUDA when there is any), "cpu", "cuda", or one GPU, as "cuda:1".
        readers: ways to read regions; empty takes all that a model has.

    Raises:
        ConfigError: there are none, a folder is not a model's, two names cannot be told apart in metric names, or a
            reader is one of no model.
    """
    if not models:
        raise ConfigError("evaluation: no models given; name at least one as NAME=FOLDER")
    slugs = [slug(name) for name in models]
    for name, other in zip(models, slugs, strict=True):
        if not other or slugs.count(other) > 1:
            raise ConfigError(f"evaluation: the model name {name!r} is empty or like another one; give distinct names")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = [_load(name, folder, torch.device(device)) for name, folder in models.items()]
    return _with_readers(loaded, readers)


def _with_readers(models: Sequence[EvaluatedModel], wanted: Sequence[str]) -> list[EvaluatedModel]:
    for reader in wanted:
        if not any(reader in model.readers for model in models):
            has = "; ".join(f"{model.name} has {', '.join(model.readers)}" for model in models)
            raise ConfigError(
                f"evaluation.readers: no model of this comparison can read regions by {reader!r}: {has}. Leave it out, "
                "or evaluate a model that was trained with it"
            )
    return [
        replace(model, readers=tuple(reader for reader in model.readers if not wanted or reader in wanted))
        for model in models
    ]


def _load(name: str, folder: str, device: torch.device) -> EvaluatedModel:
    source = local_model(folder)
    training = read_training(source)
    # Plain matmul and softmax: no slower here in float32, and the same on every machine.
    loaded = factory.load_any(source, device=device, attention="eager")
    training = training or public_training(has_regions=loaded.has_regions)
    readers: list[Reader] = ["crop", "roi_align", "masked"]
    if training["objective"] == "cloc":
        readers.append("prompter" if loaded.model.has_prompter else "region_head")
    return EvaluatedModel(
        name=name,
        folder=str(folder),
        source=source,
        training=training,
        digest=weights_digest(source),
        readers=tuple(readers),
        model=loaded.model,
        processor=loaded.processor,
        device=device,
    )


def _prompt(
    read: Callable[[Tensor, Tensor], Tensor],
    tokens_BND: Tensor,
    prompts: Sequence[Tensor],
    *,
    width: int,
    normalized: bool,
) -> Floats:
    """Calls `read` on images with about equally many prompts together, so that little is spent on padding."""
    total = sum(map(len, prompts))
    offsets = np.cumsum([0, *map(len, prompts)])
    result = np.zeros((total, width), dtype=np.float32)
    pieces = [  # (image, first prompt, last prompt): an image with very many is read in pieces
        (image, first, min(first + _PROMPTS, len(rows)))
        for image, rows in enumerate(prompts)
        for first in range(0, len(rows), _PROMPTS)
    ]
    pieces.sort(key=lambda piece: piece[1] - piece[2])
    start = 0
    while start < len(pieces):
        longest = pieces[start][2] - pieces[start][1]
        group = pieces[start : start + max(1, _PROMPTS // longest)]
        start += len(group)
        padded = torch.zeros(len(group), longest, prompts[0].shape[1])
        for row, (image, first, last) in enumerate(group):
            padded[row, : last - first] = prompts[image][first:last]
        output = read(tokens_BND[[image for image, _, _ in group]], padded.to(tokens_BND.device))
        values = (F.normalize(output.float(), dim=-1) if normalized else output.float()).cpu().numpy()
        for row, (image, first, last) in enumerate(group):
            result[offsets[image] + first : offsets[image] + last] = values[row, : last - first]
    return result


def _unit(x: Tensor) -> Floats:
    unit: Floats = F.normalize(x.float(), dim=-1).cpu().numpy()
    return unit


def _rows(parts: Sequence[Floats], *, width: int) -> Floats:
    return np.concatenate(parts) if parts else np.zeros((0, width), dtype=np.float32)
