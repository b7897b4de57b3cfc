"""Captions by a `transformers` model: BLIP and other image-text-to-text models that continue a text."""

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cloc.config.schema import CaptioningConfig
from cloc.errors import ConfigError
from cloc.labeling.models import check_model, load, load_model, model_name, pick_device
from cloc.labeling.worker import Item

_KEY = "captioning.model"


class TransformersCaptioner:
    """Generates one caption an image: greedy, or by the beams of the checkpoint's own generation config.

    Raises:
        ConfigError: the checkpoint cannot be loaded, or is a chat model.
    """

    kind: Literal["human", "generated"] = "generated"
    nothing = "empty caption"

    def __init__(self, config: CaptioningConfig) -> None:
        self.model = model_name(config.model)
        self._prompt = config.prompt
        self._max_new_tokens = config.generation.max_new_tokens
        check_model(config.model, key=_KEY)
        self._device = pick_device(config.device, key="captioning.device")
        # The PIL back end, by name: the default one needs torchvision.
        self._processor = load(AutoProcessor.from_pretrained, config.model, key=_KEY, backend="pil")
        if getattr(self._processor, "chat_template", None):
            raise ConfigError(
                f"{_KEY}: {config.model!r} is a chat model; use a captioner that continues a text, such as BLIP"
            )
        self._model = load_model(
            AutoModelForImageTextToText.from_pretrained,
            config.model,
            key=_KEY,
            dtype=config.dtype,
            device=self._device,
        )

    @torch.inference_mode()
    def caption(self, batch: Sequence[Item]) -> list[list[str]]:
        """One caption an image; it holds the prompt, which it continues."""
        text = {"text": [self._prompt] * len(batch)} if self._prompt else {}
        inputs = self._processor(images=[item.image for item in batch], **text, return_tensors="pt")
        inputs = inputs.to(device=self._device, dtype=self._model.dtype)
        tokens_BL = self._model.generate(**inputs, max_new_tokens=self._max_new_tokens, do_sample=False)
        texts: list[str] = self._processor.batch_decode(tokens_BL, skip_special_tokens=True)
        return [[text] for text in texts]
