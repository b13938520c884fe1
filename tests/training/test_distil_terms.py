"""The terms of distillation against their definitions, and what they compare: pixels, maps, grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foveal.images.preparing import prepare
from foveal.info import Preprocess
from foveal.models.registry import FeatureInfo
from foveal.training import distil_losses
from foveal.training.teacher import renormalised
from helpers.distillation import normal


def test_probabilities_at_a_temperature() -> None:
    """Against the definition, for pixels and for images; the square of the temperature keeps the gradients' size."""
    a, b = 3 * normal(2, 4, 3, 5), 3 * normal(2, 4, 3, 5, seed=1)
    p, q = (b / 2).softmax(1), (a / 2).softmax(1)
    expected = 4 * (p * (p / q).log()).sum(1)
    assert distil_losses.logits(a, b, 2.0).item() == pytest.approx(expected.mean().item())
    assert distil_losses.logits(a[..., 0, 0], b[..., 0, 0], 2.0).item() == pytest.approx(
        expected[:, 0, 0].mean().item()
    )
    valid = torch.rand(2, 3, 5) < 0.5
    assert distil_losses.logits(a, b, 2.0, valid).item() == pytest.approx(expected[valid].mean().item())
    student = a.clone().requires_grad_()
    distil_losses.logits(student, b, 1000.0).backward()
    assert student.grad is not None
    zero_mean = [x - x.mean(1, keepdim=True) for x in (a, b)]  # at high temperature, Hinton et al., equation 4
    torch.testing.assert_close(student.grad, (zero_mean[0] - zero_mean[1]) / 4 / 30, rtol=0.02, atol=1e-4)


def test_channels_are_distributions_over_positions() -> None:
    a, b, total = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1), 0.0
    for image in range(2):
        for channel in range(3):
            p, q = ((x[image, channel].flatten() / 4).softmax(0) for x in (b, a))
            total += 16 * float((p * (p / q).log()).sum()) / 6
    assert distil_losses.channel(a, b).item() == pytest.approx(total)
    valid = torch.zeros(2, 4, 5, dtype=torch.bool)
    valid[..., :3] = True
    inside = distil_losses.channel(a[..., :3], b[..., :3])
    assert distil_losses.channel(a, b, valid=valid).item() == pytest.approx(inside.item())


def test_terms_vanish_where_nothing_is_to_be_learnt() -> None:
    a, nowhere = normal(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    for name, distance in distil_losses.DISTANCES.items():
        assert distance(a, normal(2, 3, 4, 4, seed=1), 2.0, nowhere).item() == pytest.approx(0, abs=1e-12)
        assert name == "hard" or distance(a, a.clone(), 2.0, None).item() == pytest.approx(0, abs=1e-12)
    labels = torch.tensor([[5.0, 1.0, 0.0]])
    assert distil_losses.hard(labels, labels).item() == pytest.approx(F.cross_entropy(labels, torch.tensor([0])).item())


def test_teachers_get_no_gradients() -> None:
    teacher = normal(2, 3, 4, 4, seed=1).requires_grad_()
    for distance in distil_losses.DISTANCES.values():
        student = normal(2, 3, 4, 4).requires_grad_()
        distance(student, teacher, 2.0, None).backward()
        assert student.grad is not None
        assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_half_precision_is_compared_in_float32() -> None:
    a, b = normal(1, 3, 8, 8).half(), normal(1, 3, 8, 8, seed=1).half()
    for distance in distil_losses.DISTANCES.values():
        assert distance(a, b, 1.0, None).dtype == torch.float32


def test_projected_maps_learn_normalised_ones() -> None:
    """Whatever the scale of the teacher, a student that gives its normalised map has no error."""
    wanted = 1e4 * normal(2, 6, 3, 3) + 5e4
    own = (wanted - wanted.mean(1, keepdim=True)) / wanted.var(1, correction=0, keepdim=True).sqrt()
    assert distil_losses.features([own], [wanted]).item() == pytest.approx(0, abs=1e-9)
    assert distil_losses.features([torch.zeros_like(own)], [wanted]).item() == pytest.approx(1)


def test_maps_of_the_nearest_strides_are_compared() -> None:
    def info(*strides: int) -> list[FeatureInfo]:
        return [FeatureInfo(8, stride) for stride in strides]

    pairs = distil_losses.map_pairs
    assert pairs(info(4, 8, 16, 32), info(4, 8, 16, 32)) == [(1, 1), (2, 2), (3, 3)]
    assert pairs(info(16, 32, 64), info(4, 8, 16, 32)) == [(0, 2), (1, 3), (2, 3)]
    assert pairs(info(1), info(2, 4)) == [(0, 0)]


def test_grids_of_different_strides_meet_on_the_image() -> None:
    """A map that is linear in the place on the image is linear on every grid, but for the rim."""
    fine, coarse = (torch.arange(n) * stride + stride / 2 for n, stride in ((16, 4), (8, 8)))
    maps = (fine[:, None] + 100 * fine).expand(1, 2, -1, -1).double()
    read = distil_losses.on_grid(maps, 4, (8, 8), 8)
    torch.testing.assert_close(read, (coarse[:, None] + 100 * coarse).expand(1, 2, -1, -1).double())
    back = distil_losses.on_grid(read, 8, (16, 16), 4)
    torch.testing.assert_close(back[..., 1:-1, 1:-1], maps[..., 1:-1, 1:-1])


def test_the_teacher_gets_the_same_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    ours, theirs = Preprocess(), Preprocess((0.5, 0.4, 0.0), (0.5, 0.1, 1.0))
    image, expected = (torch.from_numpy(prepare(pixels, each)) for each in (ours, theirs))
    torch.testing.assert_close(renormalised(image, ours, theirs), expected, rtol=1e-6, atol=1e-6)
    assert renormalised(image, ours, Preprocess()) is image
