"""The steps that `train_step.py` compares: bare loops around the models of others, and our trainer's own.

Each makes one whole step when it is told to: forward, backward, clipping, update. The bare loops are given the least
there is to do: network input that lies on the device already, one group of parameters, AdamW in its fastest form, and
no look at the loss. Our trainer is the real one with all that it does in a step; it runs in a thread of its own and
waits for its next batch until it is told to step.
"""

import contextlib
import gc
import io
import itertools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from cloc.config import Config
from cloc.data.batches import Batch
from cloc.data.dataset import write_manifest
from cloc.data.schema import Manifest
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import open_storage
from cloc.data.tables import write_table
from cloc.model import factory
from cloc.model.configuration import AnyCLOCConfig
from cloc.model.processing import normalize, train_tokenizer
from cloc.training.distributed import Rank
from cloc.training.job import TrainingJob
from cloc.training.preemption import Preemption
from cloc.training.task import Objective
from cloc.training.trainer import Trainer

REGION_TOKENS = 4
CONTEXT = 77
WIDTH, HEIGHT = 500, 375
_EOS = 1  # of the tokenizer below


@dataclass(frozen=True)
class Case:
    """What a step works on.

    Attributes:
        config: all settings; `train.precision` and `train.gradient_checkpointing` hold for every step.
        images: of this process.
        tokens: of a caption, its marks included.
        rank: this process.
        folder: with `tokenizer/`, and room for what the trainer writes.
        data: data set that the trainer opens.
        loader: it reads, decodes and collates its batches; else one batch that is in memory is used again.
    """

    config: Config
    images: int
    tokens: int
    rank: Rank
    folder: Path
    data: Path
    loader: bool = False

    @property
    def texts(self) -> int:
        """Distinct region texts of a batch: each describes two regions."""
        return max(1, self.images * self.config.loss.max_regions // 2)


class Steps(ABC):
    """Something that makes training steps. Use it as a context."""

    name: str

    @abstractmethod
    def step(self) -> None:
        """One step; on a GPU it may still run."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of what it holds."""

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class BareLoop(Steps):
    """Forward, backward, clipping, AdamW, over a model that returns its loss."""

    def __init__(self, case: Case, model: torch.nn.Module) -> None:
        train, device = case.config.train, case.rank.device
        self._model, self._device, self._precision = model.to(device).train(), device, train.precision
        self._clip = train.grad_clip
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay, fused=True
        )
        batch = random_batch(case)
        self._pixels, self._ids = normalize(batch.pixels_BSS3).to(device), batch.caption_ids_BL.to(device)

    @abstractmethod
    def loss(self, pixels_B3SS: Tensor, ids_BL: Tensor) -> Tensor:
        """The library's own contrastive loss."""

    def step(self) -> None:
        with factory.autocast(self._precision, self._device):
            loss = self.loss(self._pixels, self._ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        del self._model, self._optimizer, self._pixels, self._ids


class TransformersClip(BareLoop):
    """CLIPModel of transformers, of the same sizes, with its own loss."""

    name = "CLIP of transformers, bare loop"

    def __init__(self, case: Case) -> None:
        ours, train = architecture(case), case.config.train
        config = CLIPConfig(
            text_config=ours.text_config.to_dict(),
            vision_config=ours.vision_config.to_dict(),
            projection_dim=ours.projection_dim,
        )
        config._attn_implementation = factory.attention(train.precision, case.rank.device)
        torch.manual_seed(0)
        model = CLIPModel(config)
        if train.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        super().__init__(case, model)

    def loss(self, pixels_B3SS: Tensor, ids_BL: Tensor) -> Tensor:
        return self._model(input_ids=ids_BL, pixel_values=pixels_B3SS, return_loss=True).loss


class OpenClip(BareLoop):
    """open_clip's CLIP of the same sizes with its ClipLoss; texts must have the full length."""

    name = "CLIP of open_clip, bare loop"

    def __init__(self, case: Case) -> None:
        import open_clip  # installed for this comparison alone

        sizes = case.config.model
        torch.manual_seed(0)
        model = open_clip.CLIP(
            embed_dim=sizes.embed_dim,
            vision_cfg={
                "image_size": sizes.vision.image_size,
                "patch_size": sizes.vision.patch_size,
                "width": sizes.vision.width,
                "layers": sizes.vision.layers,
                "head_width": sizes.vision.width // sizes.vision.heads,
                "mlp_ratio": sizes.vision.mlp_ratio,
            },
            text_cfg={
                "context_length": case.tokens,
                "vocab_size": sizes.text.vocab_size,
                "width": sizes.text.width,
                "layers": sizes.text.layers,
                "heads": sizes.text.heads,
                "mlp_ratio": sizes.text.mlp_ratio,
            },
        )
        model.set_grad_checkpointing(case.config.train.gradient_checkpointing)
        self._contrastive = open_clip.ClipLoss()
        super().__init__(case, model)

    def loss(self, pixels_B3SS: Tensor, ids_BL: Tensor) -> Tensor:
        return self._contrastive(*self._model(pixels_B3SS, ids_BL))

    def step(self) -> None:
        super().step()
        with torch.no_grad():  # as its training loop does
            self._model.logit_scale.clamp_(0, math.log(100))


class OurTrainer(Steps):
    """Our trainer, step by step.

    Args:
        name: of the row.
        case: what it works on.
        objective: "clip" has the region losses off.
    """

    def __init__(self, name: str, case: Case, objective: Objective) -> None:
        self.name, self._gate = name, _Gate()
        output = case.folder / f"run-{len(list(case.folder.glob('run-*')))}-{case.rank.rank}"
        job = TrainingJob(
            config=case.config.model_dump(mode="json"),
            objective=objective,
            steps=case.config.train.steps,
            images=str(case.data),
            captions=str(case.data),
            regions=str(case.data),
            data_digest="",
            tokenizer=str(case.folder / "tokenizer"),
            output=str(output),
        )
        job.save()
        trainer = _Stepwise(job, case.rank, preemption=Preemption())
        trainer.gate, trainer.batch = self._gate, None if case.loader else random_batch(case)
        if trainer.batch and case.rank.device.type == "cuda":
            trainer.batch = trainer.batch.pinned()
        self._thread = threading.Thread(target=self._gate.run, args=(trainer,), daemon=True)
        self._thread.start()
        del trainer
        self._gate.ready()

    def step(self) -> None:
        self._gate.step()

    def close(self) -> None:
        self._gate.close()
        self._thread.join()


class _Over(BaseException):
    """Ends the trainer."""


class _Gate:
    """Lets the trainer's thread go on by a step."""

    def __init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._closed = False

    def run(self, trainer: Trainer) -> None:
        """The trainer's thread."""
        if trainer.rank.device.type == "cuda":
            torch.cuda.set_device(trainer.rank.device)
        try:
            trainer.run()
        except _Over:
            pass
        except BaseException as error:  # the main thread raises it
            self._error = error.with_traceback(None)  # whose frames would hold the model
        del trainer
        self._done.release()

    def turn(self) -> None:
        """In the trainer's thread, between steps: the last one is done."""
        self._done.release()
        self._go.acquire()
        if self._closed:
            raise _Over

    def ready(self) -> None:
        """In the main thread: waits until the trainer asks for a batch, or raises what became of it."""
        self._done.acquire()
        if self._error:
            raise self._error

    def step(self) -> None:
        """In the main thread: a whole step."""
        self._go.release()
        self.ready()

    def close(self) -> None:
        """In the main thread."""
        self._closed = True
        self._go.release()


class _Stepwise(Trainer):
    gate: _Gate
    batch: Batch | None

    def _loader(self, *arguments: Any) -> Any:
        loaded = super()._loader(*arguments).batches() if self.batch is None else itertools.repeat(self.batch)
        return _Gated(self.gate, loaded)


class _Gated:
    """In the place of a loader: its next batch waits for its turn."""

    def __init__(self, gate: _Gate, loaded: Iterator[Batch]) -> None:
        self._gate, self._loaded = gate, loaded

    def batches(self) -> Iterator[Batch]:
        """The loader's, or the one batch again and again."""
        with contextlib.closing(self._loaded) if isinstance(self._loaded, Generator) else contextlib.nullcontext():
            while True:
                self._gate.turn()
                yield next(self._loaded)


def architecture(case: Case) -> AnyCLOCConfig:
    """Our model's configuration."""
    return factory.architecture(case.config.model)


def random_batch(case: Case) -> Batch:
    """Random pixels; captions of the case's length; every place has a region, every region text is used twice."""
    config, images, texts = case.config, case.images, case.texts
    side, vocabulary, regions = config.model.vision.image_size, config.model.text.vocab_size, config.loss.max_regions
    generator = torch.Generator().manual_seed(case.rank.rank)

    def ids(count: int, length: int) -> Tensor:
        words = torch.randint(2, vocabulary - 2, (count, length - 1), generator=generator)
        return torch.cat([words, torch.full((count, 1), _EOS)], dim=1)

    corners = torch.rand(images, regions, 2, generator=generator) * 0.5
    sizes = 0.1 + 0.4 * torch.rand(images, regions, 2, generator=generator)
    return Batch(
        keys=tuple(f"{number:06d}" for number in range(images)),
        pixels_BSS3=torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8, generator=generator),
        caption_ids_BL=ids(images, case.tokens),
        boxes_BM4=torch.cat([corners, corners + sizes], dim=-1),
        points_BM2=corners + sizes / 2,
        pointed_BM=torch.zeros(images, regions, dtype=torch.bool),
        present_BM=torch.ones(images, regions, dtype=torch.bool),
        text_ids_UL=ids(texts, REGION_TOKENS),
        text_index_BM=torch.arange(images * regions).remainder(texts).view(images, regions),
    )


def write_tokenizer(folder: Path, config: Config) -> None:
    """A tokenizer with as many entries as the model's vocabulary has."""
    size, letters = config.model.text.vocab_size, 26
    # It has all bytes at the end of a word, too, and not only the letters that it meets there.
    tokenizer = train_tokenizer([" ".join(_words(size // 2))], vocab_size=size - 256 + letters, context_length=CONTEXT)
    assert len(tokenizer) == size, len(tokenizer)
    tokenizer.save_pretrained(str(folder))


def write_data(folder: Path, config: Config, *, images: int, different: int) -> None:
    """A data set of JPEGs of about 60 kB with captions and regions.

    Args:
        folder: to write in.
        config: all settings.
        images: how many.
        different: how many of them differ; the others are copies.
    """
    rng, storage, words = np.random.default_rng(0), open_storage(folder), _words(1000)
    bodies, shards = [_jpeg(rng) for _ in range(min(images, different))], []
    for first in range(0, images, 1000):
        name, writer = f"{first // 1000:05d}", ShardWriter()
        captions, regions = list[dict[str, Any]](), list[dict[str, Any]]()
        for number in range(first, min(images, first + 1000)):
            key, said = f"{number:06d}", " ".join(rng.choice(words, 20))
            meta = {"alt_text": said, "source": "benchmark", "licence": "none", "width": WIDTH, "height": HEIGHT}
            writer.add(Sample(key=key, image=bodies[number % len(bodies)], suffix="jpg", meta=meta))
            captions += [{"key": key, "text": said, "kind": kind, "model": ""} for kind in ("human", "alt_text")]
            for x1, y1 in rng.uniform(0, 0.5, (config.loss.max_regions, 2)):
                box = {"x1": x1, "y1": y1, "x2": x1 + 0.3, "y2": y1 + 0.3}
                text = str(rng.choice(words))
                regions.append({"key": key, **box, "text": text, "score": 1.0, "source": "human", "label": text})
        shards.append(writer.write(storage, name))
        write_table(storage, "captions", name, captions)
        write_table(storage, "regions", name, regions)
    write_manifest(storage, Manifest(shards=tuple(shards), classes=(), made_by={"tool": "benchmarks/train_step.py"}))


def _words(count: int) -> list[str]:
    rng, letters = np.random.default_rng(0), np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return ["".join(rng.choice(letters, rng.integers(4, 10))) for _ in range(count)]


def _jpeg(rng: np.random.Generator) -> bytes:
    """Colours that change slowly, with as much noise as makes a JPEG as large as a photograph's."""
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT), Image.BICUBIC)
    noisy, stream = np.asarray(coarse) + rng.normal(0, 12, (HEIGHT, WIDTH, 1)), io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, format="JPEG", quality=85)
    return stream.getvalue()
