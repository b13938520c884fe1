"""Prompts as a person would give them, drawn from true masks, for training.

Masks are those of P objects in the frame of 1024, ``(P, 1024, 1024)`` bool; points are x and y there, those of a
pixel's centre being whole numbers. All draws are torch's own, which the engine seeds anew at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..images.sam_frame import FRAME
from ..tasks.prompt import FOREGROUND

_SHARE, _FURTHEST = 0.1, 20.0  # of a side, and in pixels of the frame: arXiv 2304.02643, appendix A
MAX_POINTS = 10  #: of a first prompt without a box (arXiv 2402.05008, section 3.3)


def drawn_boxes(masks: Tensor) -> Tensor:
    """The objects' boxes with noise on each side: ``(P, 2, 2)`` float32, left top and right bottom corners.

    The noise is normal with a tenth of the box's side as deviation, and at most 20 pixels (arXiv 2304.02643, appendix
    A), here half a side too, so that a box has an inside always. Objects without a pixel get the whole frame.
    """
    spans = []
    for occupied in (masks.any(1), masks.any(2)):  # columns, rows
        first = occupied.int().argmax(1)
        last = FRAME - occupied.flip(1).int().argmax(1)
        spans.append(torch.stack([first, last], 1))
    corners = torch.stack(spans, 2).float()
    side = corners[:, 1:] - corners[:, :1]
    noise = torch.randn_like(corners) * _SHARE * side
    limit = (side / 2).clamp(max=_FURTHEST)
    return (corners + noise.clamp(-limit, limit)).clamp(0, FRAME)


def drawn_points(masks: Tensor, count: int) -> Tensor:
    """``count`` pixels inside each object, all equally likely: ``(P, count, 2)`` float32; anywhere for empty ones."""
    found = []
    for mask in masks:
        inside = mask.flatten().nonzero()[:, 0]
        if not len(inside):
            inside = torch.arange(mask.numel(), device=mask.device)
        found.append(inside[torch.randint(len(inside), (count,), device=mask.device)])
    places = torch.stack(found)
    return torch.stack([places % FRAME, places // FRAME], -1).float()


def drawn_clicks(found: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """One click on a mistake of each mask, all of its pixels equally likely; where it has none, one on the object.

    Args:
        found: ``(P, h, w)`` bool, masks that the model made.
        true: ``(P, h, w)`` bool.

    Returns:
        Points ``(P, 1, 2)`` float32 in the frame and labels ``(P, 1)``: 1 where something is missing, 0 where the mask
        goes too far.
    """
    wrong = found != true
    right = ~wrong.flatten(1).any(1)[:, None, None]
    allowed = (wrong | (right & true)).flatten(1).float()
    allowed[~allowed.any(1)] = 1  # an empty object, found empty
    place = torch.multinomial(allowed, 1)
    height, width = true.shape[-2:]
    at = torch.stack([place % width * (FRAME / width), place // width * (FRAME / height)], -1)
    points = at + (FRAME / width - 1) / 2
    return points, true.flatten(1).gather(1, place).long() * FOREGROUND
