"""Model and losses as one module: a batch in, named losses out. CLIP is the same task with the region losses off.

The work is in two halves: `CLOCTask.embed` is all that the model does, and `CLOCTask.losses` all that looks at the
whole batch, so that a batch can be embedded in parts (`cached.py`).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cloc.config.schema import LossConfig
from cloc.data.batches import Batch
from cloc.model import losses
from cloc.model.factory import AnyCLOCModel
from cloc.model.modeling import Prompted
from cloc.model.processing import normalize as clip_normalize
from cloc.training import distributed

Objective = Literal["cloc", "clip"]
Lock = Literal["none", "image", "text"]
T = TypeVar("T")

# The parts of a tower, by the name of its lock; a locked tower is locked with its projection.
_TOWERS = {"image": ("vision_model.", "visual_projection."), "text": ("text_model.", "text_projection.")}
_FIXED: Mapping[Lock, Collection[str]] = {"none": (), "image": ("images_BE",), "text": ("captions_BE", "texts_BME")}


@dataclass(frozen=True)
class Losses:
    """Scalars of a step over the global batch; `total` is the one with gradient.

    Attributes:
        total: L = L_CLIP + lambda (L_CLOC + L_grounding).
        image, region, grounding: its parts (the last two 0 for plain CLIP).
        regions: number of regions in the global batch.
        filtered: share of region pairs that the similar-text filter drops.
    """

    total: Tensor
    image: Tensor
    region: Tensor
    grounding: Tensor
    regions: Tensor
    filtered: Tensor


@dataclass(frozen=True)
class Embeddings:
    """What the model says of a rank's part of a batch: unit vectors, and boxes; None where the objective asks for none.

    Attributes:
        images_BE, captions_BE: of images and of their captions.
        regions_BME, texts_BME: of regions, each by the prompt that it was given, and of their texts.
        found_BM4: boxes that the texts were found in.
    """

    images_BE: Tensor
    captions_BE: Tensor
    regions_BME: Tensor | None = None
    texts_BME: Tensor | None = None
    found_BM4: Tensor | None = None


@dataclass(frozen=True)
class Temperatures:
    """Factors and offsets of the logits, scalars; a loss without an offset has None.

    Attributes:
        image_scale, image_bias: of L_CLIP.
        region_scale, region_bias: of L_CLOC.
    """

    image_scale: Tensor
    image_bias: Tensor | None
    region_scale: Tensor
    region_bias: Tensor | None


class CLOCTask(nn.Module):
    """The objective of METHOD over a CLOC model.

    Args:
        model: the model; parts that the objective does not use are frozen.
        config: section `loss`.
        objective: "cloc", or "clip" for the image loss alone.
        normalize: uint8 pixels -> network input; the processor's.
        lock: the tower that is frozen, too, with its projection.
    """

    def __init__(
        self,
        model: AnyCLOCModel,
        config: LossConfig,
        *,
        objective: Objective,
        normalize: Callable[[Tensor], Tensor] = clip_normalize,
        lock: Lock = "none",
    ) -> None:
        super().__init__()
        self.model, self.config, self.objective, self.normalize = model, config, objective, normalize
        for parameter in self._unused():
            parameter.requires_grad_(False)
        for name, parameter in model.named_parameters():
            if lock != "none" and name.startswith(_TOWERS[lock]):
                parameter.requires_grad_(False)
        self.fixed: Collection[str] = _FIXED[lock]
        """Fields of `Embeddings` that have no gradient."""

    @property
    def _grounds(self) -> bool:
        return self.objective == "cloc" and self.config.grounding != "none" and self.model.has_prompter

    def _unused(self) -> list[nn.Parameter]:
        """Parameters without a gradient under this objective (DDP waits for every gradient it knows of)."""
        model, unused = self.model, list[nn.Parameter]()
        if self.objective == "clip" or self.config.temperature == "shared":
            unused.append(model.region_logit_scale)
        if self.config.image == "infonce":  # a bias cancels in a softmax
            unused.append(model.logit_bias)
        if self.objective == "clip" or self.config.region == "infonce":
            unused.append(model.region_logit_bias)
        if self.objective == "clip":
            unused += model.region_projection.parameters()
            unused += (model.prompter if model.has_prompter else model.region_norm).parameters()
        elif model.has_prompter and not self._grounds:
            unused += model.prompter.text_parameters()
        if model.has_prompter and not self._grounds:
            unused += model.box_head.parameters()
        if model.has_prompter and not self.config.point_share:
            unused += model.prompter.point_parameters()
        return unused

    def clamp_scales(self) -> None:
        """Keeps the logit scales at or below the configured maximum (after each optimiser step); a shared one is the
        regions' as well, so that the saved model answers by the temperature that it was trained with."""
        limit = torch.tensor(self.config.max_scale).log().item()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=limit)
            self.model.region_logit_scale.clamp_(max=limit)
            if self.config.temperature == "shared":
                self.model.region_logit_scale.copy_(self.model.logit_scale.squeeze())

    @overload
    def forward(self, batch: Batch) -> Losses: ...

    @overload
    def forward(self, batch: Batch, use: Callable[[Embeddings], T]) -> T: ...

    def forward(self, batch: Batch, use: Callable[[Embeddings], T] | None = None) -> Losses | T:
        """The losses of a step, on every rank those of the global batch; or what `use` makes of the embeddings.

        Either way all parameters are used within this call, as what shares a model between ranks wants it.
        """
        embeddings = self.embed(batch)
        return self.losses(embeddings, batch, self.temperatures()) if use is None else use(embeddings)

    def temperatures(self) -> Temperatures:
        """Of the model as it is."""
        model, config = self.model, self.config
        region_scale = model.logit_scale if config.temperature == "shared" else model.region_logit_scale
        return Temperatures(
            image_scale=model.logit_scale.exp().squeeze(),
            image_bias=model.logit_bias.squeeze() if config.image == "sigmoid" else None,
            region_scale=region_scale.exp().squeeze(),
            region_bias=model.region_logit_bias if config.region == "sigmoid" else None,
        )

    def embed(self, batch: Batch) -> Embeddings:
        """Embeds a batch, or any part of it: no image's or text's depends on the others."""
        model, config = self.model, self.config
        pixels = self.normalize(batch.pixels_BSS3)
        own_size = pixels.shape[-1] == model.config.vision_config.image_size
        image = model.encode_image(pixels, interpolate=not own_size)
        images_BE, captions_BE = _unit(image.embeds_BE), _unit(model.encode_text(batch.caption_ids_BL))
        if self.objective == "clip":
            return Embeddings(images_BE, captions_BE)
        # Each distinct text is encoded once and handed to all the regions that it describes.
        texts_BME = _unit(model.encode_text(batch.text_ids_UL))[batch.text_index_BM]
        prompted = model.prompt(
            image.tokens_BND,
            boxes=batch.boxes_BM4,
            points=batch.points_BM2 if config.point_share else None,
            texts=texts_BME if self._grounds else None,
        )
        return Embeddings(images_BE, captions_BE, _chosen(prompted, batch), texts_BME, prompted.found_BM4)

    def losses(
        self, embeddings: Embeddings, batch: Batch, temperatures: Temperatures, *, shared: bool = True
    ) -> Losses:
        """Losses over the global batch from the embeddings of this rank's part; every rank must call this.

        Unless `shared`: then these are those of the batch alone, and nothing is said to other ranks.
        """
        ranks = distributed.world_size() if shared else 1
        total = distributed.total if shared else Tensor.detach
        image_loss = losses.contrastive(
            embeddings.images_BE,
            embeddings.captions_BE,
            scale=temperatures.image_scale,
            bias=temperatures.image_bias,
            kind=self.config.image,
            group=distributed.group() if shared else None,
        ).loss
        if embeddings.regions_BME is None or embeddings.texts_BME is None:
            zero = torch.zeros((), device=image_loss.device)
            return Losses(image_loss, image_loss.detach(), zero, zero, zero, zero)
        region = losses.contrastive(
            embeddings.regions_BME.flatten(0, 1),
            embeddings.texts_BME.flatten(0, 1),
            scale=temperatures.region_scale,
            bias=temperatures.region_bias,
            kind=self.config.region,
            valid_K=batch.present_BM.flatten(),
            similar_text_threshold=self.config.similar_text_threshold,
            group=distributed.group() if shared else None,
        )
        grounding = self._grounding(batch, embeddings.found_BM4, ranks=ranks, total=total)
        with_regions = total(batch.present_BM.any(dim=1).float().sum())
        share = with_regions / (len(batch.present_BM) * ranks)
        return Losses(
            total=losses.total(image_loss, region.loss, grounding, weight=self.config.region_weight, share=share),
            image=image_loss.detach(),
            region=region.loss.detach(),
            grounding=total(grounding) / ranks,
            regions=region.valid_rows,
            filtered=region.dropped_share,
        )

    def _grounding(
        self, batch: Batch, predicted_BM4: Tensor | None, *, ranks: int, total: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """This rank's share of the mean over all regions, times the ranks, so that DDP's mean is the global mean."""
        if predicted_BM4 is None:
            return torch.zeros((), device=batch.boxes_BM4.device)
        each = losses.box_loss(predicted_BM4.flatten(0, 1), batch.boxes_BM4.flatten(0, 1), kind=self.config.grounding)
        present = batch.present_BM.flatten()
        count = total(present.sum()).clamp_min(1)
        return torch.where(present, each, 0.0).sum() * ranks / count


def as_they_are(embeddings: Embeddings) -> Embeddings:
    """For `CLOCTask.forward`: nothing is made of the embeddings."""
    return embeddings


def _chosen(prompted: Prompted, batch: Batch) -> Tensor:
    """Unit embeddings (B, M, E) of the regions, each by the prompt that it was given."""
    boxes_BME, points_BME = prompted.boxes_BME, prompted.points_BME
    assert boxes_BME is not None
    if points_BME is None:
        return _unit(boxes_BME)
    return _unit(torch.where(batch.pointed_BM[..., None], points_BME, boxes_BME))


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)
