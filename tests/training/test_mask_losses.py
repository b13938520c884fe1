"""The losses of promptable models against closed forms."""

from __future__ import annotations

import math

import torch

from foveal.training.losses import mask_iou, mask_loss
from foveal.training.prompt import answer_loss


def test_the_least_of_the_masks_counts() -> None:
    """Constant logits and a full target have a loss in closed form, for any points."""
    torch.manual_seed(0)
    level = torch.tensor([[0.5, -1.0, 2.0, 1.0], [0.5, -1.0, 2.0, 1.0]])
    logits = level[..., None, None].expand(2, 4, 16, 16)
    share = torch.ones(2, 16, 16)
    n = 112 * 112

    def expected(x: float) -> float:
        p = 1 / (1 + math.exp(-x))
        return 20 * math.log1p(math.exp(-x)) + 1 - (2 * n * p + 1) / (n * p + n + 1)

    found = mask_loss(logits, share)
    torch.testing.assert_close(found, torch.tensor([[expected(x) for x in row] for row in level.tolist()]))
    guess = torch.tensor([[0.9, 0.2, 1.0, 0.7]] * 2)  # true: 1, 0, 1, 1
    error = (0.1**2 + 0.2**2 + 0.3**2) / 4
    answer = answer_loss(logits, guess, share, share > 0.5, torch.tensor([True, False]))
    torch.testing.assert_close(answer, torch.tensor([expected(2.0) + error, expected(0.5) + error]))


def test_outlines_finer_than_the_map_are_learnt() -> None:
    """For a straight edge anywhere within a pixel, the loss is smallest if the logits cross 0 at the edge."""
    at = torch.arange(16) + 0.5
    for edge in (7.2, 7.5, 7.9):
        share = (edge - (at - 0.5)).clamp(0, 1).expand(1, 16, 16)
        tried = torch.arange(6.0, 9.0, 0.05)
        torch.manual_seed(0)
        logits = (2 * (tried[:, None] - at))[None, :, None, :].expand(1, len(tried), 16, 16)
        best = tried[mask_loss(logits, share)[0].argmin()]
        assert abs(best - edge) < 0.15


def test_iou_of_masks() -> None:
    true = torch.zeros(2, 4, 4, dtype=torch.bool)
    true[0, :2] = True
    found = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    found[0, 0, :2], found[0, 1, 1:3], found[0, 2, :] = True, True, True
    torch.testing.assert_close(mask_iou(found, true), torch.tensor([[1, 1 / 3, 0.5], [0, 0, 0]]))
