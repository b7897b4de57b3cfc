"""Greedy answers, for many prompts at once.

    answers = generate(adapter, chat, prompts, features_BND, max_tokens=32, precision="auto")

What all prompts begin with, the image's tokens above all, goes through the decoder once an image; questions follow
padded on the left. Tokens are the most probable ones, whatever a model's generation settings say.
Shapes: B prompts, U images, N spatial tokens, W their width, P tokens that all begin with, L of the rest, T of both or
of an answer, D decoder width, X of the prompts, K regions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cloc.mllm.chat import ChatFormat, Prompt, left_padded, stack_regions
from cloc.mllm.model import Adapter
from cloc.model.factory import autocast


@torch.no_grad()
def generate(
    adapter: Adapter,
    chat: ChatFormat,
    prompts: Sequence[Prompt],
    features_BND: Tensor,
    *,
    max_tokens: int,
    precision: str,
    images: Sequence[int] | None = None,
) -> list[str]:
    """Answers prompts.

    Args:
        adapter: the model.
        chat: its format, by which the prompts were made.
        prompts: any number.
        features_BND: `adapter.features` of their images: one row a prompt, or, with `images`, one an image (U, N, W).
        max_tokens: of an answer; fewer where the context ends.
        precision: as in section `adapter`.
        images: which row of the features each prompt asks about.

    Returns:
        The answers' texts, in the order of the prompts.
    """
    if not prompts:
        return []
    device = adapter.device
    images_B = torch.tensor(range(len(prompts)) if images is None else list(images), device=device)
    room = adapter.context_length - max(len(prompt.ids) for prompt in prompts)
    with _evaluating(adapter), autocast(precision, device):
        running = _begin(adapter, chat, prompts, features_BND.to(device), images_B)
        ids_BT = _decode(running, adapter, end_id=chat.end_id, limit=max(1, min(max_tokens, room)))
    return [chat.answer(ids) for ids in ids_BT.tolist()]


@dataclass
class _Running:
    """The prompts that are still being answered.

    Attributes:
        rows_B: which of all prompts they are.
        cache: the decoder's keys and values.
        embeds_BLD, mask_BT, positions_BL: what the decoder reads next, what it may look at, and where that stands.
    """

    rows_B: Tensor
    cache: Any
    embeds_BLD: Tensor
    mask_BT: Tensor
    positions_BL: Tensor

    def keep(self, places_X: Tensor) -> None:
        """Goes on with some of them."""
        self.cache.batch_select_indices(places_X)
        self.rows_B, self.mask_BT = self.rows_B[places_X], self.mask_BT[places_X]
        self.embeds_BLD, self.positions_BL = self.embeds_BLD[places_X], self.positions_BL[places_X]

    def step(self, adapter: Adapter) -> Tensor:
        """The decoder's next tokens (B,)."""
        hidden_BLD = adapter.decoder(
            inputs_embeds=self.embeds_BLD,
            attention_mask=self.mask_BT,
            position_ids=self.positions_BL,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        next_B: Tensor = adapter.model.lm_head(hidden_BLD[:, -1]).argmax(dim=-1)
        self.embeds_BLD = adapter.words(next_B[:, None])
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(next_B), 1)], dim=1)
        self.positions_BL = self.positions_BL[:, -1:] + 1
        return next_B


def _decode(running: _Running, adapter: Adapter, *, end_id: int, limit: int) -> Tensor:
    """Ids of the answers (B, T): the end token from the end on, T of the longest answer."""
    said_BT = torch.full((len(running.rows_B), limit), end_id, device=adapter.device)
    for place in range(limit):
        next_B = running.step(adapter)
        said_BT[running.rows_B, place] = next_B
        going_X = (said_BT[running.rows_B, : place + 1] != end_id).all(dim=1).nonzero()[:, 0]
        if not len(going_X):
            return said_BT[:, : place + 1]
        if 2 * len(going_X) <= len(running.rows_B):  # answers that have ended are taken along until they are many
            running.keep(going_X)
    return said_BT


def _begin(
    adapter: Adapter, chat: ChatFormat, prompts: Sequence[Prompt], features_UND: Tensor, images_B: Tensor
) -> _Running:
    """Reads the images, and puts the prompts' rest behind them."""
    device, start = adapter.device, len(chat.before)
    cache = _read_images(adapter, chat, features_UND)
    cache.batch_select_indices(images_B)
    ids_BL, mask_BL = left_padded([prompt.ids[start:] for prompt in prompts], pad_id=chat.end_id)
    ids_BL, mask_BL = ids_BL.to(device), mask_BL.to(device)
    regions_K4, rows_K = (each.to(device) for each in stack_regions([each.regions_R4 for each in prompts]))
    regions_KD = adapter.sample(features_UND, regions_K4, images_B[rows_K])
    mask_BT = torch.cat([mask_BL.new_ones(len(prompts), start), mask_BL], dim=1)
    return _Running(
        rows_B=torch.arange(len(prompts), device=device),
        cache=cache,
        embeds_BLD=adapter.put_regions(adapter.words(ids_BL), ids_BL, regions_KD),
        mask_BT=mask_BT,
        positions_BL=(mask_BT.cumsum(dim=1) - 1).clamp_min(0)[:, start:],
    )


def _read_images(adapter: Adapter, chat: ChatFormat, features_UND: Tensor) -> Any:
    """The decoder's keys and values of what every prompt begins with, one row an image."""
    device, images = adapter.device, len(features_UND)
    ids_UP = torch.tensor(chat.before, device=device).expand(images, -1)
    none = torch.zeros(0, 4, device=device), torch.zeros(0, dtype=torch.long, device=device)
    return adapter.decoder(
        inputs_embeds=adapter.embed(ids_UP, features_UND, *none),
        attention_mask=torch.ones_like(ids_UP),
        position_ids=torch.arange(len(chat.before), device=device).expand(images, -1),
        use_cache=True,
    ).past_key_values


@contextmanager
def _evaluating(adapter: Adapter) -> Iterator[None]:
    """Puts a model that is being trained into evaluation mode for a while."""
    parts, training = adapter.parts, adapter.model.training
    parts.eval()
    try:
        yield
    finally:
        parts.train(training)
