"""CLOC: a CLIP whose image encoder also answers for regions (METHOD, Model).

    model = CLOCModel.from_pretrained(folder)
    regions = model.get_region_features(pixel_values, boxes)   # (B, M, E)
    boxes = model.ground(pixel_values, input_ids)              # (B, T, 4)

    image = model.encode_image(pixel_values)                   # or: encode once,
    regions = model.embed_boxes(image.tokens_BND, boxes_BM4)   # prompt as often as wanted

The folder is a plain CLIP checkpoint with more weights: `CLIPModel.from_pretrained` loads it with equal features.
`CLOCSiglipModel` is the same over SigLIP; `factory.load` takes the class that a folder needs.
Shapes: B images, M prompts an image, T texts, N spatial tokens ([CLS] first where the family has one), D ViT width,
E embedding width. Boxes here are xyxy and points (x, y) in [0, 1] of the padded network input (`boxes.Letterbox` maps
them). Features are not normalised.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, PreTrainedConfig, PreTrainedModel, SiglipModel, initialization

from cloc.model import checks, masked
from cloc.model.configuration import CLOCConfig, CLOCSiglipConfig
from cloc.model.prompter import ImageMemory, Prompter, init_linear
from cloc.model.roi_align import roi_align, roi_grid

# Samples a side of a box, read by RoIAlign.
_SAMPLES = 7


@dataclass(frozen=True)
class EncodedImages:
    """What the image encoder says of a batch.

    Attributes:
        tokens_BND: spatial tokens, [CLS] first, before pooled projection and normalisation (paper: f'_I).
        embeds_BE: image embeddings, not normalised (paper: f_I), as CLIP's.
        pooled_BND: what the last attention pools: what enters a CLIP's last layer, SigLIP's tokens; if asked for.
    """

    tokens_BND: Tensor
    embeds_BE: Tensor
    pooled_BND: Tensor | None = None


@dataclass(frozen=True)
class Prompted:
    """Answers to prompts; None where nothing was asked.

    Attributes:
        boxes_BME, points_BME: region embeddings of box and point prompts, not normalised.
        found_BM4: boxes of text prompts.
    """

    boxes_BME: Tensor | None
    points_BME: Tensor | None
    found_BM4: Tensor | None


class RegionLinear(nn.Linear):
    """A linear layer of the region parts: by its class, CLOC's initialisation knows it from CLIP's layers."""


class RegionModel(PreTrainedModel, ABC):
    """The region parts over a two-tower model: Prompter, region projection, box head, region temperature.

    The family's class stands beside it and says how its towers encode (`encode_image`, `encode_text`, `embed_roi`).
    """

    logit_scale: nn.Parameter
    logit_bias: nn.Parameter

    def _add_region_parts(self, config: CLOCConfig | CLOCSiglipConfig, *, embed_dim: int, scale: float) -> None:
        vision, parts = config.vision_config, config.cloc or {}
        width, self.embed_dim = vision.hidden_size, embed_dim
        self.grid, self.prefix_tokens = vision.image_size // vision.patch_size, config.prefix_tokens
        self.initial_scale = scale
        self.region_projection = RegionLinear(width, embed_dim, bias=False)
        self.region_logit_scale = nn.Parameter(torch.tensor(float(scale)))
        self.region_logit_bias = nn.Parameter(torch.zeros(()))
        if parts["kind"] == "transformer":
            self.prompter = Prompter(
                width=width,
                embed_dim=embed_dim,
                grid=self.grid,
                prefix=config.prefix_tokens,
                layers=parts["layers"],
                heads=parts["heads"],
                pool=parts["pool"],
                spatial_bias=parts["spatial_bias"],
            )
            self.box_head = nn.Sequential(RegionLinear(width, width), nn.GELU(), RegionLinear(width, 4))
        else:
            self.region_norm = nn.LayerNorm(width)

    def _init_region_weights(self, module: Any) -> None:
        if module is self and hasattr(self, "region_logit_bias"):  # not yet there while the family's part is made
            initialization.constant_(self.region_logit_scale, self.initial_scale)
            initialization.zeros_(self.region_logit_bias)
        elif isinstance(module, Prompter):
            module.reset_parameters()
        elif isinstance(module, RegionLinear):
            init_linear(module)

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **options: Any) -> Any:
        """As in `transformers`: a folder or hub id of this class or of its family's plain model.

        Raises:
            ValueError: the checkpoint is of another family, or its weights have other shapes than the configuration.
        """
        family = cls.config_class.model_type
        checks.family(source, PreTrainedConfig.get_config_dict(source)[0].get("model_type"), expected=family)
        wants_info, tolerates = options.pop("output_loading_info", False), options.get("ignore_mismatched_sizes")
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded, info = super().from_pretrained(source, *args, **options)
        if not tolerates:
            checks.shapes(source, info["mismatched_keys"])
        return (loaded, info) if wants_info else loaded

    @property
    def has_prompter(self) -> bool:
        """Whether regions are read by a Prompter (and boxes can be found); else by RoIAlign."""
        return hasattr(self, "prompter")

    @abstractmethod
    def encode_image(
        self, pixel_values: Tensor, *, interpolate: bool = False, keep_pooled: bool = False
    ) -> EncodedImages:
        """Encodes images.

        Args:
            pixel_values: (B, 3, S, S), normalised as the processor does.
            interpolate: S may be any multiple of the patch size: position embeddings are interpolated (bicubic), and
                regions are prompted as ever, their boxes being shares of the input.
            keep_pooled: also keep what `embed_masked` reads.
        """

    @abstractmethod
    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Text embeddings, not normalised: token ids (T, L) -> (T, E)."""

    @abstractmethod
    def embed_roi(self, tokens_BND: Tensor, boxes_BM4: Tensor) -> Tensor:
        """RoIAlign over the spatial tokens, then the family's own image head: any CLIP's region reader. (B, M, E)."""

    @abstractmethod
    def embed_masked(self, pooled_BND: Tensor, boxes_BM4: Tensor) -> Tensor:
        """The image's own pooling of `pooled_BND`, limited to a box's patches (see `cloc.model.masked`): (B, M, E)."""

    def prompt(
        self,
        tokens_BND: Tensor,
        *,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        texts: Tensor | None = None,
    ) -> Prompted:
        """Answers several kinds of prompts over the same spatial tokens, whose keys and values are computed once.

        Args:
            tokens_BND: spatial tokens.
            boxes: (B, M, 4).
            points: (B, M, 2).
            texts: text embeddings (B, M, E), normalised here.

        Raises:
            ValueError: shapes that do not fit, or prompts that this model was not made for.
        """
        checks.prompt_shapes(tokens_BND, boxes=boxes, points=points, texts=texts, embed_dim=self.embed_dim)
        if not self.has_prompter:
            return Prompted(self._roi_regions(tokens_BND, boxes, points=points, texts=texts), None, None)
        if points is not None and not self.config.cloc["points"]:
            raise ValueError(
                "points: this model was not trained with point prompts; train one with loss.point_share above 0, "
                "or give a box around the point"
            )
        prompter, memory = self.prompter, self.prompter.prepare(tokens_BND)
        found = None
        if texts is not None:
            found = self.box_head(prompter.texts(memory, F.normalize(texts, dim=-1))).float().sigmoid()
        regions, pointed = None, None
        if boxes is not None:
            regions = self._projected(prompter.boxes(memory, boxes), memory, boxes)
        if points is not None:
            pointed = self._projected(prompter.points(memory, points), memory, prompter.around(points))
        return Prompted(regions, pointed, found)

    def _projected(self, features_BMD: Tensor, memory: ImageMemory, boxes_BM4: Tensor) -> Tensor:
        """Region embeddings (B, M, E) of features; with the spatial bias the mean token of the box is added."""
        projected = self.region_projection(features_BMD)
        if self.prompter.spatial_bias == "none":
            return projected
        return projected + self.prompter.pooled(memory, boxes_BM4)

    def embed_boxes(self, tokens_BND: Tensor, boxes_BM4: Tensor) -> Tensor:
        """Region embeddings, not normalised: (B, N, D), (B, M, 4) -> (B, M, E)."""
        return _given(self.prompt(tokens_BND, boxes=boxes_BM4).boxes_BME)

    def embed_points(self, tokens_BND: Tensor, points_BM2: Tensor) -> Tensor:
        """Embeddings of the regions that points lie in, not normalised: (B, N, D), (B, M, 2) -> (B, M, E).

        Raises:
            ValueError: the model was not trained with point prompts.
        """
        return _given(self.prompt(tokens_BND, points=points_BM2).points_BME)

    def ground_texts(self, tokens_BND: Tensor, texts_BME: Tensor) -> Tensor:
        """Boxes of text prompts: (B, N, D), text embeddings (B, M, E) -> (B, M, 4), xyxy in [0, 1] (padded).

        Raises:
            ValueError: the model has no Prompter (`model.prompter.kind: roi_align`).
        """
        return _given(self.prompt(tokens_BND, texts=texts_BME).found_BM4)

    def get_region_features(
        self,
        pixel_values: Tensor,
        boxes: Tensor | None = None,
        *,
        points: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Region embeddings of images, not normalised; each image is encoded once, however many its prompts.

        Args:
            pixel_values: (B, 3, S, S).
            boxes: (B, M, 4), xyxy in [0, 1] of the padded input.
            points: (B, M, 2), instead of boxes.
            masks: (B, M, H, W) over the padded input, instead of boxes: prompted by their tight boxes.

        Returns:
            (B, M, E).

        Raises:
            ValueError: not exactly one kind of prompt, or a prompt that cannot be used; the message names it.
        """
        checks.one_of(boxes=boxes, points=points, masks=masks)
        if masks is not None:
            boxes = tight_boxes(masks)
        if boxes is not None:
            checks.boxes(boxes)
        if points is not None:
            checks.points(points)
        checks.pixels(pixel_values, size=self.config.vision_config.image_size)
        checks.same_images(len(pixel_values), boxes=boxes, points=points)
        prompted = self.prompt(self.encode_image(pixel_values).tokens_BND, boxes=boxes, points=points)
        return _given(prompted.boxes_BME if boxes is not None else prompted.points_BME)

    def ground(self, pixel_values: Tensor, texts: Tensor) -> Tensor:
        """Finds a box for every text in every image.

        Args:
            pixel_values: (B, 3, S, S).
            texts: token ids (T, L).

        Returns:
            (B, T, 4), xyxy in [0, 1] of the padded input.

        Raises:
            ValueError: the model has no Prompter, or the texts are longer than its text encoder takes.
        """
        checks.pixels(pixel_values, size=self.config.vision_config.image_size)
        tokens_BND = self.encode_image(pixel_values).tokens_BND
        return self.ground_texts(tokens_BND, self.encode_text(texts).expand(len(tokens_BND), -1, -1))

    def _roi_regions(
        self, tokens_BND: Tensor, boxes: Tensor | None, *, points: Tensor | None, texts: Tensor | None
    ) -> Tensor | None:
        if texts is not None or points is not None:
            what = "ground texts" if texts is not None else "take points"
            raise ValueError(
                f"this model reads regions by RoIAlign and cannot {what}; train one with a Prompter "
                "(model.prompter.kind: transformer)"
            )
        if boxes is None:
            return None
        pooled = roi_align(tokens_BND[:, self.prefix_tokens :], boxes, samples=_SAMPLES)
        return self.region_projection(self.region_norm(pooled))


class CLOCModel(RegionModel, CLIPModel):
    """CLIP plus the region parts: a `transformers` CLIPModel in every other respect."""

    config_class = CLOCConfig

    def __init__(self, config: CLOCConfig) -> None:
        super().__init__(config)
        self.logit_bias = nn.Parameter(torch.zeros(()))
        self._add_region_parts(config, embed_dim=config.projection_dim, scale=float(config.logit_scale_init_value))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        self._init_region_weights(module)
        if module is self and hasattr(self, "logit_bias"):
            initialization.zeros_(self.logit_bias)

    def encode_image(
        self, pixel_values: Tensor, *, interpolate: bool = False, keep_pooled: bool = False
    ) -> EncodedImages:
        """See `RegionModel.encode_image`; the embedding is that of [CLS]."""
        if keep_pooled:
            entering_BND, tokens_BND = masked.clip_layers(self.vision_model, pixel_values, interpolate=interpolate)
            cls_BD = self.vision_model.post_layernorm(tokens_BND[:, 0])
            return EncodedImages(tokens_BND, self.visual_projection(cls_BD), entering_BND)
        output = self.vision_model(pixel_values=pixel_values, interpolate_pos_encoding=interpolate)
        return EncodedImages(output.last_hidden_state, self.visual_projection(output.pooler_output))

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """See `RegionModel.encode_text`; no mask is needed, the encoder is causal."""
        checks.text_length(input_ids, longest=self.config.text_config.max_position_embeddings)
        return self.text_projection(self.text_model(input_ids=input_ids).pooler_output)

    def embed_roi(self, tokens_BND: Tensor, boxes_BM4: Tensor) -> Tensor:
        """See `RegionModel.embed_roi`: the mean token takes the place of [CLS]."""
        pooled = roi_align(tokens_BND[:, self.prefix_tokens :], boxes_BM4, samples=_SAMPLES)
        return self.visual_projection(self.vision_model.post_layernorm(pooled))

    def embed_masked(self, pooled_BND: Tensor, boxes_BM4: Tensor) -> Tensor:
        """See `RegionModel.embed_masked`: [CLS] in the last layer sees itself and the box's patches."""
        cls_BMD = masked.clip_pool(self.vision_model.encoder.layers[-1], pooled_BND, boxes_BM4, grid=self.grid)
        return self.visual_projection(self.vision_model.post_layernorm(cls_BMD))


class CLOCSiglipModel(RegionModel, SiglipModel):
    """SigLIP (or a fixed-resolution SigLIP 2) plus the region parts.

    There is no [CLS] token, the image embedding is an attention pool over the patches, and texts are padded to the full
    length (`CLOCProcessor` does it).
    """

    config_class = CLOCSiglipConfig

    def __init__(self, config: CLOCSiglipConfig) -> None:
        super().__init__(config)
        # SigLIP's own start (its paper, section 3): a scale of 10.
        self._add_region_parts(config, embed_dim=config.text_config.projection_size, scale=2.3026)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        self._init_region_weights(module)

    def encode_image(
        self, pixel_values: Tensor, *, interpolate: bool = False, keep_pooled: bool = False
    ) -> EncodedImages:
        """See `RegionModel.encode_image`; the tokens are those that SigLIP's attention pool reads."""
        output = self.vision_model(pixel_values=pixel_values, interpolate_pos_encoding=interpolate)
        tokens_BND = output.last_hidden_state
        return EncodedImages(tokens_BND, output.pooler_output, tokens_BND if keep_pooled else None)

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """See `RegionModel.encode_text`; ids must be padded to the full length, as SigLIP was trained."""
        longest = self.config.text_config.max_position_embeddings
        checks.text_length(input_ids, longest=longest)
        if input_ids.shape[1] != longest:
            raise ValueError(
                f"input_ids: SigLIP takes texts padded to {longest} tokens, got {input_ids.shape[1]}; "
                "tokenize with CLOCProcessor"
            )
        return self.text_model(input_ids=input_ids).pooler_output

    def embed_roi(self, tokens_BND: Tensor, boxes_BM4: Tensor) -> Tensor:
        """See `RegionModel.embed_roi`: SigLIP's attention pool reads the box's grid of tokens."""
        grid_BMPD = roi_grid(tokens_BND, boxes_BM4, bins=_SAMPLES)
        return self.vision_model.head(grid_BMPD.flatten(0, 1)).unflatten(0, grid_BMPD.shape[:2])

    def embed_masked(self, pooled_BND: Tensor, boxes_BM4: Tensor) -> Tensor:
        """See `RegionModel.embed_masked`: the attention pool reads the box's patches."""
        return masked.siglip_pool(self.vision_model.head, pooled_BND, boxes_BM4, grid=self.grid)


def tight_boxes(masks_BMHW: Tensor) -> Tensor:
    """Tight boxes of masks, as the paper prompts Ferret's free-form regions: (B, M, H, W) -> (B, M, 4), xyxy in [0, 1].

    Raises:
        ValueError: not four dimensions, or an empty mask.
    """
    checks.masks(masks_BMHW)
    inside = masks_BMHW != 0
    edges = []
    for lines, size in ((inside.any(dim=2), inside.shape[3]), (inside.any(dim=3), inside.shape[2])):
        first = lines.float().argmax(dim=-1)
        last = size - lines.flip(-1).float().argmax(dim=-1)
        edges.append((first / size, last / size))
    (x1, x2), (y1, y2) = edges
    return torch.stack([x1, y1, x2, y2], dim=-1)


def _given(answer: Tensor | None) -> Tensor:
    assert answer is not None
    return answer
