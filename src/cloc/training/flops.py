"""Floating-point operations of a training step, and how many a device can do: what MFU is made of.

    flops = step_flops(config, objective="cloc", batch_size=4096)
    peak = peak_flops(torch.device("cuda"), bfloat16=True)
    flops.total / (seconds * gpus * peak.flops)   # MFU

Towers and region parts are counted by torch's own counter on a model that has shapes and no memory (device "meta"), one
image and one text at a time: the counts are products of a number of images and of a quadratic in the length of texts.
The contrastive losses are counted by their tiles. As usual, matrix products and convolutions alone count (a multiply
and an add are two operations), attention counts whole, causal or not, and the optimiser does not count at all.

Model FLOPs are what the mathematics of a step takes once, forward and backward: they make MFU. Hardware FLOPs are those
that are really done: micro-batches (GradCache) run a second forward of everything but the losses, gradient
checkpointing runs the layers of towers and Prompter again, and a loss of more than one tile makes its logits again.
"""

import copy
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cloc.config import Config
from cloc.config.schema import LossConfig, ModelConfig, TrainConfig
from cloc.model import factory
from cloc.model.configuration import AnyCLOCConfig
from cloc.model.losses import TILE
from cloc.training.task import Objective

_META = torch.device("meta")


@dataclass(frozen=True)
class Work:
    """Operations of a part.

    Attributes:
        forward, backward: once each.
        again: what is done a second time (hardware FLOPs beyond the model's).
    """

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.forward + other.forward, self.backward + other.backward, self.again + other.again)

    def __mul__(self, times: float) -> "Work":
        return Work(self.forward * times, self.backward * times, self.again * times)

    @property
    def model(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


@dataclass(frozen=True)
class StepFlops:
    """Model FLOPs of a step of all processes, forward and backward.

    Attributes:
        image: image encoder.
        text: text encoder, of captions and of region texts.
        regions: Prompter (or RoIAlign's projection) and box head.
        losses: contrastive losses of images and of regions.
        recomputed: hardware FLOPs beyond these.
    """

    image: float
    text: float
    regions: float
    losses: float
    recomputed: float

    @property
    def total(self) -> float:
        """All model FLOPs."""
        return self.image + self.text + self.regions + self.losses

    @property
    def hardware(self) -> float:
        """All FLOPs that are really done."""
        return self.total + self.recomputed


@dataclass(frozen=True)
class Load:
    """What a step of all processes works on. See `Load.of`.

    Attributes:
        images: B over all processes.
        image_size: side in pixels.
        texts: how many texts the encoder reads, captions included.
        tokens, squares: sums over the texts of their length, and of its square.
        regions: present regions.
        ranks: processes.
    """

    images: float
    image_size: int
    texts: float
    tokens: float
    squares: float
    regions: float
    ranks: int = 1

    @classmethod
    def of(
        cls, images: float, *, image_size: int, caption: float, regions: float = 0, text: float = 0, ranks: int = 1
    ) -> "Load":
        """The load of images with a caption of so many tokens each, and of regions with a text of so many."""
        return cls(
            images=images,
            image_size=image_size,
            texts=images + regions,
            tokens=images * caption + regions * text,
            squares=images * caption**2 + regions * text**2,
            regions=regions,
            ranks=ranks,
        )


class Costs:
    """Counts the steps of one architecture; each part is counted when it is first asked for, and then known.

    Args:
        architecture: of the model.
        objective: "cloc" or "clip".
        loss, train: sections of the settings.

    Attributes:
        architecture: as given.
    """

    def __init__(self, architecture: AnyCLOCConfig, *, objective: Objective, loss: LossConfig, train: TrainConfig):
        self.architecture, self._objective, self._loss, self._train = architecture, objective, loss, train
        self._images, self._regions = dict[int, Work](), dict[int, Work]()
        self._text: tuple[Work, Work, Work] | None = None
        self._width: int = self._model().embed_dim

    def step(self, load: Load) -> StepFlops:
        """FLOPs of a step."""
        constant, linear, square = self._text_terms()
        image = self._image(load.image_size) * load.images
        text = constant * load.texts + linear * load.tokens + square * load.squares
        regions, trains = Work(), self._train.lock != "text"
        per_rank = load.images / load.ranks
        losses = contrastive_work(per_rank, ranks=load.ranks, width=self._width, columns=trains)
        if self._objective == "cloc":
            regions = self._region(load.image_size) * load.images
            losses += contrastive_work(
                load.regions / load.ranks,
                ranks=load.ranks,
                width=self._width,
                columns=trains,
                filtered=self._loss.similar_text_threshold < 1,
            )
        again = sum(part.again for part in (image, text, regions, losses))
        if 0 < self._train.micro_batch < per_rank:
            again += image.forward + text.forward + regions.forward
        return StepFlops(image.model, text.model, regions.model, losses.model, again)

    def _model(self, *, image_size: int | None = None, length: int | None = None, layers: int = 1) -> Any:
        """The model without memory, for images of that size and texts of that length; with so many layers a tower."""
        shape = copy.deepcopy(self.architecture)
        shape._attn_implementation = "eager"  # products of matrices, as any kernel's are counted
        shape.vision_config.image_size = image_size or shape.vision_config.image_size
        shape.vision_config.num_hidden_layers = shape.text_config.num_hidden_layers = layers
        shape.text_config.max_position_embeddings = length or shape.text_config.max_position_embeddings
        with _META:
            model = factory.from_architecture(shape).train()
        if self._train.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return model

    def _image(self, size: int) -> Work:
        """Of one image in the image encoder."""
        if size not in self._images:
            pixels = torch.empty(1, 3, size, size, device=_META)

            def count(layers: int) -> Work:
                model = self._model(image_size=size, layers=layers)

                def run() -> list[Tensor]:
                    found = model.encode_image(pixels)
                    return [found.embeds_BE] if self._objective == "clip" else [found.embeds_BE, found.tokens_BND]

                return self._counted(model, run, trains=self._train.lock != "image")

            self._images[size] = _stacked(count, self.architecture.vision_config.num_hidden_layers)
        return self._images[size]

    def _text_terms(self) -> tuple[Work, Work, Work]:
        """Of one text of L tokens in the text encoder: constant, and factors of L and L * L."""
        if self._text is None:
            one, two, three = (self._one_text(length) for length in (1, 2, 3))
            square = (three + two * -2 + one) * 0.5
            linear = two + one * -1 + square * -3
            self._text = one + linear * -1 + square * -1, linear, square
        return self._text

    def _one_text(self, length: int) -> Work:
        ids = torch.zeros(1, length, dtype=torch.long, device=_META)

        def count(layers: int) -> Work:
            model = self._model(length=length, layers=layers)
            return self._counted(model, lambda: [model.encode_text(ids)], trains=self._train.lock != "text")

        return _stacked(count, self.architecture.text_config.num_hidden_layers)

    def _region(self, size: int) -> Work:
        """Of one image's places for regions (all of them: absent ones are computed, too) in the region parts."""
        if size not in self._regions:
            model, loss, trains = self._model(image_size=size), self._loss, self._train.lock != "image"
            with torch.no_grad():
                tokens = model.encode_image(torch.empty(1, 3, size, size, device=_META)).tokens_BND
            tokens = tokens.detach().requires_grad_(trains)
            grounds = loss.grounding != "none" and model.has_prompter
            texts = torch.empty(1, loss.max_regions, model.embed_dim, device=_META)
            texts.requires_grad_(self._train.lock != "text")

            def run() -> list[Tensor]:
                found = model.prompt(
                    tokens,
                    boxes=torch.empty(1, loss.max_regions, 4, device=_META),
                    points=torch.empty(1, loss.max_regions, 2, device=_META) if loss.point_share else None,
                    texts=texts if grounds else None,
                )
                return [each for each in vars(found).values() if each is not None]

            model.config.cloc["points"] = bool(loss.point_share)
            self._regions[size] = self._counted(model, run, trains=True)
        return self._regions[size]

    def _counted(self, model: Any, run: Callable[[], list[Tensor]], *, trains: bool) -> Work:
        """Operations of a part of the model."""
        with FlopCounterMode(display=False) as counter:
            if not trains:
                with torch.no_grad():
                    run()
                return Work(forward=counter.get_total_flops())
            outputs = run()
            forward = counter.get_total_flops()
            _backward(outputs)
            backward = counter.get_total_flops() - forward
        again = 0
        if self._train.gradient_checkpointing:
            model.activation_checkpointing_disable()
            with FlopCounterMode(display=False) as counter:
                _backward(run())
            again = forward + backward - counter.get_total_flops()
        return Work(forward, backward - again, again)


def _stacked(count: Callable[[int], Work], layers: int) -> Work:
    """Of a tower of so many layers, which are equal: counted with one, and with two."""
    one = count(1)
    return one if layers == 1 else one + (count(2) + one * -1) * (layers - 1)


def _backward(outputs: list[Tensor]) -> None:
    torch.stack([each.sum() for each in outputs]).sum().backward()


def contrastive_work(
    rows: float, *, ranks: int, width: int, columns: bool = True, filtered: bool = False, tile: int = TILE
) -> Work:
    """Operations of a contrastive loss (`cloc.model.losses`) on all ranks.

    Args:
        rows: valid ones of a rank.
        ranks: that share the batch.
        width: of an embedding.
        columns: whether the texts get a gradient.
        filtered: whether texts are compared with each other.
        tile: rows of a tile.
    """
    product = 2.0 * width * ranks
    logits = product * rows * rows * ranks
    whole, rest = divmod(rows, tile)
    # Of two tiles among a rank's own rows that mirror each other one is compared.
    compared = (rows * rows + whole * tile * tile + rest * rest) / 2 + rows * rows * (ranks - 1)
    forward = logits + (product * compared if filtered else 0)
    kept = rows * rows * ranks <= tile * tile
    return Work(forward, logits * (2 if columns else 1), 0 if kept else forward)


def step_flops(
    config: Config,
    *,
    objective: Objective = "cloc",
    batch_size: int | None = None,
    image_size: int | None = None,
    ranks: int = 1,
    text_length: int | None = None,
    regions: float | None = None,
    region_texts: float | None = None,
) -> StepFlops:
    """FLOPs of a training step over all processes.

    Args:
        config: all settings; `train` says what is locked and what is computed again.
        objective: "cloc" or "clip".
        batch_size: images a step over all processes; None: `train.batch_size`.
        image_size: side of the network input; None: the model's own.
        ranks: processes that share the batch: they compare texts of other processes twice, else it makes no difference.
        text_length: tokens of a text, padding included; None: the longest that the model takes.
        regions: present ones of an image; None: `loss.max_regions`, the most there can be.
        region_texts: distinct texts of a step's regions, which are encoded once a process; None: one a region, the most
            there can be.

    Raises:
        ConfigError: the checkpoint that the model starts from cannot be read.
    """
    costs = costs_of(config, objective=objective)
    architecture = costs.architecture
    images = batch_size or config.train.batch_size
    length = text_length or architecture.text_config.max_position_embeddings
    present = images * (config.loss.max_regions if regions is None else regions)
    texts = float(images)
    if objective == "cloc":
        texts += present if region_texts is None else region_texts
    return costs.step(
        Load(
            images=images,
            image_size=image_size or architecture.vision_config.image_size,
            texts=texts,
            tokens=texts * length,
            squares=texts * length * length,
            regions=present,
            ranks=ranks,
        )
    )


def costs_of(config: Config, *, objective: Objective) -> Costs:
    """The costs of steps by these settings, counted once. Raises ConfigError as `step_flops` does."""
    sections = (config.model, config.loss, config.train)
    return _costs(*(section.model_dump_json() for section in sections), objective)


@lru_cache(maxsize=64)
def _costs(model: str, loss: str, train: str, objective: Objective) -> Costs:
    """By sections of the settings as text, since these do not hash. Each by itself: rules over several of them do not
    hold where a checkpoint's sizes stand for it (`cloc plan`)."""
    shape = factory.architecture(ModelConfig.model_validate_json(model))
    known = LossConfig.model_validate_json(loss), TrainConfig.model_validate_json(train)
    return Costs(shape, objective=objective, loss=known[0], train=known[1])


@dataclass(frozen=True)
class Peak:
    """What a device can do.

    Attributes:
        flops: a second, of dense matrix products.
        source: the vendor's data sheet, or "measured".
    """

    flops: float
    source: str


@dataclass(frozen=True)
class _Gpu:
    """Dense TFLOPS of a GPU by type (0: it has no units for that), from the vendor's data sheet."""

    name: str
    bfloat16: float
    tf32: float
    float32: float
    sheet: str


# A name is searched for in torch.cuda.get_device_name; the first that is found counts. NVIDIA's sheets give figures
# "with sparsity" for most: half of these stand here.
_GPUS = (
    _Gpu(r"B200\b", 2250, 1125, 75, "NVIDIA HGX B200 data sheet"),
    _Gpu(r"H200 NVL\b", 835.5, 417.5, 60, "NVIDIA H200 data sheet"),
    _Gpu(r"G?H200\b", 989.5, 494.5, 67, "NVIDIA H200 data sheet"),
    _Gpu(r"H100 PCIe\b", 756.5, 378, 51, "NVIDIA H100 data sheet"),
    _Gpu(r"H100 NVL\b", 835.5, 417.5, 60, "NVIDIA H100 data sheet"),
    _Gpu(r"H100\b", 989.5, 494.5, 67, "NVIDIA H100 data sheet"),
    _Gpu(r"A100\b", 312, 156, 19.5, "NVIDIA A100 data sheet"),
    _Gpu(r"A10\b", 125, 62.5, 31.2, "NVIDIA A10 data sheet"),
    _Gpu(r"L40S\b", 362.05, 183, 91.6, "NVIDIA L40S data sheet"),
    _Gpu(r"L4\b", 121, 60, 30.3, "NVIDIA L4 data sheet"),
    _Gpu(r"V100-PCIE\b", 0, 0, 14, "NVIDIA V100 data sheet"),
    _Gpu(r"V100\b", 0, 0, 15.7, "NVIDIA V100 data sheet"),
    _Gpu(r"T4\b", 0, 0, 8.1, "NVIDIA T4 data sheet"),
    _Gpu(r"MI300X\b", 1307.4, 653.7, 163.4, "AMD Instinct MI300X data sheet"),
    # PyTorch sees each of the two dies as a device.
    _Gpu(r"MI250X\b", 191.5, 0, 47.85, "AMD Instinct MI250X data sheet, one of two dies"),
)


def peak_flops(device: torch.device, *, bfloat16: bool) -> Peak:
    """What a device can do at most, a second.

    A GPU that is known by its name has its data sheet's figure; what is not known (other GPUs, parts of a GPU,
    processors: these with the threads that torch has now) multiplies matrices for 0.3 s.

    Args:
        device: as torch names it.
        bfloat16: whether training computes in bfloat16, else in float32: TF32 where torch is set to it.
    """
    if device.type == "cuda":
        found = data_sheet(torch.cuda.get_device_name(device), bfloat16=bfloat16)
        if found is not None:
            return found
    return _measured(device, torch.bfloat16 if bfloat16 else torch.float32)


def data_sheet(name: str, *, bfloat16: bool) -> Peak | None:
    """The figure of a GPU of that name; None where none is known. See `peak_flops`."""
    if "MIG" in name:  # a part of a GPU has its name
        return None
    gpu = next((gpu for gpu in _GPUS if re.search(rf"\b{gpu.name}", name)), None)
    if gpu is None:
        return None
    tf32 = gpu.tf32 and torch.get_float32_matmul_precision() != "highest"
    tflops = gpu.bfloat16 if bfloat16 else gpu.tf32 if tf32 else gpu.float32
    return Peak(tflops * 1e12, gpu.sheet) if tflops else None


def _measured(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.3) -> Peak:
    side = 4096 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out, best, began = a @ b, float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return Peak(2 * side**3 / best, "measured")
