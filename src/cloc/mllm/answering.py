"""Greedy answers, for many prompts at once.

    answers = generate(adapter, chat, prompts, features_BND, max_tokens=32, precision="auto")

What all prompts begin with, the image's tokens above all, goes through the decoder once an image; questions follow
padded on the left. Tokens are the most probable ones, whatever a model's generation settings say.
Shapes: B prompts, U images, N spatial tokens, W their width, P tokens that all begin with, L of the rest, D decoder
width, V words.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    rows_B = torch.tensor(range(len(prompts)) if images is None else list(images), device=adapter.device)
    room = adapter.context_length - max(len(prompt.ids) for prompt in prompts)
    with _evaluating(adapter), autocast(precision, adapter.device):
        ids_BT = _decode(
            adapter, chat, prompts, features_BND.to(adapter.device), rows_B, limit=max(1, min(max_tokens, room))
        )
    return [chat.answer(ids) for ids in ids_BT.tolist()]


def _decode(
    adapter: Adapter, chat: ChatFormat, prompts: Sequence[Prompt], features_UND: Tensor, rows_B: Tensor, *, limit: int
) -> Tensor:
    """Ids of the answers (B, T): the end token from the end on, T of the longest answer."""
    device, start = adapter.device, len(chat.before)
    cache = _read_images(adapter, chat, features_UND)
    cache.batch_select_indices(rows_B)
    ids_BL, mask_BL = left_padded([prompt.ids[start:] for prompt in prompts], pad_id=chat.end_id)
    ids_BL, mask_BL = ids_BL.to(device), mask_BL.to(device)
    regions_K4, region_rows_K = (each.to(device) for each in stack_regions([each.regions_R4 for each in prompts]))
    regions_KD = adapter.sample(features_UND, regions_K4, rows_B[region_rows_K])
    embeds_BLD = adapter.put_regions(adapter.words(ids_BL), ids_BL, regions_KD)
    mask_BL = torch.cat([mask_BL.new_ones(len(prompts), start), mask_BL], dim=1)
    positions_BL = (mask_BL.cumsum(dim=1) - 1).clamp_min(0)[:, start:]
    ended_B, found = torch.zeros(len(prompts), dtype=torch.bool, device=device), list[Tensor]()
    for _ in range(limit):
        hidden_BLD = adapter.decoder(
            inputs_embeds=embeds_BLD,
            attention_mask=mask_BL,
            position_ids=positions_BL,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits_BV: Tensor = adapter.model.lm_head(hidden_BLD[:, -1])
        next_B = logits_BV.argmax(dim=-1).masked_fill(ended_B, chat.end_id)
        found.append(next_B)
        ended_B = ended_B | (next_B == chat.end_id)
        if bool(ended_B.all()):
            break
        embeds_BLD = adapter.words(next_B[:, None])
        mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(prompts), 1)], dim=1)
        positions_BL = positions_BL[:, -1:] + 1
    return torch.stack(found, dim=1)


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
