"""RoIAlign over spatial tokens: bilinear samples inside a box."""

import torch
from torch import Tensor
from torch.nn import functional as F


def roi_grid(patches_BGD: Tensor, boxes_BM4: Tensor, *, bins: int, samples: int = 1) -> Tensor:
    """The patch tokens inside each box, divided into bins x bins cells, each the mean of samples x samples samples.

    Samples lie at the centres of the box divided evenly; token centres lie at (k + 0.5) / G, and values beyond the
    outermost centres are those of the border.

    Args:
        patches_BGD: patch tokens row by row, G * G of them an image, without [CLS].
        boxes_BM4: xyxy in [0, 1] of the padded network input.
        bins: cells a side.
        samples: samples a side of a cell.

    Returns:
        (B, M, bins * bins, D), cells row by row.
    """
    grid = round(patches_BGD.shape[1] ** 0.5)
    boxes, count = boxes_BM4.float(), bins * samples
    steps = (torch.arange(count, device=boxes.device, dtype=torch.float32) + 0.5) / count
    x = boxes[..., 0, None] + (boxes[..., 2] - boxes[..., 0])[..., None] * steps
    y = boxes[..., 1, None] + (boxes[..., 3] - boxes[..., 1])[..., None] * steps
    x_BMCC, y_BMCC = torch.broadcast_tensors(x[..., None, :], y[..., :, None])
    where = torch.stack([x_BMCC, y_BMCC], dim=-1).flatten(2, 3) * 2 - 1
    image_BDGG = patches_BGD.float().transpose(1, 2).unflatten(2, (grid, grid))
    sampled_BDMP = F.grid_sample(image_BDGG, where, mode="bilinear", padding_mode="border", align_corners=False)
    sampled_BMPD = sampled_BDMP.permute(0, 2, 3, 1)
    if samples > 1:
        cells = sampled_BMPD.unflatten(2, (bins, samples, bins, samples)).mean(dim=(3, 5))
        sampled_BMPD = cells.flatten(2, 3)
    return sampled_BMPD.to(patches_BGD.dtype)


def roi_align(patches_BGD: Tensor, boxes_BM4: Tensor, *, samples: int = 7) -> Tensor:
    """Mean of `samples` x `samples` bilinear samples of the patch tokens inside each box: (B, M, D); see `roi_grid`."""
    return roi_grid(patches_BGD, boxes_BM4, bins=samples).mean(dim=2)
