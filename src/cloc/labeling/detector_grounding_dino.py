"""Grounding DINO and MM-Grounding-DINO: proposals compared with the words of a prompt, "red key. apple.".

A box's phrase is the one that its best-scoring word belongs to: each phrase's span in the prompt is known, since the
prompt is put together from the phrases' own tokens. Phrases that do not fit into one prompt go into several, and the
image is looked at again for each. Shapes: B images, R prompts (of images), H x W pixels, P boxes, T tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from cloc.boxes import Letterbox
from cloc.config.schema import GroundingConfig
from cloc.errors import ConfigError
from cloc.labeling.detector_network import KEY, Candidates, Checkpoint, Pixels, Stretched, paste

# Sides are filled up to a multiple of this, so that images of about one shape share a batch; by themselves, so that an
# image's boxes do not depend on the others.
_STEP = 32
_FINEST = 8  # stride of the finest feature map
_NO_PHRASE = -1


@dataclass
class _Prompt:
    """What one image is asked for at once: tokens, and which of the image's phrases each belongs to."""

    image: int
    tokens: list[int] = field(default_factory=list)
    phrases: list[int] = field(default_factory=list)

    def add(self, tokens: Sequence[int], phrase: int) -> None:
        self.tokens += tokens
        self.phrases += [phrase] * len(tokens)


class GroundingDinoNetwork:
    """See `detector_network.Network`.

    `grounding.image_size` is the long side here; 0 resizes as the checkpoint's own processor does.

    Raises:
        ConfigError: the checkpoint cannot be loaded, or its tokenizer parts phrases otherwise than the model.
    """

    def __init__(self, config: GroundingConfig) -> None:
        self._checkpoint = Checkpoint(config)
        self._model, tokenizer = self._checkpoint.model, self._checkpoint.tokenizer
        self._size = config.image_size
        edges = self._checkpoint.processor.size
        if not self._size and not (edges.shortest_edge and edges.longest_edge):
            raise ConfigError(
                f"grounding.image_size: {config.model!r} names no shortest and longest edge of its own ({edges}); "
                "set image_size"
            )
        self._start, self._end = tokenizer.cls_token_id, tokenizer.sep_token_id
        self._stop = tokenizer.convert_tokens_to_ids(".")
        self._special = set(self._model.model.special_tokens.tolist())
        if not {self._start, self._end, self._stop} <= self._special:
            raise ConfigError(
                f"{KEY}: the tokenizer of {config.model!r} has other numbers for [CLS], [SEP] and '.' "
                f"({self._start}, {self._end}, {self._stop}) than the model parts phrases at "
                f"({sorted(self._special)}); use the tokenizer that it was trained with"
            )

    def prepare(self, image: Image.Image) -> Pixels:
        """The image in its own shape, in the top-left corner of an input whose sides are multiples of 32 pixels."""
        width, height = self._resized(image)
        columns, rows = _padded(width), _padded(height)
        # The model picks its proposals among the positions of the feature maps: there must be enough of them.
        while rows * columns < self._model.config.num_queries * _FINEST**2:
            rows, columns = (rows + _STEP, columns) if rows <= columns else (rows, columns + _STEP)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        # Its boxes are shares of the image itself, not of the padded input.
        return paste(resized, height=rows, width=columns, frame=Stretched())

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) of the image in the input, pixels."""
        if self._size:
            return Letterbox(image.width, image.height, self._size).resized
        edges = self._checkpoint.processor.size
        scale = min(edges.shortest_edge / min(image.size), edges.longest_edge / max(image.size))
        return max(1, round(image.width * scale)), max(1, round(image.height * scale))

    @torch.inference_mode()
    def predict(
        self, batch: Sequence[Pixels], queries: Sequence[Sequence[str]], *, threshold: float
    ) -> list[Candidates]:
        """See `detector_network.Network`."""
        pixels_BCHW = self._checkpoint.normalised(batch)
        mask_BHW = torch.zeros(len(batch), *pixels_BCHW.shape[2:], dtype=torch.long, device=pixels_BCHW.device)
        for mask_HW, pixels in zip(mask_BHW, batch, strict=True):
            mask_HW[: pixels.rows, : pixels.columns] = 1
        pixels_BCHW *= mask_BHW[:, None]  # padding is 0 after normalisation, as the checkpoint was trained
        prompts = self._prompts(queries)
        found: list[list[Candidates]] = [[] for _ in batch]
        for first in range(0, len(prompts), len(batch)):
            part = prompts[first : first + len(batch)]
            images_R = torch.tensor([prompt.image for prompt in part], device=pixels_BCHW.device)
            answers = self._ask(pixels_BCHW[images_R], mask_BHW[images_R], part, threshold=threshold)
            for prompt, answer in zip(part, answers, strict=True):
                found[prompt.image].append(answer)
        return [_joined(parts) for parts in found]

    def _ask(
        self, pixels_RCHW: torch.Tensor, mask_RHW: torch.Tensor, prompts: Sequence[_Prompt], *, threshold: float
    ) -> list[Candidates]:
        longest = max(len(prompt.tokens) for prompt in prompts)
        padding = self._checkpoint.tokenizer.pad_token_id or 0
        missing = [longest - len(prompt.tokens) for prompt in prompts]
        tokens = [prompt.tokens + [padding] * short for prompt, short in zip(prompts, missing, strict=True)]
        phrases = [prompt.phrases + [_NO_PHRASE] * short for prompt, short in zip(prompts, missing, strict=True)]
        tokens_RT = torch.tensor(tokens, device=pixels_RCHW.device)
        phrases_RT = torch.tensor(phrases, device=pixels_RCHW.device)
        real = [[number < len(prompt.tokens) for number in range(longest)] for prompt in prompts]
        output = self._model(
            pixel_values=pixels_RCHW,
            pixel_mask=mask_RHW,
            input_ids=tokens_RT,
            token_type_ids=torch.zeros_like(tokens_RT),
            attention_mask=torch.tensor(real, device=pixels_RCHW.device).long(),
        )
        logits_RPT = output.logits[..., :longest].float()
        best_RP, token_RP = logits_RPT.masked_fill(phrases_RT[:, None] == _NO_PHRASE, -torch.inf).max(dim=-1)
        phrase_RP = phrases_RT.gather(1, token_RP)
        return self._checkpoint.candidates(output.pred_boxes, best_RP.sigmoid(), phrase_RP, threshold=threshold)

    def _prompts(self, queries: Sequence[Sequence[str]]) -> list[_Prompt]:
        """Prompts of a batch's images, image by image; an image whose phrases have no token of their own has none."""
        distinct = list(dict.fromkeys(phrase for phrases in queries for phrase in phrases))
        encoded = self._checkpoint.tokenizer(distinct, add_special_tokens=False)["input_ids"]
        tokens = {
            phrase: [token for token in ids if token not in self._special]
            for phrase, ids in zip(distinct, encoded, strict=True)
        }
        return [
            prompt
            for image, phrases in enumerate(queries)
            for prompt in self._of_image(image, [tokens[phrase] for phrase in phrases])
        ]

    def _of_image(self, image: int, phrases: Sequence[Sequence[int]]) -> Iterator[_Prompt]:
        room = self._model.config.max_text_len - 1  # the end's
        prompt: _Prompt | None = None
        for number, tokens in enumerate(phrases):
            kept = tokens[: room - 2]
            if not kept:
                continue
            if prompt is None or len(prompt.tokens) + len(kept) + 1 > room:
                if prompt is not None:
                    prompt.add([self._end], _NO_PHRASE)
                    yield prompt
                prompt = _Prompt(image)
                prompt.add([self._start], _NO_PHRASE)
            prompt.add(kept, number)
            prompt.add([self._stop], _NO_PHRASE)
        if prompt is not None:
            prompt.add([self._end], _NO_PHRASE)
            yield prompt


def _padded(side: int) -> int:
    return -(-side // _STEP) * _STEP


def _joined(parts: Sequence[Candidates]) -> Candidates:
    empty = Candidates(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.intp))
    parts = [empty, *parts]
    return Candidates(
        np.concatenate([part.boxes_cxcywh for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.queries for part in parts]),
    )
