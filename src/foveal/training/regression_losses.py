"""Losses for maps of values: the mean over valid pixels, in multiples of the spread of the training targets.

Predictions and targets are ``(B, C, H, W)`` in the unit of the target. Pixels whose target is NaN in any channel are
not valid, and neither their prediction nor its gradient counts. ``std`` ``(C,)`` is the standard deviation of the
training targets, so that a loss has about the same size in metres and in millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, InputError, nearest
from .regress_settings import RegressionLossName

RegressionLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # prediction, target, valid (B, 1, H, W), std
_SMALLEST = 1e-6  # of values whose logarithm is taken, in multiples of std
_VARIANCE_SHARE = 0.5  # arXiv 1406.2283, equation 4


class MapLoss:
    """A weighted sum of losses, at the size of the target.

    Args:
        terms: factor of each loss by name.
        std: standard deviation of each channel of the training targets.

    Raises:
        ConfigError: there is no term, a name is unknown, or a factor is out of range.
    """

    def __init__(self, terms: Mapping[RegressionLossName, float], std: Tensor) -> None:
        if not terms:
            raise ConfigError(f"a loss needs one term at least{nearest('', REGRESSION_LOSSES)}")
        for name, factor in terms.items():
            if name not in REGRESSION_LOSSES:
                raise ConfigError(f"unknown loss {name!r}{nearest(name, REGRESSION_LOSSES)}")
            if not (factor > 0 and math.isfinite(factor)):
                raise ConfigError(f"loss {name}={factor!r}: expected a factor above 0")
        self.terms, self.std = dict(terms), std

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of a prediction of the target's size, a scalar.

        Raises:
            InputError: the two have different shapes.
        """
        if prediction.shape != target.shape:
            raise InputError(f"a prediction of {tuple(prediction.shape)} does not fit a target {tuple(target.shape)}")
        prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        valid = target.isfinite().all(1, keepdim=True)
        target = torch.where(valid, target, 1).to(prediction)
        prediction = torch.where(valid, prediction, target.detach())  # no gradient where there is no target
        total = prediction.new_zeros(())
        for name, factor in self.terms.items():
            total = total + factor * REGRESSION_LOSSES[name](prediction, target, valid, self.std.to(prediction))
        return total


def l1(prediction: Tensor, target: Tensor, valid: Tensor, std: Tensor) -> Tensor:
    """Mean absolute error."""
    return _mean(_residual(prediction, target, std).abs(), valid)


def huber(prediction: Tensor, target: Tensor, valid: Tensor, std: Tensor) -> Tensor:
    """Huber's loss (1964): half of the squared error up to one standard deviation, then linear."""
    error = _residual(prediction, target, std)
    return _mean(F.huber_loss(error, torch.zeros_like(error), reduction="none"), valid)


def silog(prediction: Tensor, target: Tensor, valid: Tensor, std: Tensor) -> Tensor:
    """Scale-invariant error of logarithms, the mean over images: ``mean(d^2) - 0.5 mean(d)^2``, d the difference.

    Source: Eigen et al., "Depth Map Prediction from a Single Image using a Multi-Scale Deep Network", arXiv 1406.2283,
    equation 4.
    """
    smallest = (_SMALLEST * std)[:, None, None]
    difference = (torch.maximum(prediction, smallest).log() - torch.maximum(target, smallest).log()) * valid
    count = valid.sum((1, 2, 3)).clamp(min=1) * prediction.shape[1]
    mean, square = difference.sum((1, 2, 3)) / count, difference.square().sum((1, 2, 3)) / count
    used = valid.any(1).flatten(1).any(1)
    return ((square - _VARIANCE_SHARE * mean.square()) * used).sum() / used.sum().clamp(min=1)


def cosine(prediction: Tensor, target: Tensor, valid: Tensor, std: Tensor) -> Tensor:
    """One minus the cosine of the angle between two vectors, the mean over pixels."""
    return _mean(1 - F.cosine_similarity(prediction, target, dim=1, eps=1e-6)[:, None], valid)


def gradient(prediction: Tensor, target: Tensor, valid: Tensor, std: Tensor) -> Tensor:
    """Mean absolute difference of the errors of neighbouring pixels: edges and slopes (arXiv 1411.4734, section 4.1).

    The paper squares these differences.
    """
    error = _residual(prediction, target, std)
    across = _mean((error[..., 1:] - error[..., :-1]).abs(), valid[..., 1:] & valid[..., :-1])
    down = _mean((error[..., 1:, :] - error[..., :-1, :]).abs(), valid[..., 1:, :] & valid[..., :-1, :])
    return (across + down) / 2


#: The losses by name; :data:`foveal.training.regress_settings.RegressionLossName` lists them without torch.
REGRESSION_LOSSES: dict[RegressionLossName, RegressionLoss] = {
    "l1": l1,
    "huber": huber,
    "silog": silog,
    "cosine": cosine,
    "gradient": gradient,
}


def _residual(prediction: Tensor, target: Tensor, std: Tensor) -> Tensor:
    return (prediction - target) / std[:, None, None]


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid pixels and the channels; 0 without a valid pixel."""
    return (values * valid).sum() / (valid.sum().clamp(min=1) * values.shape[1])
