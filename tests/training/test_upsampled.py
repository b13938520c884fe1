"""Upsampling of logits and cross entropy by strips equal what torch computes on whole maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from foveal.errors import InputError
from foveal.training.losses import SegmentationLoss, cross_entropy
from foveal.training.upsampled import upsample, upsample_to_centres


@pytest.mark.parametrize("size", [(301, 270), (64, 7), (5, 900)])
def test_cross_entropy_in_strips_is_that_of_the_whole_map(size: tuple[int, int]) -> None:
    """Value and gradient, for sizes of several strips, also smaller than the logits, with classes that do not count."""
    logits = (5 * torch.randn(2, 9, 23, 31, dtype=torch.float64)).requires_grad_()
    target = torch.randint(0, 9, (2, *size))
    target[torch.rand(2, *size) < 0.2] = 255
    weights = torch.rand(9).where(torch.arange(9) != 4, 0)
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    expected = cross_entropy(full, target, weights)
    found = SegmentationLoss({"cross_entropy": 1}, weights)(logits, target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [torch.autograd.grad(2 * loss, logits)[0] for loss in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-14)
    with torch.no_grad():
        assert SegmentationLoss({"cross_entropy": 1}, weights)(logits, target).item() == found.item()


def test_strips_refuse_what_the_whole_map_refuses() -> None:
    loss = SegmentationLoss({"cross_entropy": 1})
    with pytest.raises(RuntimeError, match="out of bounds"):
        loss(torch.zeros(1, 3, 2, 2), torch.full((1, 8, 8), 3))


@pytest.mark.parametrize("term", ["cross_entropy", "lovasz", "dice"])
@pytest.mark.parametrize(
    ("logits", "target"), [((2, 3, 2, 2), (1, 8, 8)), ((1, 3, 2, 2), (1, 1, 8, 8)), ((3, 2, 2), (8, 8))]
)
def test_other_shapes_are_refused(term: Any, logits: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"give \(B, C, h, w\) and \(B, H, W\)"):
        SegmentationLoss({term: 1})(torch.zeros(logits), torch.zeros(target, dtype=torch.long))


def test_training_after_a_loss_in_inference_mode() -> None:
    """Also with the matrices that were made for the first."""
    loss = SegmentationLoss({"cross_entropy": 1})
    logits, target = torch.randn(1, 3, 5, 6, dtype=torch.float64), torch.ones(1, 13, 17, dtype=torch.long)
    with torch.inference_mode():
        expected = loss(logits, target)
    found = loss(logits.clone().requires_grad_(), target)
    found.backward()
    assert found.item() == expected.item()


@pytest.mark.parametrize("size", [(64, 96), (17, 50), (8, 12), (5, 7)])
def test_upsampling_is_torchs(size: tuple[int, int]) -> None:
    logits = torch.randn(2, 3, 8, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = upsample(logits, size)
    torch.testing.assert_close(found, F.interpolate(logits, size=size, mode="bilinear", align_corners=False))
    torch.testing.assert_close(
        upsample_to_centres(logits, size), F.interpolate(found, size=(8, 12), mode="nearest-exact")
    )
