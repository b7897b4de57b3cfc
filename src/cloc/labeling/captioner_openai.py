"""Captions by an OpenAI-compatible vision endpoint: vLLM, SGLang, KServe, or a provider's.

    captioning: {backend: openai, model: Qwen/Qwen2.5-VL-7B-Instruct, endpoint: {base_url: http://vllm:8000/v1}}

Each image is one POST to `chat/completions`: the question, and the image as a JPEG in a data URL. The whole request is
made in the decoding threads, so that only its bytes wait. See `endpoint` for what happens when it fails.

Reproducible as far as the endpoint is: every image has a seed of its own, and nothing depends on its batch.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from cloc.config.schema import CaptioningConfig
from cloc.errors import ConfigError
from cloc.labeling.captioners import QUESTION, Prompt, Prompts, Said
from cloc.labeling.endpoint import Endpoint, Refused, TryAgain
from cloc.labeling.worker import Item
from cloc.stage import fingerprint

_JPEG_QUALITY = 90
_SEED_BITS = 31  # what every endpoint takes


@dataclass(frozen=True)
class Request:
    """The body of an image's request, with what it asks."""

    body: bytes
    prompt: Prompt


class OpenAICaptioner:
    """Asks an endpoint for one caption an image.

    Args:
        config: section `captioning`. Settings of `generation` at 0, or `top_p` at 1, are left to the endpoint.

    Raises:
        ConfigError: no model is named, or the endpoint's URL or the key cannot be sent.
    """

    kind: Literal["human", "generated"] = "generated"

    def __init__(self, config: CaptioningConfig) -> None:
        if not config.model:
            raise ConfigError(
                "captioning.model is empty; name the model as the endpoint does (GET {base_url}/models lists them)"
            )
        self._config = config
        self.model = config.model
        # Two batches more than fill the endpoint: the slowest answers of two leave it no slot idle.
        self.in_flight = -(-config.endpoint.concurrency // config.batch_size) + 2
        self._prompts = Prompts(config, default=QUESTION)
        self._endpoint = Endpoint(
            config.endpoint,
            path="chat/completions",
            read=read_answer,
            processes=config.processes,
            at_once=self.in_flight * config.batch_size,
            model=config.model,
        )

    def prepare(self, item: Item) -> Request:
        """See `captioners.Captioner`: the request, ready to be sent."""
        prompt, generation = self._prompts(item), self._config.generation
        content = [
            {"type": "image_url", "image_url": {"url": _data_url(item.image, side=self._config.endpoint.image_side)}},
            {"type": "text", "text": prompt.text},
        ]
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": generation.max_new_tokens,
            "seed": int(fingerprint(generation.seed, item.key), 16) % 2**_SEED_BITS,
        }
        if generation.temperature:
            request["temperature"] = generation.temperature
        if generation.top_p < 1:
            request["top_p"] = generation.top_p
        return Request(json.dumps(request).encode(), prompt)

    def bucket(self, prepared: Request) -> None:
        """All fit together."""

    def caption(self, batch: Sequence[Request]) -> list[Said]:
        """See `captioners.Captioner`.

        Raises:
            ClocError: the endpoint fails or refuses everyone.
        """
        replies = self._endpoint.ask([request.body for request in batch])
        return [
            Said(refused=reply.refused) if reply.refused else Said(texts=(reply.text,), prompt=request.prompt.question)
            for reply, request in zip(replies, batch, strict=True)
        ]


def read_answer(payload: bytes) -> str:
    """The text of a chat completion.

    Raises:
        TryAgain: it is none, or says nothing.
        Refused: a content filter, or the model itself, refuses the image.
    """
    try:
        choice = json.loads(payload)["choices"][0]
        message, finished = choice["message"], choice.get("finish_reason")
        text, refusal = _text(message.get("content")), message.get("refusal")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise TryAgain("endpoint: its answer is no chat completion") from None
    if text.strip():
        return text
    if refusal or finished == "content_filter":
        raise Refused("endpoint: the model or its filter refused the image")
    if finished == "length":
        raise TryAgain("endpoint: empty answer, at its longest (generation.max_new_tokens)")
    raise TryAgain("endpoint: empty answer")


def _text(content: Any) -> str:
    """A message's text, which may come in parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    return content if isinstance(content, str) else ""


def _data_url(image: Image.Image, *, side: int) -> str:
    """The image as a JPEG whose long side has at most `side` pixels (0 for any)."""
    scale = side / max(image.size)
    if side and scale < 1:
        width, height = (max(1, round(scale * length)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
