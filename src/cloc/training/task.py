"""Model and losses as one module: a batch in, named losses out. CLIP is the same task with the region losses off."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

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


class CLOCTask(nn.Module):
    """The objective of METHOD over a CLOC model.

    Args:
        model: the model; parts that the objective does not use are frozen.
        config: section `loss`.
        objective: "cloc", or "clip" for the image loss alone.
        normalize: uint8 pixels -> network input; the processor's.
    """

    def __init__(
        self,
        model: AnyCLOCModel,
        config: LossConfig,
        *,
        objective: Objective,
        normalize: Callable[[Tensor], Tensor] = clip_normalize,
    ) -> None:
        super().__init__()
        self.model, self.config, self.objective, self.normalize = model, config, objective, normalize
        for parameter in self._unused():
            parameter.requires_grad_(False)

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

    def forward(self, batch: Batch) -> Losses:
        """The losses of a step; every rank returns those of the global batch."""
        model = self.model
        image = model.encode_image(self.normalize(batch.pixels_BSS3))
        captions_BE = _unit(model.encode_text(batch.caption_ids_BL))
        image_loss = losses.contrastive(
            _unit(image.embeds_BE),
            captions_BE,
            scale=model.logit_scale.exp().squeeze(),
            bias=model.logit_bias.squeeze() if self.config.image == "sigmoid" else None,
            kind=self.config.image,
            group=distributed.group(),
        ).loss
        zero = torch.zeros((), device=image_loss.device)
        if self.objective == "clip":
            return Losses(image_loss, image_loss.detach(), zero, zero, zero, zero)
        return self._with_regions(batch, image.tokens_BND, image_loss)

    def _with_regions(self, batch: Batch, tokens_BND: Tensor, image_loss: Tensor) -> Losses:
        model, config = self.model, self.config
        # Each distinct text is encoded once and handed to all the regions that it describes.
        texts_BME = _unit(model.encode_text(batch.text_ids_UL))[batch.text_index_BM]
        prompted = model.prompt(
            tokens_BND,
            boxes=batch.boxes_BM4,
            points=batch.points_BM2 if config.point_share else None,
            texts=texts_BME if self._grounds else None,
        )
        scale = model.logit_scale if config.temperature == "shared" else model.region_logit_scale
        region = losses.contrastive(
            _chosen(prompted, batch).flatten(0, 1),
            texts_BME.flatten(0, 1),
            scale=scale.exp().squeeze(),
            bias=model.region_logit_bias if config.region == "sigmoid" else None,
            kind=config.region,
            valid_K=batch.present_BM.flatten(),
            similar_text_threshold=config.similar_text_threshold,
            group=distributed.group(),
        )
        grounding = self._grounding(batch, prompted.found_BM4)
        with_regions = distributed.total(batch.present_BM.any(dim=1).float().sum())
        share = with_regions / (len(batch.present_BM) * distributed.world_size())
        return Losses(
            total=losses.total(image_loss, region.loss, grounding, weight=config.region_weight, share=share),
            image=image_loss.detach(),
            region=region.loss.detach(),
            grounding=distributed.total(grounding) / distributed.world_size(),
            regions=region.valid_rows,
            filtered=region.dropped_share,
        )

    def _grounding(self, batch: Batch, predicted_BM4: Tensor | None) -> Tensor:
        """This rank's share of the mean over all regions, times the ranks, so that DDP's mean is the global mean."""
        if predicted_BM4 is None:
            return torch.zeros((), device=batch.boxes_BM4.device)
        each = losses.box_loss(predicted_BM4.flatten(0, 1), batch.boxes_BM4.flatten(0, 1), kind=self.config.grounding)
        present = batch.present_BM.flatten()
        count = distributed.total(present.sum()).clamp_min(1)
        return torch.where(present, each, 0.0).sum() * distributed.world_size() / count


def _chosen(prompted: Prompted, batch: Batch) -> Tensor:
    """Unit embeddings (B, M, E) of the regions, each by the prompt that it was given."""
    boxes_BME, points_BME = prompted.boxes_BME, prompted.points_BME
    assert boxes_BME is not None
    if points_BME is None:
        return _unit(boxes_BME)
    return _unit(torch.where(batch.pointed_BM[..., None], points_BME, boxes_BME))


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)
