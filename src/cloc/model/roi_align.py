"""RoIAlign over spatial tokens: bilinear samples inside a box, averaged (the readout without a Prompter)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def roi_align(tokens_BND: Tensor, boxes_BM4: Tensor, *, grid: int, samples: int = 7) -> Tensor:
    """Mean of `samples` x `samples` bilinear samples of the token map inside each box.

    Sample (i, j) lies at the centre of cell (i, j) of the box divided into samples x samples cells; token centres lie
    at (k + 0.5) / G, values beyond the outermost centres are those of the border.

    Args:
        tokens_BND: spatial tokens with [CLS] first, N = 1 + G * G.
        boxes_BM4: xyxy in [0, 1] of the padded network input.
        grid: G.
        samples: samples a side.

    Returns:
        (B, M, D).
    """
    boxes = boxes_BM4.float()
    steps = (torch.arange(samples, device=boxes.device, dtype=torch.float32) + 0.5) / samples
    x = boxes[..., 0, None] + (boxes[..., 2] - boxes[..., 0])[..., None] * steps
    y = boxes[..., 1, None] + (boxes[..., 3] - boxes[..., 1])[..., None] * steps
    x_BMSS, y_BMSS = torch.broadcast_tensors(x[..., None, :], y[..., :, None])
    where = torch.stack([x_BMSS, y_BMSS], dim=-1).flatten(2, 3) * 2 - 1
    image_BDGG = tokens_BND[:, 1:].float().transpose(1, 2).unflatten(2, (grid, grid))
    sampled_BDMS = F.grid_sample(image_BDGG, where, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled_BDMS.mean(dim=-1).transpose(1, 2).to(tokens_BND.dtype)
