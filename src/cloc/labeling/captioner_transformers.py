"""Captions by a model of `transformers`: whatever `AutoModelForImageTextToText` loads, by hub id or folder.

Chat models (LLaVA, Qwen2-VL, Idefics3, ...) are asked a question in their own template; BLIP, GIT and a vision encoder
with a text decoder continue a text; the others are given an instruction. See `captioner_inputs`.

Images are prepared one by one in the decoding threads and share a batch when their tensors have the same shape. A
caption does not depend on the images beside it, sampled or not: every image draws from a generator of its own. Shapes:
B images, L tokens, V entries of the vocabulary.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from cloc.config.schema import CaptioningConfig, GenerationConfig
from cloc.errors import ClocError, ConfigError
from cloc.labeling.captioner_inputs import KEY, bucket, collate, first_line, make_reader
from cloc.labeling.captioners import Prompt, Prompts, Said
from cloc.labeling.models import check_model, load, load_model, model_name, pick_device
from cloc.labeling.worker import Item
from cloc.stage import fingerprint

_PROBE_SIDE = 64
_BEFORE_PUNCTUATION = re.compile(r"(?<=\w) (?=[,.;!?](?:\s|$))")
# What a checkpoint that does not fit together raises, in its processor or in its model.
_CHECKPOINT_ERRORS = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ImportError, AssertionError,
    TemplateError,
)  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """An image as the model's inputs (a batch of one), with what it is asked."""

    key: str
    prompt: Prompt
    inputs: Mapping[str, Tensor]


class TransformersCaptioner:
    """Generates one caption an image.

    Args:
        config: section `captioning`. Settings of `generation` at their default (0, or 1) leave the checkpoint's own in
            force.

    Raises:
        ConfigError: the checkpoint cannot be loaded, makes no captions, or does not fit its settings.
    """

    kind: Literal["human", "generated"] = "generated"
    in_flight = 1

    def __init__(self, config: CaptioningConfig) -> None:
        self._config = config
        self.model = model_name(config.model)
        check_model(config.model, key=KEY)
        architecture = _captioner_config(config.model)
        device = pick_device(config.device, key="captioning.device")
        self._reader = make_reader(config.model, architecture, max_new_tokens=config.generation.max_new_tokens)
        self._prompts = Prompts(config, default=self._reader.question, forbidden=self._reader.forbidden)
        self._model = load_model(
            AutoModelForImageTextToText.from_pretrained,
            config.model,
            key=KEY,
            dtype=config.dtype,
            device=device,
            device_map=config.device_map,
        )
        self._generation = Generation.of(self._model, config.generation)
        tokenizer = self._reader.tokenizer
        self._padding = next(
            (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0
        )
        self._probe()

    def prepare(self, item: Item) -> Prepared:
        """See `captioners.Captioner`; pixels are kept in the model's precision."""
        prompt = self._prompts(item)
        return self._read(item.key, item.image, prompt)

    def bucket(self, prepared: Prepared) -> Hashable:
        """Shapes of the image's tensors, and about the length of its prompt with the image's tokens."""
        return bucket(prepared.inputs, self._reader)

    @torch.inference_mode()
    def caption(self, batch: Sequence[Prepared]) -> list[Said]:
        """See `captioners.Captioner`.

        Raises:
            ClocError: the device has not memory enough, or the model's values are not finite.
        """
        inputs = collate([prepared.inputs for prepared in batch], padding=self._padding)
        try:
            tokens_BL = self._generate(inputs, [prepared.key for prepared in batch])
        except torch.OutOfMemoryError:
            raise ClocError(
                f"{KEY}: out of memory with {len(batch)} images of {self.model!r} at once; lower captioning.batch_size"
            ) from None
        return [
            Said(
                texts=(self._text(row_L, prepared),),
                prompt="" if self._reader.continues else prepared.prompt.question,
            )
            for row_L, prepared in zip(tokens_BL.cpu(), batch, strict=True)
        ]

    def _read(self, key: str, image: Image.Image, prompt: Prompt) -> Prepared:
        inputs = self._reader.read(image, prompt.text)
        dtype = self._model.dtype
        return Prepared(key, prompt, {name: value.to(dtype) if value.is_floating_point() else value
                                      for name, value in inputs.items()})  # fmt: skip

    def _generate(self, inputs: Mapping[str, Tensor], keys: Sequence[str], **settings: Any) -> Tensor:
        device = self._model.device
        on_device = {name: value.to(device) for name, value in inputs.items()}
        finite = _Finite()
        tokens_BL: Tensor = self._model.generate(
            **on_device,
            **{**self._generation.settings, **settings},
            logits_processor=LogitsProcessorList([finite, *self._generation.samplers(keys)]),
        )
        if finite.broken:
            raise ClocError(
                f"{KEY}: {self.model!r} gives values that are not finite (captioning.dtype is {self._config.dtype}); "
                "use float32, or another checkpoint"
            )
        return tokens_BL

    def _text(self, tokens_L: Tensor, prepared: Prepared) -> str:
        """The caption. A text that the model continued is part of it, an alt-text that it was given is not."""
        given = prepared.inputs.get("input_ids", prepared.inputs.get("decoder_input_ids"))
        if not self._reader.continues:
            return self._decode(_after(tokens_L, given))
        whole = self._decode(tokens_L)
        if given is None:
            return whole
        begun = self._decode(given[0])
        rest = whole.removeprefix(begun).strip()
        # A caption that only says its prompt says nothing.
        return whole if rest and not prepared.prompt.fused else rest

    def _decode(self, tokens_L: Tensor) -> str:
        text: str = self._reader.tokenizer.decode(tokens_L, skip_special_tokens=True)
        # Tokenizers that split words from punctuation put a space between them.
        return _BEFORE_PUNCTUATION.sub("", text.strip())

    def _probe(self) -> None:
        """Captions a grey picture in one word: what does not fit together shows at once, and not in every image."""
        image = Image.new("RGB", (_PROBE_SIDE, _PROBE_SIDE), "grey")
        model = self._config.model
        try:
            with torch.inference_mode():
                prepared = self._read("probe", image, self._prompts.plain)
                inputs = collate([prepared.inputs], padding=self._padding)
                tokens_BL = self._generate(inputs, ["probe"], max_new_tokens=1)
            self._text(tokens_BL[0].cpu(), prepared)
        except ClocError:
            raise
        except torch.OutOfMemoryError:
            raise ClocError(
                f"{KEY}: out of memory with {model!r} and one image; use a smaller model, or captioning.device_map"
            ) from None
        except _CHECKPOINT_ERRORS as error:
            raise ConfigError(
                f"{KEY}: {model!r} cannot caption a test image ({first_line(error)}); name another checkpoint, or set "
                "captioning.prompt to what it expects"
            ) from error


def _captioner_config(model: str) -> Any:
    """A checkpoint's configuration. Raises ConfigError when its architecture makes no captions."""
    config = load(AutoConfig.from_pretrained, model, key=KEY)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ConfigError(
            f"{KEY}: cannot load {model!r} (a {config.model_type!r} model makes no text of an image); use a captioner "
            "or a chat model that sees, such as BLIP, GIT, LLaVA or Qwen2-VL"
        )
    return config


def _after(tokens_L: Tensor, given: Tensor | None) -> Tensor:
    """Tokens after the prompt, for models that give it back with their answer; all for the others."""
    if given is None or tokens_L.shape[0] < given.shape[1]:
        return tokens_L
    length = given.shape[1]
    # Padding on the left stands before the prompt.
    for first in range(tokens_L.shape[0] - length + 1):
        if torch.equal(tokens_L[first : first + length], given[0]):
            return tokens_L[first + length :]
    return tokens_L


@dataclass(frozen=True)
class Generation:
    """How captions are generated.

    Attributes:
        settings: arguments of `generate`.
        temperature: 0 takes the likeliest word.
        top_k: so many words are sampled from; 0 for all.
        top_p: share of the probability that is sampled from.
        seed: of the sampling.
    """

    settings: Mapping[str, Any]
    temperature: float
    top_k: int
    top_p: float
    seed: int

    @classmethod
    def of(cls, model: Any, config: GenerationConfig) -> "Generation":
        """The settings over the checkpoint's own, whose sampling is then done here.

        Raises:
            ConfigError: sampling together with beams.
        """
        # BLIP generates with a decoder inside, whose own settings count.
        found = [module.generation_config for module in model.modules() if getattr(module, "generation_config", None)]
        own = next((each for each in found if each.do_sample), found[0])
        temperature = config.temperature or (float(own.temperature or 1.0) if own.do_sample else 0.0)
        beams = config.num_beams if config.num_beams > 1 else int(own.num_beams or 1)
        if temperature and config.num_beams > 1:
            raise ConfigError(
                f"captioning.generation: num_beams {config.num_beams} and temperature {temperature:g} exclude each "
                "other; set one of them to its default"
            )
        settings: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "do_sample": False}
        settings["num_beams"] = 1 if temperature else beams
        if config.repetition_penalty > 1:
            settings["repetition_penalty"] = config.repetition_penalty
        generation = cls(
            settings=settings,
            temperature=temperature,
            top_k=int(own.top_k or 0),
            top_p=config.top_p if config.top_p < 1 else float(own.top_p or 1.0),
            seed=config.seed,
        )
        for each in found:  # what is done here, or would give something else than one row of tokens an image
            each.do_sample, each.max_length = False, None
            each.temperature = each.top_k = each.top_p = None
            each.num_return_sequences = each.return_dict_in_generate = None
        return generation

    def samplers(self, keys: Sequence[str]) -> list[LogitsProcessor]:
        """What chooses the words of the images of these keys; nothing where the likeliest is taken."""
        if not self.temperature:
            return []
        chosen: list[LogitsProcessor] = [TemperatureLogitsWarper(float(self.temperature))]
        if self.top_k:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            chosen.append(TopPLogitsWarper(self.top_p))
        return [*chosen, Sampler([int(fingerprint(self.seed, key), 16) >> 1 for key in keys])]


class Sampler(LogitsProcessor):
    """Makes the likeliest word a sample: argmax(logits + Gumbel noise) is distributed as softmax(logits).

    Each row has its own generator, so that what an image is said to show does not depend on its batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = seeds
        self._generators: list[torch.Generator] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits (B, V) -> logits with noise."""
        if not self._generators:  # a model that is spread over devices shows only here where its words come out
            self._generators = [torch.Generator(scores.device).manual_seed(seed) for seed in self._seeds]
        noise_BV = torch.empty_like(scores, dtype=torch.float32)
        for row_V, generator in zip(noise_BV, self._generators, strict=True):
            row_V.exponential_(generator=generator)
        return scores - noise_BV.clamp_min(torch.finfo(torch.float32).tiny).log()


class _Finite(LogitsProcessor):
    """Notices logits that are no numbers; looked at once at the end, since looking waits for the device."""

    def __init__(self) -> None:
        self._broken: Tensor | None = None

    @property
    def broken(self) -> bool:
        return self._broken is not None and bool(self._broken)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        broken = scores.isnan().any()
        self._broken = broken if self._broken is None else self._broken | broken
        return scores
