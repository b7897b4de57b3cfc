"""The small captioner: the fitted detector's vision tower and a GPT-2 decoder that attends to its patches.

The tower has learned where objects are and what they are called; it stays as it is, so that its outputs are computed
once an image, and only the decoder learns to put them into words. Shapes: B images, P patches and [CLS], W width, L
tokens.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessorPil,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    OwlViTForObjectDetection,
    VisionEncoderDecoderModel,
)

from cloc.config.schema import TeacherCaptionerConfig
from cloc.data.prefetch import prefetched
from cloc.data.transforms import PIXEL_MEAN, PIXEL_STD
from cloc.labeling.teachers.data import Picture, Pictures
from cloc.labeling.teachers.fitting import Fitted, Schedule, fit
from cloc.model.processing import normalize

NAME = "captioner"
_PROMPTED = 0.9  # share of the images with an alt-text that the captioner is given it for: it must do without, too
_LONGEST_PROMPT = 512  # tokens; the captioning stage cuts a longer alt-text
_FLAT = 1e-4  # directions with less than this share of the largest variance are noise
_LOOKS = 16  # batches that the projection's start is measured on
_IGNORED = -100  # tokens without a loss


def make_captioner(
    detector: OwlViTForObjectDetection, settings: TeacherCaptionerConfig, tokenizer: CLIPTokenizer, *, seed: int
) -> VisionEncoderDecoderModel:
    """A captioner that sees as the detector does and cannot speak yet.

    Args:
        detector: fitted.
        settings: sizes of the decoder.
        tokenizer: of the captions.
        seed: of the decoder's weights.
    """
    torch.manual_seed(seed)
    sizes = settings.decoder
    decoder = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=_LONGEST_PROMPT + settings.context_length,
            n_embd=sizes.width,
            n_layer=sizes.layers,
            n_head=sizes.heads,
            n_inner=round(sizes.width * sizes.mlp_ratio),
            add_cross_attention=True,
            is_decoder=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            activation_function="gelu",
            # A few epochs: nothing is learned by heart, and dropout would be a sixth of the time.
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    model = VisionEncoderDecoderModel(encoder=_tower(detector), decoder=decoder)
    for part in (model.config, model.generation_config):
        part.decoder_start_token_id = tokenizer.bos_token_id
        part.bos_token_id, part.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        part.pad_token_id = tokenizer.pad_token_id
    model.encoder.requires_grad_(False)
    return model


def _tower(detector: OwlViTForObjectDetection) -> CLIPVisionModel:
    """The detector's vision tower as the class of which it is the same but for names."""
    own = detector.config.vision_config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
             "image_size", "patch_size", "layer_norm_eps")  # fmt: skip
    tower = CLIPVisionModel(CLIPVisionConfig(**{name: getattr(own, name) for name in names}))
    weights = {
        name.replace("pre_layernorm", "pre_layrnorm"): value
        for name, value in detector.owlvit.vision_model.state_dict().items()
    }
    tower.load_state_dict(weights)
    return tower


class SeenPictures:
    """What the tower sees of pictures, computed once each as far as it is kept.

    Args:
        tower: the vision tower.
        most: pictures that are kept, in half precision.
    """

    def __init__(self, tower: CLIPVisionModel, *, most: int) -> None:
        self._tower, self._most = tower, most
        self._seen: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Picture]) -> Tensor:
        """Outputs of the tower (B, P, W), float32."""
        found = {each.key: self._seen[each.key] for each in pictures if each.key in self._seen}
        new = [each for each in pictures if each.key not in found]
        if new:
            pixels_BSS3 = torch.from_numpy(np.stack([each.pixels_SS3 for each in new])).to(self._tower.device)
            states_BPW = self._tower(pixel_values=normalize(pixels_BSS3)).last_hidden_state.half()
            found |= {each.key: states_PW for each, states_PW in zip(new, states_BPW, strict=True)}
            for each in new[: max(0, self._most - len(self._seen))]:
                self._seen[each.key] = found[each.key].clone()
        return torch.stack([found[each.key] for each in pictures]).float()


@torch.no_grad()
def start_projection(model: VisionEncoderDecoderModel, states_BPW: Tensor) -> None:
    """Starts the projection between tower and decoder as the whitening of what the tower sees.

    A tower's outputs differ most by position and by what its own heads do not use; what tells objects apart is a small
    part of them, and a decoder that starts at random takes very long to find it.

    Args:
        model: its decoder is wider than its tower.
        states_BPW: outputs of the tower, of as many images as there are at hand.
    """
    states_NW = states_BPW.flatten(0, 1).double()
    mean_W = states_NW.mean(dim=0)
    values_W, vectors_WW = torch.linalg.eigh(torch.cov(states_NW.T))
    whitening_WW = vectors_WW / values_W.clamp_min(values_W.max() * _FLAT).sqrt()
    projection = model.enc_to_dec_proj
    projection.weight.zero_()
    projection.weight[: len(mean_W)] = whitening_WW.T.to(projection.weight.dtype)
    projection.bias.copy_(-projection.weight @ mean_W.to(projection.weight.dtype))


def fit_captioner(
    model: VisionEncoderDecoderModel,
    tokenizer: CLIPTokenizer,
    pictures: Pictures,
    settings: TeacherCaptionerConfig,
    *,
    seed: int,
    metrics: Path,
    cache: int,
) -> Fitted:
    """Fits a captioner's decoder in place: the next word of a caption of people's, drawn at random for each image.

    Raises:
        DataError: no image has a caption.
        TrainingError: the loss is not finite.
    """
    batches = pictures.batches(settings.batch_size, seed=seed, keep=lambda picture: len(picture.captions) > 0)
    rng, seen = np.random.default_rng(seed), SeenPictures(model.encoder, most=cache)
    start_projection(model, torch.cat([seen(next(batches)) for _ in range(_LOOKS)]))

    def example(batch: Sequence[Picture]) -> tuple[Tensor, Tensor, Tensor]:
        texts = [
            (each.prompt if rng.random() < _PROMPTED else "", each.captions[rng.integers(len(each.captions))])
            for each in batch
        ]
        return *sentences(texts, tokenizer, settings.context_length), seen(batch)

    schedule = Schedule(steps=settings.steps, learning_rate=settings.learning_rate, muon_rate=settings.muon_rate)
    with closing(prefetched((example(batch) for batch in batches), depth=2)) as ready:

        def losses(step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
            ids_BL, wanted_BL, states_BPW = (part.to(model.device) for part in next(ready))
            # Padding stands at the end, where no word before it can look.
            logits_BLV = model.decoder(input_ids=ids_BL, encoder_hidden_states=model.enc_to_dec_proj(states_BPW)).logits
            loss = F.cross_entropy(logits_BLV.flatten(0, 1), wanted_BL.flatten(), ignore_index=_IGNORED)
            return loss, {}

        return fit(NAME, model, losses, schedule, metrics=metrics)


def sentences(texts: Sequence[tuple[str, str]], tokenizer: CLIPTokenizer, context_length: int) -> tuple[Tensor, Tensor]:
    """Prompts and captions as what the decoder reads and what it should say next, both (B, L).

    A prompt is only read: its words, and what fills up the rows, are wanted as `_IGNORED`. Prompts and captions are cut
    to the context's length each.
    """
    rows, wanted = [], []
    for prompt, caption in texts:
        given = tokenizer(prompt, add_special_tokens=False)["input_ids"][:context_length] if prompt else []
        said = tokenizer(caption, add_special_tokens=False)["input_ids"][: context_length - 2]
        rows.append([tokenizer.bos_token_id, *given, *said])
        wanted.append([*[_IGNORED] * len(given), *said, tokenizer.eos_token_id])
    longest = max(map(len, rows))
    return (
        torch.tensor([[*row, *[tokenizer.eos_token_id] * (longest - len(row))] for row in rows]),
        torch.tensor([[*row, *[_IGNORED] * (longest - len(row))] for row in wanted]),
    )


def save_captioner(model: VisionEncoderDecoderModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes weights, tokenizer and image processor as a public checkpoint has them."""
    size = model.config.encoder.image_size
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"height": size, "width": size},
        do_center_crop=False,
        image_mean=list(PIXEL_MEAN),
        image_std=list(PIXEL_STD),
    ).save_pretrained(folder)
