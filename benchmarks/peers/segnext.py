"""SegNeXt T, S, B and L, rebuilt from the paper (arXiv 2209.08575) without weights, to count and time them.

The encoder, MSCAN, has four stages of blocks whose attention is a gate made by strip convolutions. The decoder joins
the last three stages at stride 8 and factorises them with seven steps of non-negative matrix factorisation
(Hamburger, arXiv 2109.04553). Logits are of stride 8; resizing them to the image is left to the caller, as for all
segmentation models of the benchmark.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def depthwise(channels: int, height: int, width: int) -> nn.Conv2d:
    """A depthwise convolution that keeps the size."""
    return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2), groups=channels)


class StripAttention(nn.Module):
    """Multi-scale convolutional attention (section 3.1): the input times a weight for each position and channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.local = depthwise(channels, 5, 5)
        self.strips = nn.ModuleList(
            nn.Sequential(depthwise(channels, 1, k), depthwise(channels, k, 1)) for k in (7, 11, 21)
        )
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x)
        weights = local
        for strip in self.strips:
            weights = weights + strip(local)
        return self.mix(weights) * x


class Block(nn.Module):
    """Attention and a feed-forward network with a depthwise convolution, each scaled and added to its input."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = ratio * channels
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.attention = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.GELU(), StripAttention(channels), nn.Conv2d(channels, channels, 1)
        )
        self.feed_forward = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), depthwise(hidden, 3, 3), nn.GELU(), nn.Conv2d(hidden, channels, 1)
        )
        self.scales = nn.ParameterList(nn.Parameter(torch.full((channels, 1, 1), 1e-2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.scales[0] * (y + self.attention(y))
        return x + self.scales[1] * self.feed_forward(self.norms[1](x))


class Stage(nn.Module):
    """Blocks after the convolutions that halve the map (twice at the first stage), and a layer norm."""

    def __init__(self, in_chans: int, channels: int, depth: int, ratio: int) -> None:
        super().__init__()
        widths = (in_chans, channels // 2, channels) if in_chans == 3 else (in_chans, channels)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.GELU()]
        self.down = nn.Sequential(*layers[:-1])  # the activation stands between convolutions only
        self.blocks = nn.Sequential(*(Block(channels, ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.down(x))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Factorisation(nn.Module):
    """Non-negative matrix factorisation of the map, ``(channels, positions)``, by multiplicative updates.

    The paper draws the first bases at random for each image; here they are drawn once, which costs the same. Of the
    ranks, the paper says nothing: 16 for T and S and 64 for B and L give the multiply-accumulates that it prints.
    """

    def __init__(self, channels: int, rank: int, steps: int = 7) -> None:
        super().__init__()
        self.steps = steps
        self.register_buffer("bases", F.normalize(torch.rand(1, channels, rank), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h * w)
        bases = self.get_buffer("bases").expand(b, -1, -1)
        codes = (x.transpose(1, 2) @ bases).softmax(-1)  # (b, positions, rank)
        for _ in range(self.steps):
            codes = codes * (x.transpose(1, 2) @ bases) / (codes @ (bases.transpose(1, 2) @ bases) + 1e-6)
            bases = bases * (x @ codes) / (bases @ (codes.transpose(1, 2) @ codes) + 1e-6)
        codes = codes * (x.transpose(1, 2) @ bases) / (codes @ (bases.transpose(1, 2) @ bases) + 1e-6)
        return (bases @ codes.transpose(1, 2)).reshape(b, c, h, w)


class Decoder(nn.Module):
    """Join maps at the size of the first, factorise them, and classify each position."""

    def __init__(self, in_chans: int, channels: int, rank: int, num_classes: int) -> None:
        super().__init__()

        def normed(a: int) -> tuple[nn.Module, ...]:
            return nn.Conv2d(a, channels, 1, bias=False), nn.GroupNorm(32, channels)

        self.squeeze = nn.Sequential(*normed(in_chans), nn.ReLU())
        self.before = nn.Conv2d(channels, channels, 1)
        self.factorise = Factorisation(channels, rank)
        self.after = nn.Sequential(*normed(channels))
        self.align = nn.Sequential(*normed(channels), nn.ReLU())
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[-2:]
        x = self.squeeze(torch.cat([F.interpolate(m, size, mode="bilinear") for m in maps], 1))
        x = F.relu(x + self.after(self.factorise(F.relu(self.before(x)))))
        return self.classify(self.align(x))


class SegNeXt(nn.Module):
    """Encoder and decoder: images ``(B, 3, H, W)`` to logits of stride 8."""

    def __init__(
        self, widths: tuple[int, ...], depths: tuple[int, ...], decoder: int, rank: int, num_classes: int
    ) -> None:
        super().__init__()
        sizes = zip((3, *widths), widths, depths, (8, 8, 4, 4), strict=False)
        self.stages = nn.ModuleList(Stage(*size) for size in sizes)
        self.decoder = Decoder(sum(widths[1:]), decoder, rank, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.decoder(maps[1:])


_WIDE = (64, 128, 320, 512)


def segnext_t(num_classes: int = 19) -> nn.Module:
    """SegNeXt-T."""
    return SegNeXt((32, 64, 160, 256), (3, 3, 5, 2), 256, 16, num_classes)


def segnext_s(num_classes: int = 19) -> nn.Module:
    """SegNeXt-S."""
    return SegNeXt(_WIDE, (2, 2, 4, 2), 256, 16, num_classes)


def segnext_b(num_classes: int = 19) -> nn.Module:
    """SegNeXt-B."""
    return SegNeXt(_WIDE, (3, 3, 12, 3), 512, 64, num_classes)


def segnext_l(num_classes: int = 19) -> nn.Module:
    """SegNeXt-L."""
    return SegNeXt(_WIDE, (3, 5, 27, 3), 1024, 64, num_classes)
