"""Losses equal closed forms and other libraries, are finite, and do not depend on ignored pixels or on the order."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import pytest
import segmentation_models_pytorch.losses as peers
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from foveal.errors import ConfigError, InputError
from foveal.training.losses import LOSSES, SegmentationLoss, boundary, cross_entropy, dice, focal, jaccard, lovasz, ohem
from foveal.training.segment_settings import LossName

CLASSES = 4
REGIONS = [dice, jaccard, lovasz]
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
seeds = st.integers(0, 2**31)


def random_case(seed: int, ignored: float = 0.2, size: tuple[int, int] = (6, 7)) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, target with some ignored pixels, class weights; float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, CLASSES, *size, generator=generator, dtype=torch.float64)
    target = torch.randint(0, CLASSES, (2, *size), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = 255
    return logits, target, 0.2 + torch.rand(CLASSES, generator=generator, dtype=torch.float64)


def of_probabilities(rows: list[list[float]]) -> Tensor:
    """Logits ``(1, C, 1, N)`` whose softmax over the classes is ``rows``, one row per pixel."""
    return torch.tensor(rows, dtype=torch.float64).log().T[None, :, None]


def one_row(ids: list[int]) -> Tensor:
    return torch.tensor(ids)[None, None]


# ---- closed forms and peers


@each_loss
def test_more_than_255_classes(loss) -> None:
    """Id 255 is a class, and 65535 is ignored: classes in another order give the same loss."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 300, 5, 6, generator=generator, dtype=torch.float64)
    target = torch.tensor([3, 255, 299, 65535, 17])[torch.randint(0, 5, (1, 5, 6), generator=generator)]
    moved = torch.where(target == 65535, target, (target + 40) % 300)
    expected = loss(logits.roll(40, 1), moved, None)
    torch.testing.assert_close(loss(logits, target, None), expected)
    assert not torch.isclose(loss(logits, target.where(target != 255, 65535), None), expected)


def test_cross_entropy_is_torchs() -> None:
    logits, target, weights = random_case(0)
    assert cross_entropy(logits, target, weights).item() == pytest.approx(
        F.cross_entropy(logits, target, weights, ignore_index=255).item(), rel=1e-12
    )


def test_ohem_keeps_hard_pixels_by_hand() -> None:
    """Probabilities of the right class 0.9, 0.6, 0.3, 0.8: at threshold 0.7 two are hard; min_kept selects three."""
    right = [0.9, 0.6, 0.3, 0.8]
    logits, target = of_probabilities([[p, 1 - p] for p in right]), one_row([0, 0, 0, 0])
    logs = {p: -math.log(p) for p in right}
    assert ohem(logits, target).item() == pytest.approx((logs[0.6] + logs[0.3]) / 2)
    assert ohem(logits, target, min_kept=0.75).item() == pytest.approx((logs[0.6] + logs[0.3] + logs[0.8]) / 3)
    assert ohem(logits, target, threshold=0.1).item() == pytest.approx(logs[0.3])
    assert ohem(logits, target, threshold=0.0, min_kept=0.5).item() == pytest.approx((logs[0.6] + logs[0.3]) / 2)
    # With class 1 right at 0.4 and 0.7: the weights enter the mean, not the choice.
    target, weights = one_row([0, 1, 1, 255]), torch.tensor([1.0, 3.0])
    first, second = -math.log(0.4), -math.log(0.7)
    assert ohem(logits, target, weights, threshold=0.75).item() == pytest.approx((first + second) / 2)
    every = (logs[0.9] + 3 * first + 3 * second) / 7
    assert ohem(logits, target, weights, threshold=0.95).item() == pytest.approx(every)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_with_two_classes_is_torchvisions(gamma: float) -> None:
    """Softmax over (0, x) is the sigmoid of x."""
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = (x.roll(1, 0) > 0).long()
    expected = sigmoid_focal_loss(x, target.double(), alpha=-1, gamma=gamma, reduction="mean")
    assert focal(torch.stack([torch.zeros_like(x), x], 1), target, gamma=gamma).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("loss", "peer"), [(dice, peers.DiceLoss), (jaccard, peers.JaccardLoss)])
def test_overlaps_are_the_peers(loss, peer) -> None:
    logits, target, _ = random_case(1, ignored=0)
    assert loss(logits, target).item() == pytest.approx(peer("multiclass", from_logits=True)(logits, target).item())


@given(seeds)
def test_lovasz_is_the_peers(seed: int) -> None:
    logits, target, _ = random_case(seed)
    target[target == 2] = 0  # absent
    expected = peers.LovaszLoss("multiclass", ignore_index=255, from_logits=True)(logits.float(), target)
    assert lovasz(logits, target).item() == pytest.approx(expected.item(), rel=1e-5)


def test_overlaps_by_hand() -> None:
    """Class 0 has probabilities 0.9, 0.4, 0.2 at three pixels, the first two are its own; class 2 is absent."""
    logits = of_probabilities([[0.9, 0.05, 0.05], [0.4, 0.5, 0.1], [0.2, 0.7, 0.1]])
    target = one_row([0, 0, 1])
    ratios = {dice: (2 * 1.3 / (1.5 + 2), 2 * 0.7 / (1.25 + 1)), jaccard: (1.3 / 2.2, 0.7 / 1.55)}
    for loss, (first, second) in ratios.items():
        assert loss(logits, target).item() == pytest.approx(1 - (first + second) / 2)
        weighted = loss(logits, target, torch.tensor([1.0, 3.0, 100.0])).item()
        assert weighted == pytest.approx(1 - (first + 3 * second) / 4)


@given(seeds)
def test_lovasz_is_the_integral_of_the_jaccard_loss(seed: int) -> None:
    """The Lovász extension is the integral, over t from 0 to 1, of the loss of the pixels whose error exceeds t."""
    logits, target, weights = random_case(seed, size=(3, 3))
    probabilities = logits.softmax(1)
    values = []
    for c in range(CLASSES):
        own = (target == c)[target != 255]
        errors = (own.double() - probabilities[:, c][target != 255]).abs()
        thresholds = [0.0, *sorted(errors.tolist())]
        area = 0.0
        for low, high in pairwise(thresholds):
            wrong = errors > low
            area += (high - low) * (wrong.sum() / (own | wrong).sum().clamp(min=1)).item()
        values.append((area, weights[c].item() * bool(own.any())))
    total = sum(weight for _, weight in values)
    expected = sum(value * weight for value, weight in values) / total if total else 0
    assert lovasz(logits, target, weights).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("loss", REGIONS)
def test_hard_predictions_get_one_minus_their_score(loss) -> None:
    """With probabilities of 0 and 1, all three losses are one minus the score."""
    _, target, _ = random_case(2)
    guess = random_case(3, ignored=0)[1]
    logits = 1000 * F.one_hot(guess, CLASSES).permute(0, 3, 1, 2).double()
    kept = target != 255
    scores = []
    for c in range(CLASSES):
        ours, true = (guess == c) & kept, target == c
        both, either = (ours & true).sum().item(), (ours | true).sum().item()
        scores.append(2 * both / (both + either) if loss is dice else both / either)
    assert loss(logits, target).item() == pytest.approx(1 - sum(scores) / CLASSES)


def test_boundary_weighs_pixels_that_see_another_class() -> None:
    """In the row 0 0 0 0 1 1, with radius 2, pixels 2..5 are near a boundary; the ignored last pixel is no class."""
    target = one_row([0, 0, 0, 0, 1, 1, 255])
    logits = torch.randn(1, 2, 1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logs = F.cross_entropy(logits, target, ignore_index=255, reduction="none")[0, 0]
    near = torch.tensor([1.0, 1, 10, 10, 10, 10, 0])
    expected = ((logs * near).sum() / near.sum()).item()
    assert boundary(logits, target, radius=2, gain=9).item() == pytest.approx(expected)
    tall = boundary(logits.transpose(2, 3), target.transpose(1, 2), radius=2, gain=9).item()
    assert tall == pytest.approx(expected)


@pytest.mark.parametrize(
    "reduced",
    [
        lambda *case: focal(*case, gamma=0),
        lambda *case: ohem(*case, min_kept=1),
        lambda *case: ohem(*case, threshold=1),
        lambda *case: boundary(*case, gain=0),
        lambda *case: boundary(*case, radius=0),
    ],
)
def test_variants_reduce_to_cross_entropy(reduced) -> None:
    case = random_case(4)
    assert reduced(*case).item() == pytest.approx(cross_entropy(*case).item(), rel=1e-12)


# ---- every loss


@each_loss
def test_gradients_are_right(loss) -> None:
    """Compared with finite differences, away from ties, where OHEM and Lovász are not differentiable."""
    logits, target, weights = random_case(5, size=(3, 4))
    assert torch.autograd.gradcheck(lambda x: loss(x, target, weights), logits.requires_grad_())


@each_loss
def test_nothing_labelled_costs_nothing(loss) -> None:
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    value = loss(logits, torch.full((2, 5, 6), 255), torch.ones(4))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@each_loss
def test_weights_of_zero_cost_nothing(loss) -> None:
    """If all labelled pixels have weight 0, the loss is 0, not 0 / 0."""
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.ones(1, 4, 4, dtype=torch.long), torch.tensor([1.0, 0.0, 1.0]))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_computed_in_32(loss, dtype: torch.dtype) -> None:
    """The value is that of the same numbers in float32, under autocast too."""
    logits, target, weights = random_case(6)
    half = (3 * logits).to(dtype)
    found = loss(half, target, weights)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(half.float(), target, weights))
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(found, loss(half, target, weights))


@each_loss
@pytest.mark.parametrize("size", [0.0, 60.0, 6e4])
def test_extreme_logits_stay_finite(loss, size: float) -> None:
    """Value and gradient are finite for logits that are certain and right, certain and wrong, or all equal."""
    logits = (size * torch.sign(random_case(7)[0])).half().requires_grad_()
    value = loss(logits, random_case(7)[1])
    value.backward()
    assert value.isfinite()
    assert value >= 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@each_loss
def test_certain_and_right_is_free(loss) -> None:
    target = random_case(8)[1]
    logits = 100 * F.one_hot(target % 255, CLASSES).permute(0, 3, 1, 2).float()
    assert loss(logits, target).item() == pytest.approx(0, abs=1e-6)


@each_loss
def test_descent_finds_the_target(loss) -> None:
    """Gradient descent on each loss alone brings free logits to the labels."""
    target = random_case(9, ignored=0.1)[1]
    logits = torch.zeros(2, CLASSES, *target.shape[1:], requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, target).backward()
        optimizer.step()
    kept = target != 255
    assert torch.equal(logits.argmax(1)[kept], target[kept])


@each_loss
@given(seeds)
def test_ignored_pixels_do_not_exist(loss, seed: int) -> None:
    """Their logits neither change the loss nor get a gradient; a border of ignored pixels changes nothing."""
    logits, target, weights = random_case(seed)
    expected = loss(logits, target, weights).item()
    ignored = (target == 255)[:, None].expand_as(logits)
    other = torch.where(ignored, -7.0, logits).requires_grad_()
    value = loss(other, target, weights)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert other.grad is not None
    assert not other.grad[ignored].any()
    framed = loss(F.pad(logits, (2, 1, 3, 2), value=5.0), F.pad(target, (2, 1, 3, 2), value=255), weights)
    assert framed.item() == pytest.approx(expected, rel=1e-12)


@each_loss
@given(seeds, st.permutations(range(CLASSES)))
def test_names_of_classes_do_not_matter(loss, seed: int, order: list[int]) -> None:
    logits, target, weights = random_case(seed)
    renamed = F.pad(torch.tensor(order).argsort(), (0, 252), value=255)[target]
    found = loss(logits[:, order], renamed, weights[order])
    assert found.item() == pytest.approx(loss(logits, target, weights).item(), rel=1e-12)


@each_loss
@given(seeds)
def test_order_of_pixels_does_not_matter(loss, seed: int) -> None:
    """Any order of pixels within the batch; for the boundary loss, which uses neighbours, mirrored images."""
    logits, target, weights = random_case(seed)
    expected = loss(logits, target, weights).item()
    if loss is boundary:
        moved = logits.flip(0, 3), target.flip(0, 2)
    else:
        order = torch.randperm(target.numel(), generator=torch.Generator().manual_seed(seed))
        row = logits.transpose(0, 1).flatten(1)[:, order]
        moved = row[None, :, None], target.flatten()[order][None, None]
    assert loss(*moved, weights).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", REGIONS)
def test_absent_classes_are_left_out(loss) -> None:
    """A class without pixels does not count, whatever its weight."""
    logits, target, weights = random_case(10)
    target[target == 3] = 1
    found = [loss(logits, target, torch.cat([weights[:3], torch.tensor([w]).double()])).item() for w in (0.0, 50.0)]
    assert found[0] == pytest.approx(found[1])
    assert 0 < found[0] < 1


@pytest.mark.parametrize("loss", REGIONS)
def test_large_images_lose_no_digits(loss) -> None:
    """On 512x512 pixels, value and gradient in float32 agree with float64: no saturation, no cancellation."""
    generator = torch.Generator().manual_seed(0)
    logits, target = 2 * torch.randn(1, 2, 512, 512, generator=generator), torch.ones(1, 512, 512, dtype=torch.long)
    target[:, 500:] = 0
    values, gradients = [], []
    for x in (logits.requires_grad_(), logits.detach().double().requires_grad_()):
        values.append(loss(x, target))
        gradients += torch.autograd.grad(values[-1], x)
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-4 * gradients[1].abs().max()


@each_loss
def test_shapes_that_do_not_fit_are_refused(loss) -> None:
    """This includes shapes that would broadcast."""
    with pytest.raises(InputError, match="upsample them"):
        loss(torch.zeros(1, 3, 1, 1), torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(InputError, match="one per class"):
        loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long), torch.ones(1))


@each_loss
def test_ids_beyond_the_classes_are_refused(loss) -> None:
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        loss(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 3))


# ---- their sum


def test_sum_of_terms_on_upsampled_logits() -> None:
    """Each term has its factor; all terms but Lovász are computed on bilinearly upsampled logits."""
    logits, target, weights = random_case(11)
    small = logits[..., :3, :4]
    full = F.interpolate(small, size=target.shape[1:], mode="bilinear", align_corners=False)
    terms = {"cross_entropy": 1.0, "dice": 0.5, "boundary": 2}
    found = SegmentationLoss(terms, weights)(small, target).item()
    assert found == pytest.approx(
        sum(f * LOSSES[name](full, target, None if name == "dice" else weights).item() for name, f in terms.items())
    )


def test_lovasz_sees_the_centre_of_each_cell() -> None:
    """At stride 3 it uses the centre pixel of each 3x3 cell, where the upsampled logits equal the network's."""
    _, target, weights = random_case(12, size=(9, 12))
    small = random_case(13, size=(3, 4))[0]
    found = SegmentationLoss({"lovasz": 1}, weights)(small, target).item()
    assert found == pytest.approx(lovasz(small, target[:, 1::3, 1::3]).item())


@given(seeds)
def test_at_the_targets_size_every_term_is_exact(seed: int) -> None:
    logits, target, weights = random_case(seed)
    for name, loss in LOSSES.items():
        found = SegmentationLoss({name: 1}, weights)(logits, target).item()
        assert found == pytest.approx(loss(logits, target, None if loss in REGIONS else weights).item(), rel=1e-12)


@pytest.mark.parametrize("labelled", [True, False])
def test_sum_has_gradients_at_the_stride_of_the_network(labelled: bool) -> None:
    logits = torch.randn(2, CLASSES, 3, 3, requires_grad=True)
    target = torch.randint(0, CLASSES, (2, 20, 23)) if labelled else torch.full((2, 20, 23), 255)
    value = SegmentationLoss(dict.fromkeys(LOSSES, 1.0))(logits.bfloat16(), target)
    value.backward()
    assert value.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert bool(logits.grad.any()) is bool(value) is labelled


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"lovas": 1.0}, r"unknown loss 'lovas'; did you mean 'lovasz'\?"),
        ({}, "one term at least; valid: boundary, cross_entropy, dice"),
        ({"dice": 0.0}, "loss dice=0.0: expected a factor above 0"),
        ({"dice": math.nan}, "loss dice=nan"),
        ({"dice": math.inf}, "loss dice=inf"),
    ],
)
def test_terms_that_make_no_sense_are_refused(terms: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentationLoss(terms)


def test_configuration_knows_the_same_losses() -> None:
    assert list(get_args(LossName)) == list(LOSSES)
