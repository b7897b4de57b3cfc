"""CLOC: a CLIP whose image encoder also answers for regions (METHOD, Model).

    model = CLOCModel.from_pretrained(folder)
    image = model.encode_image(pixel_values)                  # once
    regions = model.embed_boxes(image.tokens_BND, boxes_BM4)  # as often as wanted
    boxes = model.ground_texts(image.tokens_BND, texts_BME)

The folder is a plain CLIP checkpoint with more weights: `CLIPModel.from_pretrained` loads it with equal features.
Shapes: B images, M prompts an image, N = 1 + G * G tokens, D ViT width, E embedding width. Boxes here are xyxy in
[0, 1] of the padded network input (`boxes.Letterbox` maps them).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel

from cloc.model.configuration import CLOCConfig
from cloc.model.prompter import Prompter, init_linear
from cloc.model.roi_align import roi_align


@dataclass(frozen=True)
class EncodedImages:
    """What the image encoder says of a batch.

    Attributes:
        tokens_BND: spatial tokens, [CLS] first, before pooled projection and normalisation (paper: f'_I).
        embeds_BE: image embeddings, not normalised (paper: f_I), as CLIP's.
    """

    tokens_BND: Tensor
    embeds_BE: Tensor


class RegionLinear(nn.Linear):
    """A linear layer of the region parts: by its class, CLOC's initialisation knows it from CLIP's layers."""


class CLOCModel(CLIPModel):
    """CLIP plus Prompter, region projection, box head and a region temperature."""

    config_class = CLOCConfig

    def __init__(self, config: CLOCConfig) -> None:
        super().__init__(config)
        vision, parts = config.vision_config, config.cloc or {}
        self.grid = vision.image_size // vision.patch_size
        width, embed_dim = vision.hidden_size, config.projection_dim
        self.region_projection = RegionLinear(width, embed_dim, bias=False)
        self.region_logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        if parts["kind"] == "transformer":
            self.prompter = Prompter(
                width=width,
                embed_dim=embed_dim,
                grid=self.grid,
                layers=parts["layers"],
                heads=parts["heads"],
                pool=parts["pool"],
                spatial_bias=parts["spatial_bias"],
            )
            self.box_head = nn.Sequential(RegionLinear(width, width), nn.GELU(), RegionLinear(width, 4))
        else:
            self.region_norm = nn.LayerNorm(width)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Prompter):
            module.reset_parameters()
        elif isinstance(module, RegionLinear):
            init_linear(module)

    @property
    def has_prompter(self) -> bool:
        """Whether regions are read by a Prompter (and boxes can be found); else by RoIAlign."""
        return hasattr(self, "prompter")

    def encode_image(self, pixel_values: Tensor) -> EncodedImages:
        """Encodes images (B, 3, S, S), normalised as the processor does."""
        output = self.vision_model(pixel_values=pixel_values)
        return EncodedImages(output.last_hidden_state, self.visual_projection(output.pooler_output))

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Text embeddings, not normalised: token ids (T, L) -> (T, E)."""
        output = self.text_model(input_ids=input_ids)
        return self.text_projection(output.pooler_output)

    def embed_boxes(self, tokens_BND: Tensor, boxes_BM4: Tensor) -> Tensor:
        """Region embeddings, not normalised: (B, N, D), (B, M, 4) -> (B, M, E)."""
        if self.has_prompter:
            return self.region_projection(self.prompter.forward_boxes(tokens_BND, boxes_BM4))
        return self.region_projection(self.region_norm(roi_align(tokens_BND, boxes_BM4, grid=self.grid)))

    def embed_roi(self, tokens_BND: Tensor, boxes_BM4: Tensor) -> Tensor:
        """RoIAlign over the spatial tokens, then CLIP's own image head: any CLIP's region reader. (B, M, E)."""
        pooled = roi_align(tokens_BND, boxes_BM4, grid=self.grid)
        return self.visual_projection(self.vision_model.post_layernorm(pooled))

    def ground_texts(self, tokens_BND: Tensor, texts_BME: Tensor) -> Tensor:
        """Boxes of text prompts: (B, N, D), text embeddings (B, M, E) -> (B, M, 4), xyxy in [0, 1] (padded).

        Raises:
            ValueError: the model has no Prompter (`model.prompter.kind: roi_align`).
        """
        if not self.has_prompter:
            raise ValueError("this model reads regions by RoIAlign and cannot ground texts; train one with a Prompter")
        features = self.prompter.forward_texts(tokens_BND, F.normalize(texts_BME, dim=-1))
        return self.box_head(features).float().sigmoid()
