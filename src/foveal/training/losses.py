"""Losses for semantic segmentation and their weighted sum; losses for masks of single objects.

Every loss for segmentation takes ``(logits, target, class_weights)``:

* logits: ``(B, C, H, W)`` at the target's size, any floating type; 16-bit logits are converted to float32.
* target: ``(B, H, W)`` int64, class ids; the ignore index is 255, or 65535 with more than 255 classes.
* class_weights: ``(C,)``, at least 0; None gives all classes the same weight.

It returns a scalar over all labelled pixels of the batch together, which is finite for finite logits, and 0 with zero
gradients if no pixel is labelled. InputError is raised if the shapes do not fit each other.

Losses over pixels (cross entropy, OHEM, focal, boundary) are means over pixels weighted by class, so a class without
pixels has no term of its own: its logits are only lowered as a wrong answer. Losses over regions (Dice, Jaccard,
Lovász) have one value per class; each docstring says what happens to absent classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, InputError, nearest
from ..info import ignore_id
from .segment_settings import LossName
from .upsampled import centres, cross_entropy_sum, upsample, upsample_to_centres

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# Of mask_loss: number of points, candidates per point, share of the points that are uncertain, factor of cross entropy.
_POINTS, _CANDIDATES, _UNCERTAIN, _ENTROPY = 112 * 112, 3, 0.75, 20.0


class SegmentationLoss:
    """Weighted sum of losses on logits of any stride, which are upsampled bilinearly to the target's size.

    Lovász sorts every pixel of every class: 2.1 s of one core (Intel Xeon) for 8 crops of 288x384 and 11 classes, where
    cross entropy takes 0.05 s (benchmarks/losses.py). So it is computed on one pixel per logit, at the centres of
    the logits' grid, which random crops move over the image: 0.02 s. If the logits have the target's size, these are
    all pixels.

    Args:
        terms: factor of each loss by its name, finite and above 0: "cross_entropy", "ohem", "focal", "dice", "jaccard",
            "lovasz", "boundary".
        class_weights: ``(C,)``, for the losses over pixels; in losses over regions all classes count the same.

    Raises:
        ConfigError: there is no term, a name is unknown, or a factor is out of range.
    """

    def __init__(self, terms: Mapping[LossName, float], class_weights: Tensor | None = None) -> None:
        if not terms:
            raise ConfigError(f"a loss needs one term at least{nearest('', LOSSES)}")
        for name, factor in terms.items():
            if name not in LOSSES:
                raise ConfigError(f"unknown loss {name!r}{nearest(name, LOSSES)}")
            if not (factor > 0 and math.isfinite(factor)):
                raise ConfigError(f"loss {name}={factor!r}: expected a factor above 0")
        self.terms = dict(terms)
        self.class_weights = class_weights

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits ``(B, C, h, w)`` for a target ``(B, H, W)``, a scalar.

        Raises:
            InputError: other shapes.
        """
        if logits.ndim != 4 or target.ndim != 3 or len(logits) != len(target):
            raise InputError(
                f"logits {tuple(logits.shape)} and target {tuple(target.shape)}: give (B, C, h, w) and (B, H, W)"
            )
        logits = _float(logits)
        size = target.shape[-2], target.shape[-1]
        whole = lru_cache(1)(lambda: upsample(logits, size))
        total = logits.new_zeros(())
        for name, factor in self.terms.items():
            weights = None if name in _PER_CLASS else self.class_weights
            if name == "lovasz":
                y, x = centres(logits, size)
                value = lovasz(upsample_to_centres(logits, size), target[:, y[:, None], x])
            elif name == "cross_entropy" and logits.device.type == "cpu" and logits.shape[-2:] != size:
                value = _upsampled_cross_entropy(logits, target, weights)
            else:
                value = LOSSES[name](whole(), target, weights)
            total = total + factor * value
        return total


# ---- pixels


def cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross entropy, the mean over pixels weighted by class: ``F.cross_entropy``, but 0 without labelled pixels.

    Shapes: logits ``(B, C, H, W)``, target ``(B, H, W)`` of class ids, class_weights ``(C,)``.
    """
    logits, weights = _prepare(logits, target, class_weights)
    return _weighted_mean(_nll(logits, target), weights[target])


def ohem(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    *,
    threshold: float = 0.7,
    min_kept: float = 1 / 16,
) -> Tensor:
    """Cross entropy over the hard pixels only (online hard example mining; online bootstrapping).

    Source: Shrivastava et al., CVPR 2016, for regions; for pixels, with a threshold and a smallest number of pixels:
    Wu, Shen, van den Hengel, "Bridging Category-level and Instance-level Semantic Image Segmentation", 2016.

    Args:
        logits: ``(B, C, H, W)``.
        target: ``(B, H, W)`` class ids; 255 (above 255 classes 65535) is ignored.
        class_weights: weights of the selected pixels; the selection does not depend on them.
        threshold: pixels whose own class has at most this probability are hard, 0..1.
        min_kept: smallest share of the labelled pixels that is selected, 0..1: the hardest ones, and all pixels as hard
            as the last of them.
    """
    logits, weights = _prepare(logits, target, class_weights)
    nll = _nll(logits, target)
    labelled = target != ignore_id(logits.shape[1])
    ranked = nll.detach().masked_fill(~labelled, -1.0).flatten()  # ignored pixels come last
    count = max(1, math.ceil(min_kept * int(labelled.sum())))
    hardest = ranked.kthvalue(len(ranked) - count + 1).values
    hard = nll.detach() >= hardest.clamp(max=-math.log(threshold) if threshold else math.inf)
    return _weighted_mean(nll, weights[target] * hard)


def focal(logits: Tensor, target: Tensor, class_weights: Tensor | None = None, *, gamma: float = 2.0) -> Tensor:
    """Cross entropy of each pixel times ``(1 - p) ** gamma``, where p is the probability of its class.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equations 4 and 5, with softmax instead of
    sigmoid and the class weights as alpha. The paper divides by the number of objects; here the loss is the weighted
    mean over pixels, so that ``gamma=0`` is :func:`cross_entropy`.

    Args:
        logits: ``(B, C, H, W)``.
        target: ``(B, H, W)`` class ids; 255 (above 255 classes 65535) is ignored.
        class_weights: alpha of each class.
        gamma: focus on hard pixels, at least 0.
    """
    logits, weights = _prepare(logits, target, class_weights)
    nll = _nll(logits, target)
    # 1 - p without cancellation; the clamp keeps the gradient finite where gamma < 1 and p = 1.
    wrong = (-torch.expm1(-nll)).clamp(min=torch.finfo(nll.dtype).tiny)
    return _weighted_mean(wrong**gamma * nll, weights[target])


def boundary(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    *,
    radius: int = 3,
    gain: float = 4.0,
) -> Tensor:
    """Cross entropy in which pixels near another class have a larger weight.

    Source: the pixel weights of U-Net (Ronneberger et al., MICCAI 2015, section 3, equation 2), with a step instead of
    their Gaussian, since classes have one boundary where cells have two. Neither ignored pixels nor the image's edge
    are boundaries.

    Args:
        logits: ``(B, C, H, W)``.
        target: ``(B, H, W)`` class ids; 255 (above 255 classes 65535) is ignored.
        class_weights: multiplied by the weights for the boundary.
        radius: radius of the square neighbourhood, in pixels of the target.
        gain: pixels with another class in their neighbourhood have weight ``1 + gain``, the others 1.
    """
    logits, weights = _prepare(logits, target, class_weights)
    near = _near_boundary(target, radius, ignore_id(logits.shape[1]))
    return _weighted_mean(_nll(logits, target), weights[target] * (1 + gain * near))


# ---- regions


def dice(logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """One minus the Dice coefficient of soft masks, ``2 |P G| / (|P| + |G|)``, the mean over classes in the target.

    Shapes: logits ``(B, C, H, W)``, target ``(B, H, W)`` of class ids, class_weights ``(C,)``.

    Source: Milletari et al., "V-Net", 3DV 2016, section 3, with plain sums in the denominator, where the paper squares
    the probabilities. The paper has two classes, both present. Here an absent class is left out, because its loss would
    be 1 for any prediction above 0.
    """
    probabilities, members, weights = _regions(logits, target, class_weights)
    shared, predicted, labelled = _overlap(probabilities, members)
    # A class in the target has |G| >= 1: the clamp changes absent classes only.
    return _class_mean(1 - 2 * shared / (predicted + labelled).clamp(min=1), members, weights)


def jaccard(logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """One minus the Jaccard index (IoU) of soft masks, ``|P G| / (|P| + |G| - |P G|)``, the mean over classes.

    Shapes: logits ``(B, C, H, W)``, target ``(B, H, W)`` of class ids, class_weights ``(C,)``.

    Source: Rahman and Wang, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image Segmentation",
    ISVC 2016. The paper has a single class, present; absent classes are left out as in :func:`dice`.
    """
    probabilities, members, weights = _regions(logits, target, class_weights)
    shared, predicted, labelled = _overlap(probabilities, members)
    return _class_mean(1 - shared / (predicted + labelled - shared).clamp(min=1), members, weights)


def lovasz(logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Lovász-Softmax: the convex surrogate of one minus the IoU, the mean over classes in the target.

    Shapes: logits ``(B, C, H, W)``, target ``(B, H, W)`` of class ids, class_weights ``(C,)``.

    Source: Berman et al., "The Lovász-Softmax loss", CVPR 2018: the extension of equations 8 and 9, applied to the
    errors of equation 11, over the batch. The paper's mean is over all classes. The authors' code leaves out classes
    that are absent from the target by default, and so does this function: their surrogate is only the largest error.

    The loss is exact, by one sort of ``(C, B * H * W)``. :class:`SegmentationLoss` gives the time of that, and computes
    it on fewer pixels.
    """
    probabilities, members, weights = _regions(logits, target, class_weights)
    # Ignored pixels have error 0 and belong to no class: they come last and add nothing.
    errors, order = torch.where(members, 1 - probabilities, probabilities).sort(dim=1, descending=True)
    member = members.gather(1, order)
    hits = member.cumsum(1)
    misses = torch.arange(1, member.shape[1] + 1, device=member.device) - hits
    union = (hits[:, -1:] + misses).to(errors)
    missing = (hits[:, -1:] - hits).to(errors)
    # Increase of the Jaccard loss by each pixel, in closed form: a difference would lose digits by cancellation.
    steps = torch.where(member, 1 / union, missing / union / (union - 1).clamp(min=1))
    return _class_mean((errors * steps).sum(1), members, weights)


#: The losses by name; :data:`foveal.training.segment_settings.LossName` lists the same names without torch.
LOSSES: dict[LossName, Loss] = {
    "cross_entropy": cross_entropy,
    "ohem": ohem,
    "focal": focal,
    "dice": dice,
    "jaccard": jaccard,
    "lovasz": lovasz,
    "boundary": boundary,
}


_PER_CLASS = ("dice", "jaccard", "lovasz")


# ---- parts


def _float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _prepare(logits: Tensor, target: Tensor, class_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits in at least 32 bits, and a weight for each id that a target may contain (0 for ignored ones)."""
    batch, _, *size = logits.shape
    if (batch, *size) != target.shape:
        raise InputError(
            f"logits {tuple(logits.shape)} do not fit a target {tuple(target.shape)}: upsample them to its size, "
            "as SegmentationLoss does"
        )
    logits = _float(logits)
    return logits, _weights_of_ids(logits, class_weights)


def _weights_of_ids(logits: Tensor, class_weights: Tensor | None) -> Tensor:
    classes = logits.shape[1]
    if class_weights is not None and class_weights.shape != (classes,):
        raise InputError(f"class_weights {tuple(class_weights.shape)}: expected one per class, ({classes},)")
    weights = logits.new_ones(classes) if class_weights is None else class_weights.to(logits)
    return F.pad(weights, (0, ignore_id(classes) + 1 - classes))


def _nll(logits: Tensor, target: Tensor) -> Tensor:
    """``-log p`` of each pixel's class, ``(B, H, W)``; 0 for ignored pixels."""
    return F.cross_entropy(logits, target, ignore_index=ignore_id(logits.shape[1]), reduction="none")


def _upsampled_cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
    """:func:`cross_entropy` of upsampled logits that never exist as a whole; on the CPU."""
    weights = _weights_of_ids(logits, class_weights)
    total = weights[target].sum()
    value = cross_entropy_sum(logits, target, weights, ignore_id(logits.shape[1]))
    return value / total.where(total > 0, 1)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    total = weights.sum()
    return (values * weights).sum() / total.where(total > 0, 1)


def _near_boundary(target: Tensor, radius: int, ignore: int) -> Tensor:
    """Whether a pixel has another class within ``radius`` pixels (chessboard distance), ``(B, H, W)``."""
    ids = target.float()
    ignored = target == ignore
    stacked = torch.stack([ids.masked_fill(ignored, -math.inf), (-ids).masked_fill(ignored, -math.inf)], dim=1)
    for window in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
        stacked = F.max_pool2d(stacked, window, stride=1, padding=(window[0] // 2, window[1] // 2))
    largest, smallest = stacked[:, 0], -stacked[:, 1]
    return (largest != smallest) & ~ignored


def _regions(logits: Tensor, target: Tensor, class_weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Soft masks and true masks, both ``(C, B * H * W)`` and 0 for ignored pixels; and each class's weight."""
    logits, weights = _prepare(logits, target, class_weights)
    labelled = (target != ignore_id(logits.shape[1]))[:, None]
    members = torch.zeros_like(logits, dtype=torch.bool)
    members.scatter_(1, target[:, None].where(labelled, 0), labelled)
    probabilities = logits.softmax(1) * labelled
    flat = [maps.transpose(0, 1).flatten(1) for maps in (probabilities, members)]
    return flat[0], flat[1], weights[: logits.shape[1]]


def _overlap(probabilities: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Size of each class's intersection, soft mask and true mask, ``(C,)`` each."""
    return (probabilities * members).sum(1), probabilities.sum(1), members.sum(1)


def _class_mean(values: Tensor, members: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the losses ``(C,)`` of the classes that occur in the target."""
    return _weighted_mean(values, weights * members.any(1))


# ---- masks of single objects


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """20 times cross entropy plus Dice of each mask, on points where the mask is uncertain: ``(P, M)``.

    The number of points is 112 x 112. 75 % of them are those with logits nearest to 0 of three times as many uniform
    random points; the others are new uniform random points (PointRend, arXiv 1912.08193, section 4.2; the factors are
    those of EfficientViT-SAM, arXiv 2402.05008, whose code has cross entropy where the paper says focal loss). Both
    maps are interpolated between pixels. If ``target`` is the share of each pixel that the object covers, outlines are
    therefore learnt more finely than the map's resolution.

    Args:
        logits: ``(P, M, h, w)``, M masks for each of P prompts.
        target: ``(P, h, w)`` of 0..1.
    """
    masks = _float(logits).flatten(0, 1)[:, None]
    truth = target.to(masks.dtype).repeat_interleave(logits.shape[1], 0)[:, None]
    with torch.no_grad():
        points = torch.rand(len(masks), _CANDIDATES * _POINTS, 2, device=masks.device, dtype=masks.dtype)
        uncertain = (-_values_at(masks, points).abs()).topk(int(_UNCERTAIN * _POINTS), sorted=False).indices
        others = torch.rand(len(masks), _POINTS - uncertain.shape[1], 2, device=masks.device, dtype=masks.dtype)
        points = torch.cat([points.gather(1, uncertain[..., None].expand(-1, -1, 2)), others], 1)
        true = _values_at(truth, points)
    predicted = _values_at(masks, points)
    entropy = F.binary_cross_entropy_with_logits(predicted, true, reduction="none").mean(1)
    inside = predicted.sigmoid()
    overlap = 1 - (2 * (inside * true).sum(1) + 1) / (inside.sum(1) + true.sum(1) + 1)
    return (_ENTROPY * entropy + overlap).unflatten(0, logits.shape[:2])


def _values_at(maps: Tensor, points: Tensor) -> Tensor:
    """Values of maps ``(N, 1, h, w)`` at points ``(N, n, 2)``, x and y of 0..1: ``(N, n)``."""
    return F.grid_sample(maps, 2 * points[:, None] - 1, padding_mode="border", align_corners=False)[:, 0, 0]


def mask_iou(masks: Tensor, true: Tensor) -> Tensor:
    """IoU of masks ``(P, M, h, w)`` with true masks ``(P, h, w)``, all bool: ``(P, M)`` float32; 0 for empty masks."""
    true = true[:, None]
    return (masks & true).sum((-2, -1)) / (masks | true).sum((-2, -1)).clamp(min=1)
