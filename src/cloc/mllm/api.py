"""Asking a tuned adapter about images.

    from cloc.mllm import Chat

    chat = Chat("adapter")                                                # a folder that `cloc tune` wrote
    chat.ask("photo.jpg", "where is the red key?").boxes                  # array([[x1, y1, x2, y2]])
    chat.ask("photo.jpg", "what is in <region>?", boxes=[[0.1, 0.2, 0.5, 0.9]]).text

    talk = chat.open("photo.jpg")                                         # read once, then asked in several turns
    talk.ask("what is in the image?")
    talk.ask("where is it?")

Boxes are xyxy in [0, 1] of the image as it is seen (upright). Those of a question take the places of its `<region>`,
in their order; without any they follow the question.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cloc.boxes import BoxesXYXY, Letterbox, area, as_boxes
from cloc.config.schema import DataConfig
from cloc.data.images import as_seen, decode_untrusted
from cloc.data.transforms import letterbox
from cloc.errors import ConfigError, DataError
from cloc.mllm.answering import generate
from cloc.mllm.boxtext import frame_problem, texts_to_boxes, write_region
from cloc.mllm.conversation import REGION_TOKEN, Conversation, Task, Turn, no_boxes
from cloc.mllm.model import Adapter
from cloc.mllm.saving import load_adapter
from cloc.model.factory import autocast, uses_bfloat16

AnyImage = Image.Image | str | Path


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model said.

    Attributes:
        text: as it said it; boxes in it are bins of the padded network input (see `boxtext`).
        boxes: those boxes in [0, 1] of the image as it is seen, (N, 4), in their order; a box that lies in the padding
            alone is left out.
    """

    text: str
    boxes: BoxesXYXY


class Chat:
    """An adapter that is asked.

    Args:
        adapter: one that is loaded, or the folder of one.
        device: where it is loaded to: "auto", "cpu" or "cuda".
        precision: as in section `adapter`.
        max_tokens: of an answer.

    Attributes:
        adapter: the model.

    Raises:
        ConfigError: the folder holds no adapter, or there is no such device.
    """

    def __init__(
        self, adapter: Adapter | str | Path, *, device: str = "auto", precision: str = "auto", max_tokens: int = 128
    ) -> None:
        if not isinstance(adapter, Adapter):
            place = chosen_device(device)
            dtype = torch.bfloat16 if uses_bfloat16(precision, place) else torch.float32
            adapter = load_adapter(adapter, device=place, dtype=dtype)
        self.adapter, self.precision, self.max_tokens = adapter, precision, max_tokens
        self.format = adapter.chat()

    def ask(self, image: AnyImage, question: str, *, boxes: npt.ArrayLike = ()) -> Answer:
        """The answer to one question.

        Args:
            image: a picture, or the file of one (jpg, png, webp).
            question: in words.
            boxes: what it points at, (R, 4).

        Raises:
            DataError: the image cannot be read, a box is none of the image, there are other boxes than `<region>`, or
                the conversation is longer than the context.
        """
        return self.open(image).ask(question, boxes=boxes)

    def open(self, image: AnyImage) -> "Talk":
        """A conversation about an image, which is read once. Raises DataError when it cannot be read."""
        picture = as_seen(image) if isinstance(image, Image.Image) else read_image(image)
        return Talk(self, picture, name="the image" if isinstance(image, Image.Image) else str(image))


class Talk:
    """A conversation about one image: each question is asked with what was said before.

    Attributes:
        image: as it is seen, RGB.
    """

    def __init__(self, chat: Chat, image: Image.Image, *, name: str) -> None:
        self.image, self._chat, self._name = image, chat, name
        pixels_SS3, self._frame = letterbox(image, size=chat.adapter.image_size)
        self._features_1ND = _features(chat, torch.from_numpy(pixels_SS3))
        self._turns: tuple[Turn, ...] = ()
        self._regions: BoxesXYXY = no_boxes()

    def ask(self, question: str, *, boxes: npt.ArrayLike = ()) -> Answer:
        """The answer to the next question; arguments and errors as in `Chat.ask`. After an error the question counts
        as not asked."""
        chat, tokens = self._chat, self._chat.adapter.sampler is not None
        asked = _checked(boxes, name=self._name)
        padded = self._frame.to_padded(asked)
        text = _written(question, padded, tokens=tokens)
        regions = as_boxes([*self._regions, *padded]) if tokens else no_boxes()
        held = Conversation(Task.OTHER, (*self._turns, Turn(text, "")), regions=regions)
        prompt = chat.format.prompt(held, key=self._name)
        [said] = generate(
            chat.adapter,
            chat.format,
            [prompt],
            self._features_1ND,
            max_tokens=chat.max_tokens,
            precision=chat.precision,
        )
        self._turns, self._regions = (*self._turns, Turn(text, said)), regions
        return Answer(said, _found(said, self._frame))

    def restart(self) -> None:
        """Forgets what was said."""
        self._turns, self._regions = (), no_boxes()


@torch.no_grad()
def _features(chat: Chat, pixels_SS3: Tensor) -> Tensor:
    with autocast(chat.precision, chat.adapter.device):
        return chat.adapter.features(pixels_SS3[None])


def chosen_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" means here. Raises ConfigError where there is no such device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: there is no usable GPU here; take auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def read_image(path: str | Path) -> Image.Image:
    """An image from a file that need not be trusted, as it is seen. Raises DataError when it cannot be read."""
    try:
        body = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"image {path}: cannot be read ({error.strerror or type(error).__name__})") from None
    seen = decode_untrusted(body, max_pixels=DataConfig().max_pixels)
    if isinstance(seen, str):
        raise DataError(f"image {path}: {seen}; give a jpg, png or webp")
    return seen


def _checked(boxes: npt.ArrayLike, *, name: str) -> BoxesXYXY:
    try:
        asked = as_boxes(boxes)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: {str(error).splitlines()[0]}") from None
    for box in asked:
        if reason := frame_problem(box):
            raise DataError(f"{name}: {reason}")
    return asked


def _written(question: str, padded_R4: BoxesXYXY, *, tokens: bool) -> str:
    """The question with its boxes as training writes them."""
    question = " ".join(question.split())
    if not question:
        raise DataError("the question is empty")
    regions, parts = [write_region(box, tokens=tokens) for box in padded_R4], question.split(REGION_TOKEN)
    if len(parts) == 1:
        return " ".join([question, *regions])
    if len(parts) - 1 != len(regions):
        raise DataError(f"the question has {len(parts) - 1} {REGION_TOKEN}, but there are {len(regions)} boxes")
    return "".join(part + region for part, region in zip(parts, [*regions, ""], strict=True))


def _found(text: str, frame: Letterbox) -> BoxesXYXY:
    boxes = frame.from_padded(texts_to_boxes(text)[0])
    return boxes[area(boxes) > 0]


__all__: Sequence[str] = ("Answer", "Chat", "Talk")
