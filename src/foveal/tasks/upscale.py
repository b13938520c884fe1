"""Super-resolution, and restoration at the image's own size: what a network adds to a bicubic interpolation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.resample import BicubicUpsample, check_min_size
from ..models.registry import Backbone

SCALES = (1, 2, 3, 4)
DEFAULT_SCALE = 2
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  #: images enter on the 0..1 scale
_SMALL = 0.1  # share of its usual size with which the last convolution begins


class UpscaleHead(nn.Module):
    """Sub-pixel convolution (arXiv 1609.05158): ``(B, channels, H, W) -> (B, out_chans, scale * H, scale * W)``."""

    def __init__(self, channels: int, out_chans: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.subpixel = nn.Conv2d(channels, out_chans * scale**2, 3, padding=1)
        if not self.subpixel.weight.is_meta:
            with torch.no_grad():
                self.subpixel.weight *= _SMALL
                nn.init.zeros_(self.subpixel.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.subpixel(x), self.scale)


class UpscaleModel(nn.Module):
    """Backbone, head and bicubic base: ``(B, in_chans, H, W) -> (B, in_chans, scale * H, scale * W)``.

    Images are on the 0..1 scale on both sides; what comes out may lie a little outside it. With ``scale`` 1 the base is
    the image itself, and the network repairs it.

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
