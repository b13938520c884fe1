"""Dense regression: a backbone and the segmentation head, whose outputs are values in the units of the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, nearest
from ..models.registry import Backbone, Family, FeatureInfo
from .builder import Builder, Request
from .segment import BUILDER as SEGMENT
from .segment import SegmentationHead, SegmentationModel, head_arguments

#: What follows the last convolution: nothing, values of 0..1, values above 0, vectors of length 1.
OUTPUTS = ("none", "sigmoid", "softplus", "unit")
_OUTPUT_KEY = "output_"
_SHORTEST = 1e-6  # length of a vector below which it has no direction


class RegressionHead(SegmentationHead):
    """The segmentation head with values instead of logits: ``(B, channels, h, w)`` at the head's stride.

    The network computes standardised values z; ``target_mean`` m and ``target_std`` s, one number per channel, are
    buffers that training sets. The values are ``m + s z`` ("none", "unit"), ``sigmoid(z)`` or
    ``s softplus(z + m / s)``, which for values far above 0 is ``m + s z``.

    Args:
        feature_info: feature maps of the backbone, finest first; the last three are used.
        channels: number of values of each pixel.
        output: one of :data:`OUTPUTS`. Vectors get the length 1 after upsampling (:class:`RegressionModel`).
        **sizes: as for :class:`~foveal.tasks.segment.SegmentationHead`.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(self, feature_info: Sequence[FeatureInfo], channels: int, *, output: str = "none", **sizes: Any):
        super().__init__(feature_info, channels, **sizes)
        self.output = output
        self.register_buffer("target_mean", torch.zeros(channels))
        self.register_buffer("target_std", torch.ones(channels))
        if output != OUTPUTS[0]:  # an empty tensor whose name shows the output of a file without a description
            self.register_buffer(f"{_OUTPUT_KEY}{output}", torch.zeros(0))

    def set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set mean and standard deviation of the training targets; values of 0..1 keep 0 and 1.

        Raises:
            ConfigError: there is not one number per channel, or a deviation is not above 0.
        """
        count = len(self.target_mean)
        if not len(mean) == len(std) == count or not min(std) > 0:
            raise ConfigError(f"mean={list(mean)}, std={list(std)}: give {count} of each, deviations above 0")
        if self.output != "sigmoid":
            with torch.no_grad():
                self.target_mean.copy_(torch.as_tensor(mean))
                self.target_std.copy_(torch.as_tensor(std))

    def forward(self, maps: list[Tensor]) -> Tensor:
        z = super().forward(maps)
        z = z.to(torch.promote_types(z.dtype, torch.float32))  # metres and millimetres need more digits than bfloat16
        if self.output == "sigmoid":
            return z.sigmoid()
        mean, std = self.target_mean[:, None, None], self.target_std[:, None, None]
        return std * F.softplus(z + mean / std) if self.output == "softplus" else mean + std * z


class RegressionModel(SegmentationModel):
    """Backbone and head: ``(B, in_chans, H, W) -> (B, channels, H, W)`` values in the units of the target.

    Sizes as for :class:`~foveal.tasks.segment.SegmentationModel`. ``forward(x, upsample=False)`` returns values at the
    head's own stride; with the output "unit" these are vectors of any length, since interpolation changes lengths.

    Raises:
        InputError: H or W is below the backbone's ``min_size``.
    """

    head: RegressionHead

    def upsampled(self, logits: Tensor) -> Tensor:
        """Values at ``stride`` times the size."""
        values = super().upsampled(logits)
        return unit_vectors(values) if self.head.output == "unit" else values


def unit_vectors(values: Tensor) -> Tensor:
    """Vectors ``(B, C, H, W)`` of length 1 and the same direction."""
    return values / values.square().sum(1, keepdim=True).clamp(min=_SHORTEST**2).sqrt()


def _count_channels(request: Request) -> int:
    """Number of channels, from ``num_classes`` or ``out_chans``; default: 1."""
    wanted = request.options.get("out_chans")
    if wanted is not None and (type(wanted) is not int or wanted < 1):
        raise ConfigError(f"out_chans={wanted!r}: give a whole number, 1 or more")
    if request.num_classes is not None and request.num_classes < 1:
        raise ConfigError(f"num_classes={request.num_classes}: a regression model needs at least 1 channel")
    if wanted is not None and request.num_classes not in (None, wanted):
        raise ConfigError(f"out_chans={wanted}, but there are {request.num_classes} channels: leave out_chans out")
    return wanted or request.num_classes or 1


def _build(backbone: Backbone, request: Request) -> RegressionModel:
    output = request.options.get("output", OUTPUTS[0])
    if output not in OUTPUTS:
        raise ConfigError(f"output={output!r}{nearest(str(output), OUTPUTS)}")
    if output == "unit" and request.num_classes == 1:
        raise ConfigError("output='unit' is for vectors: give out_chans=3, or 2")
    sizes = {key: value for key, value in head_arguments(request).items() if key != "num_classes"}
    channels = request.num_classes or 1
    return RegressionModel(backbone, RegressionHead(backbone.feature_info, channels, output=output, **sizes))


def _implied(state: Mapping[str, Tensor], family: Family) -> dict[str, Any]:
    """The output, which the name of an empty tensor shows."""
    known = [output for output in OUTPUTS if f"head.{_OUTPUT_KEY}{output}" in state]
    return {"output": known[0]} if known else {}


BUILDER = Builder(
    _build,
    _count_channels,
    options=SEGMENT.options | {"out_chans", "output"},
    implied=_implied,
    published_heads=SEGMENT.published_heads,
)
