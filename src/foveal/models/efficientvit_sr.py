"""Super-resolution and restoration with EfficientViT's blocks (Cai et al., arXiv 2205.14756); the design is our own.

The paper reports super-resolution at x2 with EfficientViT and with a version of 0.75 times its width, trained from a
random initialisation with AdamW and a cosine schedule on DIV2K (BSD100: 32.33 and 32.31 dB) and on FFHQ. It does not
give widths, depths or the upsampler, and neither code nor weights were released.

Our design:

* The trunk stays at the resolution of the small image, because detail that is lost by a stride cannot be recovered.
  Dense residual convolutions without norms process local detail; batch norms cost accuracy here (EDSR, arXiv
  1707.02921).
* Multi-scale linear attention over the whole image runs in a branch at half that resolution, where it costs a quarter.
  A pixel shuffle brings its output back to full resolution.
* The last convolution of every branch is initialised small, so that an untrained network is close to the bicubic
  interpolation to which its output is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.conv import ConvNormAct, ResidualConv
from ..layers.efficientvit_block import EfficientViTBlock
from ..layers.resample import check_min_size, crop
from .registry import Backbone, Family, FeatureInfo, Variant, register

_INIT_SCALE = 0.2  # factor on the usual initial weights of the last convolution of a branch


@dataclass(frozen=True)
class Config:
    """Sizes of one variant.

    Attributes:
        width: channels of the trunk.
        depth: number of stages.
        convs: residual blocks of two convolutions in each stage, before its attention.
        context_width: channels of the attention branch, a multiple of ``head_dim``.
        head_dim: channels per attention head.
        expand_ratio: hidden channels over channels in the inverted residual after the attention.
    """

    width: int
    depth: int = 2
    convs: int = 2
    context_width: int = 32
    head_dim: int = 16
    expand_ratio: float = 2


CONFIGS = {
    "efficientvit_sr": Config(32),
    "efficientvit_sr_w075": Config(24, context_width=24, head_dim=12),
    "efficientvit_sr_l": Config(64, depth=4, context_width=64),
}


class ContextBlock(nn.Module):
    """Add attention over the whole image, computed at half resolution, to the map: keeps ``(B, C, H, W)``."""

    def __init__(self, channels: int, context_width: int, head_dim: int, expand_ratio: float) -> None:
        super().__init__()
        self.down = ConvNormAct(channels, context_width, 3, 2, norm=False)
        self.block = EfficientViTBlock(
            context_width, head_dim=head_dim, expand_ratio=expand_ratio, attention_eps=1e-5, act=nn.ReLU, norm=False
        )
        self.up = ConvNormAct(context_width, 4 * channels, 1, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        up = F.pixel_shuffle(self.up(self.block(self.down(x))), 2)
        return x + crop(up, x.shape[-2], x.shape[-1])


class EfficientViTSR(Backbone):
    """Backbone: ``(B, in_chans, H, W) -> [(B, width, H, W)]``, at the image's own resolution.

    Args:
        config: sizes, an entry of :data:`CONFIGS`.
        in_chans: channels of the image.

    Raises:
        InputError: a side of the image is below 8 pixels.
    """

    min_size = 8

    def __init__(self, config: Config, in_chans: int = 3) -> None:
        super().__init__()
        width = config.width
        self.stem = nn.Sequential(ConvNormAct(in_chans, width, 3, norm=False))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(ResidualConv(width, width, act=nn.ReLU, norm=False) for _ in range(config.convs)),
                ContextBlock(width, config.context_width, config.head_dim, config.expand_ratio),
            )
            for _ in range(config.depth)
        )
        self.merge = ConvNormAct(width, width, 3, norm=False)
        self.feature_info = [FeatureInfo(width, 1)]
        for module in self.modules():
            last = _last_conv(module)
            if last is not None and not last.weight.is_meta:
                with torch.no_grad():
                    last.weight *= _INIT_SCALE

    def forward(self, x: Tensor) -> list[Tensor]:
        check_min_size(x, self.min_size)
        x = shallow = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return [shallow + self.merge(x)]


def _last_conv(module: nn.Module) -> nn.Conv2d | None:
    """Return the last convolution of a residual branch; ``None`` if ``module`` is no such branch."""
    if isinstance(module, ResidualConv):
        return module.conv2.conv
    if isinstance(module, ContextBlock):
        return module.up.conv
    if isinstance(module, EfficientViTBlock):
        return module.local.project.conv
    return None


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return our layout unchanged, ``None`` for anything else: there are no published weights in another layout."""
    return dict(state) if "backbone.merge.conv.weight" in state else None


register(
    Family(
        name="efficientvit_sr",
        paper="arXiv 2205.14756, section 4.3; the architecture is ours",
        variants={
            name: Variant(lambda in_chans=3, config=config: EfficientViTSR(config, in_chans), tasks=("upscale",))
            for name, config in CONFIGS.items()
        },
        convert=convert,
        licence="Apache-2.0",
    )
)
