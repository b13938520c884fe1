"""Re-parameterised convolution: several linear branches while training, one 3x3 convolution afterwards.

Sources: RepVGG (arXiv 2101.03697) for parallel branches, DBB (arXiv 2103.13425) for a 1x1 followed by a 3x3, ECBSR
(ACM MM 2021) for both in super-resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RepConv(nn.Module):
    """Sum of a 3x3 convolution, a 1x1, a 1x1 followed by a 3x3, and the identity: ``(B, channels, H, W)`` is kept.

    All branches are linear, and only the 3x3 convolutions have padding and a bias (a bias before the padding would be
    missing in the padded pixels). So their sum is one 3x3 convolution, except for rounding.

    Args:
        channels: channels of input and output.
        fused: build only that one convolution.
    """

    def __init__(self, channels: int, *, fused: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.fused = fused
        if not fused:
            self.point = nn.Conv2d(channels, channels, 1, bias=False)
            self.expand = nn.Conv2d(channels, channels, 1, bias=False)
            self.spread = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return self.conv(x)
        return self.conv(x) + self.point(x) + self.spread(self.expand(x)) + x

    @torch.no_grad()
    def fuse(self) -> None:
        """Merge all branches into the 3x3 convolution, in place; sums are taken in float64."""
        if self.fused:
            return
        wide = torch.float64
        kernel = self.conv.weight.to(wide) + torch.einsum(
            "omhw,mi->oihw", self.spread.weight.to(wide), self.expand.weight[..., 0, 0].to(wide)
        )
        eye = torch.eye(len(kernel), dtype=wide, device=kernel.device)
        kernel[..., 1, 1] += self.point.weight[..., 0, 0].to(wide) + eye
        assert self.conv.bias is not None
        assert self.spread.bias is not None
        self.conv.bias.copy_(self.conv.bias.to(wide) + self.spread.bias.to(wide))
        self.conv.weight.copy_(kernel)
        del self.point, self.expand, self.spread
        self.fused = True


def fuse_branches(model: nn.Module) -> None:
    """Fuse every :class:`RepConv` of ``model`` into one convolution, in place."""
    for module in model.modules():
        if isinstance(module, RepConv):
            module.fuse()
