"""Prompts for training, sampled from true masks the way a person would give them.

Masks are those of P objects in the frame of 1024 pixels, ``(P, 1024, 1024)`` bool. Points are x and y in that frame;
the centre of a pixel has whole numbers. All random draws are torch's own, which the training loop seeds at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..images.sam_frame import FRAME
from ..tasks.prompt import FOREGROUND

# Noise of boxes (arXiv 2304.02643, appendix A): standard deviation as a share of a side, limit in pixels of the frame.
_DEVIATION, _LARGEST_NOISE = 0.1, 20.0
MAX_POINTS = 10  #: largest number of points of a first prompt without a box (arXiv 2402.05008, section 3.3)


def sample_boxes(masks: Tensor) -> Tensor:
    """Sample a box around each object, with noise: ``(P, 2, 2)`` float32, left top and right bottom corners.

    The noise of a corner is normal. Its standard deviation is a tenth of the box's side and it is at most 20 pixels
    (arXiv 2304.02643, appendix A), here also at most half a side, so that no box is turned inside out. Objects without
    a pixel get the whole frame.
    """
    spans = []
    for occupied in (masks.any(1), masks.any(2)):  # columns, rows
        first = occupied.int().argmax(1)
        last = FRAME - occupied.flip(1).int().argmax(1)
        spans.append(torch.stack([first, last], 1))
    corners = torch.stack(spans, 2).float()
    side = corners[:, 1:] - corners[:, :1]
    noise = torch.randn_like(corners) * _DEVIATION * side
    limit = (side / 2).clamp(max=_LARGEST_NOISE)
    return (corners + noise.clamp(-limit, limit)).clamp(0, FRAME)


def sample_points(masks: Tensor, count: int) -> Tensor:
    """Sample ``count`` pixels inside each object, uniformly: ``(P, count, 2)`` float32; anywhere for empty objects."""
    pixels = []
    for mask in masks:
        inside = mask.flatten().nonzero()[:, 0]
        if not len(inside):
            inside = torch.arange(mask.numel(), device=mask.device)
        pixels.append(inside[torch.randint(len(inside), (count,), device=mask.device)])
    places = torch.stack(pixels)
    return torch.stack([places % FRAME, places // FRAME], -1).float()


def sample_clicks(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Sample one click on a wrong pixel of each mask, uniformly; on a pixel of the object if no pixel is wrong.

    Args:
        predicted: ``(P, h, w)`` bool, masks of the model.
        true: ``(P, h, w)`` bool.

    Returns:
        Points ``(P, 1, 2)`` float32 in the frame, and labels ``(P, 1)``: 1 on a pixel of the object, 0 on the
        background.
    """
    wrong = predicted != true
    right = ~wrong.flatten(1).any(1)[:, None, None]
    allowed = (wrong | (right & true)).flatten(1).float()
    allowed[~allowed.any(1)] = 1  # an empty object with an empty mask
    place = torch.multinomial(allowed, 1)
    height, width = true.shape[-2:]
    corner = torch.stack([place % width * (FRAME / width), place // width * (FRAME / height)], -1)
    points = corner + (FRAME / width - 1) / 2
    return points, true.flatten(1).gather(1, place).long() * FOREGROUND
