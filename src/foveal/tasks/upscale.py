"""Super-resolution, and restoration at the image's own size: a correction of the bicubic interpolation is predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..info import Preprocess
from ..layers.resample import BicubicUpsample, check_min_size
from ..models.registry import Backbone, Family
from .builder import Builder, Request

SCALES = (1, 2, 3, 4)
DEFAULT_SCALE = 2
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  #: input images are on the 0..1 scale
_INITIAL_GAIN = 0.1  # of the last convolution: an untrained model gives nearly the bicubic interpolation


class UpscaleHead(nn.Module):
    """Sub-pixel convolution (arXiv 1609.05158): ``(B, channels, H, W) -> (B, out_chans, scale * H, scale * W)``."""

    def __init__(self, channels: int, out_chans: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.subpixel = nn.Conv2d(channels, out_chans * scale**2, 3, padding=1)
        if not self.subpixel.weight.is_meta:
            with torch.no_grad():
                self.subpixel.weight *= _INITIAL_GAIN
                nn.init.zeros_(self.subpixel.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.subpixel(x), self.scale)


class UpscaleModel(nn.Module):
    """Backbone, head and bicubic base: ``(B, in_chans, H, W) -> (B, in_chans, scale * H, scale * W)``.

    Input and output images are on the 0..1 scale; outputs may lie a little outside it. With ``scale`` 1 the base is the
    image itself, and the network restores it.

    Raises:
        InputError: H or W is below the backbone's ``min_size``.
    """

    def __init__(self, backbone: Backbone, head: UpscaleHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.scale = head.scale
        self.base = BicubicUpsample(head.scale, a=-0.5)

    def forward(self, x: Tensor) -> Tensor:
        check_min_size(x, self.backbone.min_size)
        return self.base(x) + self.head(self.backbone(x - 0.5)[-1])


def _count_classes(request: Request) -> int:
    if request.num_classes:
        raise ConfigError(f"num_classes={request.num_classes}: {request.name} makes images, not classes; leave it out")
    return 0


def _build(backbone: Backbone, request: Request) -> UpscaleModel:
    scale = request.options["scale"]
    if scale not in SCALES:
        raise ConfigError(f"scale={scale!r}: give one of {', '.join(map(str, SCALES))}")
    return UpscaleModel(backbone, UpscaleHead(backbone.feature_info[-1].channels, request.in_chans, scale))


def _implied(state: Mapping[str, Tensor], family: Family) -> dict[str, Any]:
    """The scale: the sub-pixel convolution has ``in_chans * scale ** 2`` outputs."""
    if "head.subpixel.weight" not in state or family.stem not in state:
        return {}
    return {"scale": math.isqrt(state["head.subpixel.weight"].shape[0] // state[family.stem].shape[1])}


BUILDER = Builder(
    _build,
    _count_classes,
    options=frozenset({"scale"}),
    defaults={"scale": DEFAULT_SCALE},
    preprocess=lambda model, known: known or Preprocess(MEAN, STD),
    implied=_implied,
)
