"""DDRNet-23-slim (arXiv 2101.06085) and PIDNet-S (arXiv 2206.02066), rebuilt from their papers, to count and time them.

Both keep a branch at stride 8 next to one that goes down to stride 64, exchange maps between them, and add the pooled
context of the deep branch. PIDNet has a third branch for contours. Heads that only training uses are left out. Logits
are of stride 8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(a: int, b: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution and batch norm."""
    return nn.Sequential(nn.Conv2d(a, b, size, stride, size // 2, bias=False), nn.BatchNorm2d(b))


def norm_conv(a: int, b: int, size: int = 1, groups: int = 1, bias: bool = False) -> nn.Sequential:
    """Batch norm, ReLU and convolution."""
    conv = nn.Conv2d(a, b, size, padding=size // 2, groups=groups, bias=bias)
    return nn.Sequential(nn.BatchNorm2d(a), nn.ReLU(), conv)


class Residual(nn.Module):
    """A residual block, basic or with a bottleneck that doubles the channels; the last of a stage ends without ReLU."""

    def __init__(self, a: int, b: int, stride: int = 1, bottleneck: bool = False, relu: bool = True) -> None:
        super().__init__()
        out = 2 * b if bottleneck else b
        if bottleneck:
            parts = [conv_norm(a, b, 1), nn.ReLU(), conv_norm(b, b, 3, stride), nn.ReLU(), conv_norm(b, out, 1)]
        else:
            parts = [conv_norm(a, b, 3, stride), nn.ReLU(), conv_norm(b, b)]
        self.body = nn.Sequential(*parts)
        self.skip = nn.Identity() if a == out and stride == 1 else conv_norm(a, out, 1, stride)
        self.act = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.skip(x) + self.body(x))


def basic(a: int, b: int, depth: int, stride: int = 1) -> nn.Sequential:
    """A stage of basic blocks."""
    blocks = [Residual(a if i == 0 else b, b, stride if i == 0 else 1, relu=i < depth - 1) for i in range(depth)]
    return nn.Sequential(*blocks)


def bottleneck(a: int, b: int, depth: int = 1, stride: int = 1) -> nn.Sequential:
    """A stage of bottleneck blocks, whose output has 2 b channels."""
    blocks = [Residual(a if i == 0 else 2 * b, b, stride if i == 0 else 1, True, i < depth - 1) for i in range(depth)]
    return nn.Sequential(*blocks)


def stem() -> nn.Sequential:
    """Two convolutions of stride 2, to 32 channels."""
    return nn.Sequential(conv_norm(3, 32, 3, 2), nn.ReLU(), conv_norm(32, 32, 3, 2), nn.ReLU())


class Head(nn.Module):
    """A 3x3 and a 1x1 convolution, each after norm and ReLU."""

    def __init__(self, a: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(norm_conv(a, hidden, 3), norm_conv(hidden, num_classes, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def resized(x: Tensor, like: Tensor) -> Tensor:
    """``x`` at the size of the other map, bilinear."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear")


class Context(nn.Module):
    """Averages over growing windows, refined one after the other (DAPPM) or side by side (PAPPM)."""

    def __init__(self, a: int, hidden: int, out: int, serial: bool) -> None:
        super().__init__()
        self.serial = serial
        pools = (nn.AvgPool2d(5, 2, 2), nn.AvgPool2d(9, 4, 4), nn.AvgPool2d(17, 8, 8), nn.AdaptiveAvgPool2d(1))
        self.first = norm_conv(a, hidden)
        self.pools = nn.ModuleList(nn.Sequential(pool, norm_conv(a, hidden)) for pool in pools)
        if serial:
            self.refine = nn.ModuleList(norm_conv(hidden, hidden, 3) for _ in pools)
        else:
            self.refine = nn.ModuleList([norm_conv(4 * hidden, 4 * hidden, 3, groups=4)])
        self.join, self.skip = norm_conv(5 * hidden, out), norm_conv(a, out)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for i, pool in enumerate(self.pools):
            pooled = resized(pool(x), x) + parts[-1 if self.serial else 0]
            parts.append(self.refine[i](pooled) if self.serial else pooled)
        if not self.serial:
            parts = [parts[0], self.refine[0](torch.cat(parts[1:], 1))]
        return self.join(torch.cat(parts, 1)) + self.skip(x)


class DDRNet(nn.Module):
    """DDRNet-23-slim: two branches that exchange their maps twice."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(stem(), basic(32, 32, 2), nn.ReLU(), basic(32, 64, 2, 2), nn.ReLU())
        self.deep = nn.ModuleList([basic(64, 128, 2, 2), basic(128, 256, 2, 2), bottleneck(256, 256, 1, 2)])
        self.fine = nn.ModuleList([basic(64, 64, 2), basic(64, 64, 2), bottleneck(64, 64)])
        self.to_fine = nn.ModuleList([conv_norm(128, 64, 1), conv_norm(256, 64, 1)])
        twice = nn.Sequential(conv_norm(64, 128, 3, 2), nn.ReLU(), conv_norm(128, 256, 3, 2))
        self.to_deep = nn.ModuleList([conv_norm(64, 128, 3, 2), twice])
        self.context = Context(512, 128, 128, serial=True)
        self.head = Head(128, 64, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        deep = fine = self.stem(image)
        for i in range(2):
            low, high = self.deep[i](deep), self.fine[i](fine)
            deep = F.relu(low + self.to_deep[i](F.relu(high)))
            fine = F.relu(high + resized(self.to_fine[i](F.relu(low)), high))
        fine = self.fine[2](fine)
        return self.head(fine + resized(self.context(self.deep[2](deep)), fine))


class Selection(nn.Module):
    """Each position of the fine map takes from the deep one as much as both are alike (Pag)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fine, self.deep = conv_norm(channels, hidden, 1), conv_norm(channels, hidden, 1)

    def forward(self, fine: Tensor, deep: Tensor) -> Tensor:
        alike = (self.fine(fine) * resized(self.deep(deep), fine)).sum(1, keepdim=True).sigmoid()
        return (1 - alike) * fine + alike * resized(deep, fine)


class ContourFusion(nn.Module):
    """Details where there are contours, context elsewhere (light Bag)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fine, self.deep = conv_norm(channels, channels, 1), conv_norm(channels, channels, 1)

    def forward(self, fine: Tensor, deep: Tensor, contour: Tensor) -> Tensor:
        edge = contour.sigmoid()
        return self.fine((1 - edge) * deep + fine) + self.deep(deep + edge * fine)


class PIDNet(nn.Module):
    """PIDNet-S: branches for details, context and contours."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(stem(), basic(32, 32, 2), nn.ReLU(), basic(32, 64, 2, 2), nn.ReLU())
        self.deep = nn.ModuleList([basic(64, 128, 3, 2), basic(128, 256, 3, 2), bottleneck(256, 256, 2, 2)])
        self.fine = nn.ModuleList([basic(64, 64, 2), basic(64, 64, 2), bottleneck(64, 64)])
        self.contour = nn.ModuleList([basic(64, 32, 1), bottleneck(32, 32), bottleneck(64, 64)])
        self.to_fine = nn.ModuleList([conv_norm(128, 64, 1), conv_norm(256, 64, 1)])
        self.to_contour = nn.ModuleList([conv_norm(128, 32), conv_norm(256, 64)])
        self.select = nn.ModuleList([Selection(64, 32), Selection(64, 32)])
        self.context = Context(512, 96, 128, serial=False)
        self.fuse, self.head = ContourFusion(128), Head(128, 128, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        deep = fine = contour = self.stem(image)
        for i in range(2):
            high, edges = self.fine[i](fine), self.contour[i](contour)
            deep = F.relu(self.deep[i](deep))
            fine = F.relu(self.select[i](high, self.to_fine[i](deep)))
            contour = F.relu(edges + resized(self.to_contour[i](deep), edges))
        fine, contour = self.fine[2](fine), self.contour[2](contour)
        return self.head(self.fuse(fine, resized(self.context(self.deep[2](deep)), fine), contour))


def ddrnet_23_slim(num_classes: int = 19) -> nn.Module:
    """DDRNet-23-slim."""
    return DDRNet(num_classes)


def pidnet_s(num_classes: int = 19) -> nn.Module:
    """PIDNet-S."""
    return PIDNet(num_classes)
