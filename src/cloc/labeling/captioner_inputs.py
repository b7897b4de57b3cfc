"""How an image and its prompt become the inputs of a captioner of `transformers`: three kinds of models, three readers.

- `ChatReader`: the prompt is a question in the checkpoint's own chat template (LLaVA, Qwen2-VL, Idefics3, ...).
- `ContinuingReader`: the caption begins with the prompt (BLIP, GIT, a vision encoder with a text decoder).
- `InstructedReader`: anything else that takes an image and a text (PaliGemma, BLIP-2, Florence-2, ...).

Inputs are read one image at a time, in the threads that decode, and collated later. Shapes: B images, L tokens of a
prompt with the image's own; every tensor that is read has a first axis of one image, or of its patches.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.processing_utils import ProcessorMixin

from cloc.errors import ConfigError
from cloc.labeling.captioners import QUESTION
from cloc.labeling.models import load

KEY = "captioning.model"
_CONTINUING = ("blip", "git", "vision-encoder-decoder")
_LENGTH_STEP = 1.25  # prompts of one batch differ by at most this factor in length, so that little of it is padding
Inputs = Mapping[str, Tensor]


class Reader(Protocol):
    """Reads an image and a prompt.

    Attributes:
        tokenizer: the checkpoint's.
        question: the prompt where none is set.
        continues: whether a caption begins with its prompt.
        forbidden: texts with a meaning of their own to the model, which an alt-text must not hold.
    """

    tokenizer: Any
    question: str
    continues: bool
    forbidden: tuple[str, ...]

    def read(self, image: Image.Image, prompt: str) -> dict[str, Tensor]:
        """The model's inputs for one image; may be called by several threads at once.

        Raises:
            ValueError: the prompt does not go with an image.
        """

    def length_class(self, length: int) -> int:
        """Prompts of equal class may be padded to one length."""


class ContinuingReader:
    """The caption begins with the prompt: BLIP, GIT, `VisionEncoderDecoderModel`.

    Positions count from the first token, padding included: only prompts of one length share a batch.
    """

    question = ""
    continues = True

    def __init__(self, model: str, config: Any, *, max_new_tokens: int) -> None:
        self._image_processor = _image_processor(model)
        self.tokenizer = load(AutoTokenizer.from_pretrained, model, key=KEY)
        self.forbidden = tuple(self.tokenizer.all_special_tokens)
        self._kind = config.model_type
        text = config.decoder if self._kind == "vision-encoder-decoder" else config.get_text_config()
        # Beyond its positions a decoder fails: a long alt-text leaves room for the start token and the caption.
        self._longest = max(1, text.max_position_embeddings - max_new_tokens - 1)

    def read(self, image: Image.Image, prompt: str) -> dict[str, Tensor]:
        """See `Reader`."""
        inputs = _tensors(self._image_processor(images=image, return_tensors="pt"))
        if not prompt:
            return inputs
        if self._kind == "vision-encoder-decoder":  # generation puts its start token before
            ids_1L = self._ids(prompt, add_special_tokens=False)[:, : self._longest]
            return {**inputs, "decoder_input_ids": ids_1L}
        ids_1L = self._ids(prompt)
        # A prompt must not end in the token that ends a caption; BLIP's own generation drops it.
        if self._kind != "blip" and int(ids_1L[0, -1]) in (self.tokenizer.sep_token_id, self.tokenizer.eos_token_id):
            ids_1L = ids_1L[:, :-1]
        ids_1L = ids_1L[:, : self._longest]
        return {**inputs, "input_ids": ids_1L, "attention_mask": torch.ones_like(ids_1L)}

    def length_class(self, length: int) -> int:
        """See `Reader`."""
        return length

    def _ids(self, text: str, **settings: Any) -> Tensor:
        ids: list[int] = self.tokenizer(text, **settings)["input_ids"]
        return torch.tensor([ids])


class InstructedReader:
    """The prompt is an instruction, or text around the image; the answer stands alone."""

    question = ""
    continues = False

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.tokenizer = processor.tokenizer
        self.forbidden = _special(processor)

    def read(self, image: Image.Image, prompt: str) -> dict[str, Tensor]:
        """See `Reader`."""
        text = {"text": prompt} if prompt else {}
        return _tensors(self._processor(images=image, **text, return_tensors="pt"))

    def length_class(self, length: int) -> int:
        """See `Reader`."""
        return length


class ChatReader:
    """The prompt is a question in the checkpoint's chat template.

    Raises:
        ConfigError: the template does not record the question.
    """

    question = QUESTION
    continues = False

    def __init__(self, processor: Any, model: str) -> None:
        self._processor = processor
        self.tokenizer = processor.tokenizer
        self.forbidden = _special(processor)
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
        try:
            rendered = processor.apply_chat_template(chat, add_generation_prompt=True)
        except (ValueError, TypeError, KeyError, ImportError, TemplateError) as error:
            raise ConfigError(f"{KEY}: the chat template of {model!r} fails ({first_line(error)})") from error
        if QUESTION not in rendered:
            raise ConfigError(f"{KEY}: the chat template of {model!r} leaves the question out; name another checkpoint")

    def read(self, image: Image.Image, prompt: str) -> dict[str, Tensor]:
        """See `Reader`."""
        content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        tensors = _tensors(inputs)
        tensors.setdefault("attention_mask", torch.ones_like(tensors["input_ids"]))
        return tensors

    def length_class(self, length: int) -> int:
        """See `Reader`."""
        return int(math.log(length, _LENGTH_STEP))


def make_reader(model: str, config: Any, *, max_new_tokens: int) -> Reader:
    """The reader that suits a checkpoint.

    Args:
        model: hub id or folder.
        config: its configuration.
        max_new_tokens: longest caption.

    Raises:
        ConfigError: what it prepares images and texts with cannot be loaded.
    """
    if config.model_type in _CONTINUING:
        return ContinuingReader(model, config, max_new_tokens=max_new_tokens)
    processor = _processor(model, config)
    if getattr(processor, "chat_template", None):
        return ChatReader(processor, model)
    return InstructedReader(processor)


def _processor(model: str, config: Any) -> Any:
    """The checkpoint's processor, without its part for videos where that lacks the torchvision it needs."""
    make: Callable[..., Any] = AutoProcessor.from_pretrained
    kind = PROCESSOR_MAPPING.get(type(config), None)
    if kind is not None and "video_processor" in kind.get_attributes() and not _has_torchvision():
        make = _for_pictures(kind).from_pretrained
    # The PIL back end, by name: the default one needs torchvision.
    processor = load(make, model, key=KEY, backend="pil")
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise ConfigError(
            f"{KEY}: {model!r} comes without a processor of images and texts; name a checkpoint saved with one"
        )
    return processor


def _has_torchvision() -> bool:
    from transformers.utils import is_torchvision_available

    return bool(is_torchvision_available())


def _for_pictures(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class whose video part is left out: it is never used here, and needs torchvision."""

    class ForPictures(kind):
        video_processor = _NoVideos()

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in kind.get_attributes() if name != "video_processor"]

        @classmethod
        def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
            loaded = iter(super()._get_arguments_from_pretrained(*args, **kwargs))
            return [None if name == "video_processor" else next(loaded) for name in kind.get_attributes()]

    ForPictures.__name__ = kind.__name__
    return ForPictures


class _NoVideos:
    """Stands for a video processor where a template asks it for its defaults."""

    num_frames = None
    fps = None


def _image_processor(model: str) -> Any:
    return load(AutoImageProcessor.from_pretrained, model, key=KEY, backend="pil")


def _special(processor: Any) -> tuple[str, ...]:
    """All added tokens but ordinary words, and those that images and videos stand behind."""
    added = [str(token.content) for token in processor.tokenizer.added_tokens_decoder.values()]
    own = [getattr(processor, name, None) for name in ("image_token", "video_token", "boi_token", "eoi_token")]
    named = [*added, *processor.tokenizer.all_special_tokens, *(token for token in own if isinstance(token, str))]
    return tuple(dict.fromkeys(token for token in named if token.strip() and not token.strip().isalnum()))


def _tensors(features: Mapping[str, Any]) -> dict[str, Tensor]:
    strange = [name for name, value in features.items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(f"its processor gives {', '.join(strange)} as something else than tensors")
    return dict(features)


def bucket(inputs: Inputs, reader: Reader) -> Hashable:
    """What inputs must have in common to be collated: shapes of the image, and about the length of the text."""
    length = _length(inputs)
    shapes = tuple(
        (name, tuple(value.shape[1:])) for name, value in inputs.items() if not _is_text(name, value, length)
    )
    prompts = [value.shape[1] for name, value in inputs.items() if name == "decoder_input_ids"]
    return (shapes, *prompts, reader.length_class(length) if length else 0)


def collate(batch: Sequence[Inputs], *, padding: int) -> dict[str, Tensor]:
    """Inputs of images of one bucket -> inputs of the batch; texts are padded on the left, where generation needs it.

    Args:
        batch: inputs of one image each.
        padding: token that fills up `input_ids`; everything else is filled with zeros.
    """
    longest = max(_length(inputs) for inputs in batch)
    collated = {}
    for name in batch[0]:
        parts = []
        for inputs in batch:
            value, length = inputs[name], _length(inputs)
            if _is_text(name, value, length):
                fill = padding if name == "input_ids" else 0
                rest = [0, 0] * (value.ndim - 2)
                value = torch.nn.functional.pad(value, [*rest, longest - length, 0], value=fill)
            parts.append(value)
        collated[name] = torch.cat(parts)
    return collated


def _length(inputs: Inputs) -> int:
    return inputs["input_ids"].shape[1] if "input_ids" in inputs else 0


def _is_text(name: str, value: Tensor, length: int) -> bool:
    """Whether a tensor has a value for each token: ids, masks, types."""
    return bool(length) and value.ndim >= 2 and value.shape[1] == length and not name.startswith(("pixel", "image"))


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
