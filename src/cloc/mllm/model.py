"""The LLaVA-style model: a CLIP, SigLIP or CLOC vision tower, a projector, a region sampler, a causal language model.

    adapter = make_adapter(encoder, tokenizer, config.decoder, seed=0)     # or name_adapter: a named language model
    features_BND = adapter.features(pixels_BSS3)                           # once an image, however often it is asked
    loss, answer_tokens = adapter.answer_loss(batch, features_BND)
    adapter.model                                                          # transformers' LlavaForConditionalGeneration

`saving` writes and reads it, `answering` asks it.
Shapes: B images, L tokens of a row, N spatial tokens, W their width, D decoder width, K regions of a batch, A answer
tokens of a batch, V words, S side of the network input in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cloc.mllm.chat import IGNORED, ChatBatch, ChatFormat, attention_mask
from cloc.mllm.conversation import IMAGE_TOKEN, REGION_TOKEN
from cloc.mllm.sampler import RegionSampler
from cloc.model.processing import normalize

Stage = Literal["align", "tune"]
# Parts of a tower that its spatial tokens do not pass through.
_BEHIND = ("post_layernorm.", "head.")


@dataclass(frozen=True)
class Adapter:
    """A model that answers about images.

    Attributes:
        model: the whole model but for the region sampler; LoRA layers, where there are any, sit inside it.
        tokenizer: of the decoder, with the image token and a chat template; with a region token where there is a
            region sampler.
        pixel_mean, pixel_std: how the tower's pixels are normalised, of RGB in [0, 1].
        language_model: the named language model; "" for one made from its config.
        lora: peft's wrapper around `model`, which saves and loads the LoRA layers; None without them.
        sampler: what stands for regions; None without region tokens.
    """

    model: Any
    tokenizer: Any
    pixel_mean: Sequence[float]
    pixel_std: Sequence[float]
    language_model: str = ""
    lora: Any = None
    sampler: RegionSampler | None = None

    @property
    def image_size(self) -> int:
        """Side of the square network input, pixels."""
        return int(self.model.config.vision_config.image_size)

    @property
    def image_tokens(self) -> int:
        """Tokens that an image takes: one a patch, and [CLS] where the tower has one."""
        return int(self.model.config.image_seq_length)

    @property
    def context_length(self) -> int:
        """Longest sequence of the decoder, tokens."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def name(self) -> str:
        """What to call the decoder in messages."""
        return self.language_model or "the made decoder"

    @property
    def device(self) -> torch.device:
        """Where it is."""
        device: torch.device = self.model.device
        return device

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        tower: nn.Module = self.model.model.vision_tower
        return tower

    @property
    def decoder(self) -> nn.Module:
        """The language model without its output layer."""
        decoder: nn.Module = self.model.model.language_model
        return decoder

    @property
    def parts(self) -> nn.ModuleDict:
        """Everything with weights, in one module: model and, where there is one, sampler."""
        parts = {"model": self.model} | ({"sampler": self.sampler} if self.sampler is not None else {})
        return nn.ModuleDict(parts)

    def to(self, device: torch.device | str) -> "Adapter":
        """Moves it, in place."""
        self.parts.to(device)
        return self

    def chat(self) -> ChatFormat:
        """How its decoder writes conversations. Raises ConfigError as `ChatFormat` does."""
        return ChatFormat(
            self.tokenizer, image_tokens=self.image_tokens, context_length=self.context_length, name=self.name
        )

    def trainable(self, stage: Stage = "tune", *, train_encoder: bool = False) -> list[nn.Parameter]:
        """What a stage of tuning changes; exactly that requires gradients afterwards.

        Args:
            stage: "align", projector and the sampler's MLP alone; "tune", with LoRA, or with the whole of a decoder
                that was made from its config.
            train_encoder: in "tune", the vision tower, too.
        """
        self.parts.requires_grad_(False)
        self.model.model.multi_modal_projector.requires_grad_(True)
        if self.sampler is not None:
            self.sampler.mlp.requires_grad_(not self.sampler.settled)
        if stage == "tune" and not self.language_model:
            self.decoder.requires_grad_(True)
            self.model.lm_head.requires_grad_(True)
        elif stage == "tune":
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad or "lora_" in name)
        if stage == "tune" and train_encoder:
            for parameter in self.encoder_parameters():
                parameter.requires_grad_(True)
        return [parameter for parameter in self.parts.parameters() if parameter.requires_grad]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The vision tower's parameters that its spatial tokens depend on."""
        return [value for name, value in self.tower.named_parameters() if not name.startswith(_BEHIND)]

    def checkpoint_gradients(self) -> None:
        """From now on layers of decoder and tower recompute in the backward pass what they do not keep."""
        for part in (self.decoder, self.tower):
            part.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]  # a PreTrainedModel's

    def features(self, pixels_BSS3: Tensor) -> Tensor:
        """The vision tower's spatial tokens of the paper's layer, what LLaVA reads: uint8 pixels -> (B, N, W).

        What is kept of an image while the tower is frozen.
        """
        layer = self.model.config.vision_feature_layer
        pixels = normalize(pixels_BSS3.to(self.device), mean=self.pixel_mean, std=self.pixel_std)
        tokens_BND: Tensor = self.tower(pixels, output_hidden_states=[layer]).hidden_states[layer]
        return tokens_BND

    def embed(self, ids_BL: Tensor, features_BND: Tensor, regions_K4: Tensor, region_rows_K: Tensor) -> Tensor:
        """What the decoder reads.

        Args:
            ids_BL: token ids.
            features_BND: `features` of each row's image, in any precision.
            regions_K4: boxes of the region tokens of `ids_BL`, in their order row by row.
            region_rows_K: the row of each.

        Returns:
            (B, L, D): words, the projected image at the image tokens, regions at the region tokens.
        """
        embeds_BLD = self.words(ids_BL)
        image_BND = self.model.model.multi_modal_projector(features_BND.float())
        embeds_BLD = _put(embeds_BLD, ids_BL == self._id(IMAGE_TOKEN), image_BND.flatten(0, 1))
        return self.put_regions(embeds_BLD, ids_BL, self.sample(features_BND, regions_K4, region_rows_K))

    def words(self, ids_BL: Tensor) -> Tensor:
        """Embeddings of tokens (B, L, D), special ones included."""
        embeds_BLD: Tensor = self.model.get_input_embeddings()(ids_BL)
        return embeds_BLD

    def sample(self, features_BND: Tensor, regions_K4: Tensor, images_K: Tensor) -> Tensor | None:
        """Embeddings (K, D) of boxes in the images that `images_K` names; None where there is no box.

        Raises:
            ValueError: there are boxes, but there is no sampler.
        """
        if not len(regions_K4):
            return None
        read_KE = self.read(features_BND, regions_K4, images_K)
        if self.sampler is None or read_KE is None:
            raise ValueError(
                f"{len(regions_K4)} regions for a model without a region sampler; encode with its own chat"
            )
        embeds_KD: Tensor = self.sampler.mlp(read_KE)
        return embeds_KD

    def read(self, features_BND: Tensor, regions_K4: Tensor, images_K: Tensor) -> Tensor | None:
        """What the sampler's MLP gets of boxes (K, E), arguments as of `sample`; None where there is no sampler."""
        if self.sampler is None:
            return None
        features_BND = features_BND.float()
        if self.model.config.vision_config.model_type == "siglip_vision_model":  # whose Prompter reads normed tokens
            features_BND = self.tower.post_layernorm(features_BND)  # type: ignore[operator]  # a module
        return self.sampler.read(features_BND, regions_K4, images_K)

    def put_regions(self, embeds_BLD: Tensor, ids_BL: Tensor, regions_KD: Tensor | None) -> Tensor:
        """The embeddings with those of regions at the region tokens."""
        if regions_KD is None:
            return embeds_BLD
        return _put(embeds_BLD, ids_BL == self._id(REGION_TOKEN), regions_KD)

    def answer_loss(self, batch: ChatBatch, features_BND: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the answers' tokens (their ends included): the sum, and how many there are, both scalars.

        The output layer is applied where there is something to learn: elsewhere its logits, the largest tensor of a
        small decoder by far, would be thrown away.

        Args:
            batch: images and conversations, on any device.
            features_BND: the images' features where they are known.
        """
        batch = batch.to(self.device)
        if features_BND is None:
            assert batch.pixels_BSS3 is not None, "a batch without pixels comes with features"
            features_BND = self.features(batch.pixels_BSS3)
        embeds_BLD = self.embed(batch.ids_BL, features_BND.to(self.device), batch.regions_K4, batch.region_rows_K)
        hidden_BLD = self.decoder(
            inputs_embeds=embeds_BLD,
            attention_mask=attention_mask(batch.segments_BL, dtype=embeds_BLD.dtype),
            position_ids=batch.positions_BL,
            use_cache=False,
        ).last_hidden_state
        targets_BL = batch.labels_BL[:, 1:]
        chosen_BL = targets_BL != IGNORED
        logits_AV = self.model.lm_head(hidden_BLD[:, :-1][chosen_BL])
        return F.cross_entropy(logits_AV.float(), targets_BL[chosen_BL], reduction="sum"), chosen_BL.sum()

    def _id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))


def _put(embeds_BLD: Tensor, where_BL: Tensor, values_XD: Tensor) -> Tensor:
    """The embeddings with values, in their order, at the places where `where_BL` is true.

    Raises:
        ValueError: there are more places than values, or fewer.
    """
    places = int(where_BL.sum())
    if places != len(values_XD):
        raise ValueError(f"{places} special tokens in the ids for {len(values_XD)} embeddings")
    return embeds_BLD.masked_scatter(where_BL[..., None], values_XD.to(embeds_BLD.dtype))
