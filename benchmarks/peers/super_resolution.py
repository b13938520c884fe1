"""Super-resolution networks of other authors, rebuilt from their papers without weights, to count and time them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """``x + body(x)``."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Norm(nn.Module):
    """Layer norm over the channels of feature maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv(a: int, b: int, size: int = 3, **options: int | bool) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(a, b, size, padding=size // 2, **options)  # pyright: ignore[reportArgumentType]


# ---- FSRCNN (arXiv 1608.00367)


def fsrcnn(scale: int = 2, d: int = 56, s: int = 12, m: int = 4) -> nn.Module:
    """For luma only; its mapping layers have ``s`` channels, and its last layer is a transposed convolution."""
    layers: list[nn.Module] = [conv(1, d, 5), nn.PReLU(d), nn.Conv2d(d, s, 1), nn.PReLU(s)]
    for _ in range(m):
        layers += [conv(s, s), nn.PReLU(s)]
    layers += [nn.Conv2d(s, d, 1), nn.PReLU(d), nn.ConvTranspose2d(d, 1, 9, scale, 4, output_padding=scale - 1)]
    return nn.Sequential(*layers)


def fsrcnn_of_rgb() -> nn.Module:
    return Luma(fsrcnn())


class Luma(nn.Module):
    """A network for luma, applied as its authors do: the two other components are interpolated.

    Interpolating the image and adding what the network changes in its luma gives the same in fewer operations, since
    luma counts alike in red, green and blue (ITU-R BT.601).
    """

    weights: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("weights", torch.tensor([0.299, 0.587, 0.114])[None, :, None, None])

    def forward(self, image: Tensor) -> Tensor:
        luma = self.network(F.conv2d(image, self.weights))
        enlarged = F.interpolate(image, scale_factor=2, mode="bicubic", align_corners=False)
        return enlarged + (luma - F.conv2d(enlarged, self.weights))


# ---- IMDN (arXiv 1909.11856)


class ContrastAttention(nn.Module):
    """Channel attention on standard deviation plus mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(channels, channels // 16, 1), nn.ReLU(), nn.Conv2d(channels // 16, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.gate(((x - mean) ** 2).mean((2, 3), keepdim=True).sqrt() + mean))


class InformationDistillation(nn.Module):
    """Three convolutions that each set a quarter of their channels aside for the output, and a fourth."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.keep = c // 4
        rest = c - self.keep
        self.convs = nn.ModuleList([conv(c, c), conv(rest, c), conv(rest, c), conv(rest, self.keep)])
        self.attention, self.fuse = ContrastAttention(c), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = [], x
        for layer in self.convs[:3]:
            aside, rest = F.leaky_relu(layer(rest), 0.05).tensor_split([self.keep], 1)
            kept.append(aside)
        return x + self.fuse(self.attention(torch.cat([*kept, self.convs[3](rest)], 1)))


class Collected(nn.Module):
    """Blocks whose outputs are all joined by a 1x1 convolution, then a tail, added to the output of the head."""

    def __init__(
        self, head: nn.Module, blocks: list[nn.Module], join: nn.Module, tail: nn.Module, up: nn.Module
    ) -> None:
        super().__init__()
        self.head, self.blocks, self.join, self.tail, self.up = head, nn.ModuleList(blocks), join, tail, up

    def forward(self, x: Tensor) -> Tensor:
        y = first = self.head(x)
        outputs = []
        for block in self.blocks:
            y = block(y)
            outputs.append(y)
        return self.up(self.tail(self.join(torch.cat(outputs, 1))) + first)


def shuffled(c: int, scale: int) -> nn.Module:
    """A 3x3 convolution and a pixel shuffle."""
    return nn.Sequential(conv(c, 3 * scale**2), nn.PixelShuffle(scale))


def imdn(scale: int = 2, c: int = 64) -> nn.Module:
    """Six blocks of information distillation."""
    blocks: list[nn.Module] = [InformationDistillation(c) for _ in range(6)]
    join = nn.Sequential(nn.Conv2d(6 * c, c, 1), nn.LeakyReLU(0.05))
    return Collected(conv(3, c), blocks, join, conv(c, c), shuffled(c, scale))


# ---- SPAN (arXiv 2311.12770), in its inference form


class ParameterFreeAttention(nn.Module):
    """Three convolutions; a symmetric function of their output multiplies the sum of output and input."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(c, c), nn.SiLU(), conv(c, c), nn.SiLU(), conv(c, c))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return (x + y) * (torch.sigmoid(y) - 0.5)


class Span(nn.Module):
    """Six blocks; the input, the first, the fifth and the last are joined."""

    def __init__(self, scale: int = 2, c: int = 48) -> None:
        super().__init__()
        self.head, self.blocks = conv(3, c), nn.ModuleList(ParameterFreeAttention(c) for _ in range(6))
        self.last, self.join, self.up = conv(c, c), nn.Conv2d(4 * c, c, 1), shuffled(c, scale)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.head(x)]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        return self.up(self.join(torch.cat([outputs[0], self.last(outputs[6]), outputs[1], outputs[5]], 1)))


# ---- BSRN (arXiv 2205.05996)


def blueprint(a: int, b: int, **options: int) -> nn.Module:
    """Blueprint separable convolution: 1x1, then depthwise 3x3."""
    return nn.Sequential(nn.Conv2d(a, b, 1, bias=False), conv(b, b, groups=b, **options))


class SpatialAttention(nn.Module):
    """Enhanced spatial attention at a fraction of the resolution."""

    def __init__(self, c: int, f: int = 16) -> None:
        super().__init__()
        self.reduce, self.skip, self.expand = nn.Conv2d(c, f, 1), nn.Conv2d(f, f, 1), nn.Conv2d(f, c, 1)
        self.down = blueprint(f, f, stride=2)
        self.body = nn.Sequential(blueprint(f, f), nn.GELU(), blueprint(f, f), nn.GELU(), blueprint(f, f))

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        low = self.body(F.max_pool2d(self.down(reduced), 7, 3))
        low = F.interpolate(low, reduced.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.expand(low + self.skip(reduced)))


class SeparableDistillation(nn.Module):
    """Distillation by 1x1 convolutions, in parallel to blueprint convolutions with a residual."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.distill = nn.ModuleList(nn.Conv2d(c, c // 2, 1) for _ in range(3))
        self.remain = nn.ModuleList(blueprint(c, c) for _ in range(3))
        self.last, self.fuse = blueprint(c, c // 2), nn.Conv2d(2 * c, c, 1)
        self.attention = nn.Sequential(SpatialAttention(c), ContrastAttention(c))

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = [], x
        for aside, remain in zip(self.distill, self.remain, strict=True):
            kept.append(F.gelu(aside(rest)))
            rest = F.gelu(remain(rest) + rest)
        return x + self.attention(self.fuse(torch.cat([*kept, F.gelu(self.last(rest))], 1)))


def bsrn(scale: int = 2, c: int = 64) -> nn.Module:
    """Eight blocks; the image is repeated four times along the channels."""
    head = nn.Sequential(Repeat(4), blueprint(12, c))
    join = nn.Sequential(nn.Conv2d(8 * c, c, 1), nn.GELU())
    blocks: list[nn.Module] = [SeparableDistillation(c) for _ in range(8)]
    return Collected(head, blocks, join, blueprint(c, c), shuffled(c, scale))


class Repeat(nn.Module):
    """Repeat the input ``times`` times along the channels."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, self.times, 1, 1)


# ---- VapSR (arXiv 2210.05960)


class PixelAttention(nn.Module):
    """Large-kernel attention: 1x1, depthwise 5x5, dilated depthwise 5x5; the result multiplies the input."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.Conv2d(c, c, 1), conv(c, c, 5, groups=c), nn.Conv2d(c, c, 5, padding=6, groups=c, dilation=3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


def vapsr(c: int = 48, wide: int = 64) -> nn.Module:
    """21 blocks, x4: the network that was released for that scale."""
    blocks = [
        nn.Sequential(
            Residual(nn.Conv2d(c, wide, 1), nn.GELU(), PixelAttention(wide), nn.Conv2d(wide, c, 1)),
            Norm(c),
        )
        for _ in range(21)
    ]
    up = (conv(c, 64), nn.PixelShuffle(2), nn.LeakyReLU(0.1), conv(16, 12), nn.PixelShuffle(2))
    return nn.Sequential(conv(3, c), Residual(*blocks, conv(c, c)), *up)


# ---- SwinIR (arXiv 2108.10257)


class WindowAttention(nn.Module):
    """Softmax attention in windows of 8x8, shifted by 4 in every second layer."""

    def __init__(self, c: int, heads: int, shift: int) -> None:
        super().__init__()
        self.heads, self.shift = heads, shift
        self.qkv, self.project = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.bias = nn.Parameter(torch.zeros(225, heads))
        rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        rows, columns = rows.flatten(), columns.flatten()
        index = (rows[:, None] - rows + 7) * 15 + columns[:, None] - columns + 7
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        windows = x.reshape(b, h // 8, 8, w // 8, 8, c).transpose(2, 3).reshape(-1, 64, c)
        q, k, v = self.qkv(windows).reshape(-1, 64, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.bias[self.index].permute(2, 0, 1)  # pyright: ignore[reportArgumentType, reportCallIssue]
        out = torch.softmax(q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5 + bias, -1) @ v
        out = self.project(out.transpose(1, 2).reshape(-1, 64, c)).reshape(b, h // 8, w // 8, 8, 8, c)
        return torch.roll(out.transpose(2, 3).reshape(b, h, w, c), (self.shift, self.shift), (1, 2))


class SwinLayer(nn.Module):
    """Window attention and a perceptron of twice the width, each after a norm."""

    def __init__(self, c: int, heads: int, shift: int) -> None:
        super().__init__()
        self.attention = Residual(nn.LayerNorm(c), WindowAttention(c, heads, shift))
        self.mlp = Residual(nn.LayerNorm(c), nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.attention(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Padded(nn.Module):
    """Pad the image by reflection to sides that 8 divides and crop the result, as both authors' programs do."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, image: Tensor) -> Tensor:
        h, w = image.shape[-2:]
        if h % 8 or w % 8:
            image = F.pad(image, (0, -w % 8, 0, -h % 8), mode="reflect")
        out = self.parts(image)
        scale = out.shape[-1] // image.shape[-1]
        return out[..., : h * scale, : w * scale]


def swinir(scale: int = 2, c: int = 180, groups: int = 6, light: bool = False) -> nn.Module:
    """``groups`` groups of six layers; the light form upsamples by one pixel shuffle."""
    body = [Residual(*(SwinLayer(c, 6, 4 * (i % 2)) for i in range(6)), conv(c, c)) for _ in range(groups)]
    deep = Residual(Norm(c), *body, Norm(c), conv(c, c))
    if light:
        return Padded(conv(3, c), deep, shuffled(c, scale))
    up = (conv(c, 64), nn.LeakyReLU(), conv(64, 64 * scale**2), nn.PixelShuffle(scale), conv(64, 3))
    return Padded(conv(3, c), deep, *up)


# ---- Restormer (arXiv 2111.09881)


class TransposedAttention(nn.Module):
    """Attention between channels."""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.heads, self.temperature = heads, nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Sequential(nn.Conv2d(c, 3 * c, 1, bias=False), conv(3 * c, 3 * c, groups=3 * c, bias=False))
        self.project = nn.Conv2d(c, c, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.project((weights.softmax(-1) @ v).reshape(b, c, h, w))


class GatedFeedForward(nn.Module):
    """1x1 and depthwise 3x3 convolution to two halves, of which one gates the other."""

    def __init__(self, c: int) -> None:
        super().__init__()
        wide = int(2.66 * c)
        self.expand = nn.Sequential(
            nn.Conv2d(c, 2 * wide, 1, bias=False), conv(2 * wide, 2 * wide, groups=2 * wide, bias=False)
        )
        self.project = nn.Conv2d(wide, c, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.expand(x).chunk(2, 1)
        return self.project(F.gelu(a) * b)


class Restormer(nn.Module):
    """Four levels down and up, and a refinement; for restoration at the image's own size."""

    def __init__(self, c: int = 48) -> None:
        super().__init__()

        def blocks(width: int, heads: int, count: int) -> nn.Sequential:
            pairs = (
                (
                    Residual(Norm(width), TransposedAttention(width, heads)),
                    Residual(Norm(width), GatedFeedForward(width)),
                )
                for _ in range(count)
            )
            return nn.Sequential(*(block for pair in pairs for block in pair))

        down = [nn.Sequential(conv(c << i, c << i >> 1, bias=False), nn.PixelUnshuffle(2)) for i in range(3)]
        up = [nn.Sequential(conv(c << i, c << i << 1, bias=False), nn.PixelShuffle(2)) for i in (3, 2, 1)]
        self.embed, self.out = conv(3, c, bias=False), conv(2 * c, 3, bias=False)
        self.encoders = nn.ModuleList(blocks(c << i, 1 << i, count) for i, count in enumerate((4, 6, 6)))
        self.latent = blocks(8 * c, 8, 8)
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.reduce = nn.ModuleList(
            [nn.Conv2d(8 * c, 4 * c, 1, bias=False), nn.Conv2d(4 * c, 2 * c, 1, bias=False), nn.Identity()]
        )
        self.decoders = nn.ModuleList([blocks(4 * c, 4, 6), blocks(2 * c, 2, 6), blocks(2 * c, 1, 4)])
        self.refine = blocks(2 * c, 1, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        skips = []
        for encoder, down in zip(self.encoders, self.down, strict=True):
            skips.append(encoder(x))
            x = down(skips[-1])
        x = self.latent(x)
        for up, reduce, decoder in zip(self.up, self.reduce, self.decoders, strict=True):
            x = decoder(reduce(torch.cat([up(x), skips.pop()], 1)))
        return self.out(self.refine(x)) + image


class Peer(NamedTuple):
    """A network and its published costs."""

    build: Callable[[], nn.Module]
    scale: int
    params: float  # published
    macs: float  # published, for the size below
    size: tuple[int, int]  # (H, W) of the low-resolution image
    in_chans: int = 3
    products: bool = True  # whether the published MACs include the products of attention
    note: str = ""


_HD2, _HD4 = (360, 640), (180, 320)  # low-resolution images of 1280x720
PEERS = {
    "FSRCNN": Peer(fsrcnn, 2, 12_464, 6.0e9, _HD2, 1, note="luma; printed: weights alone"),
    "BSRN": Peer(bsrn, 2, 332e3, 73.0e9, _HD2),
    "VapSR (x4)": Peer(vapsr, 4, 342e3, 19.5e9, _HD4),
    "SPAN-48": Peer(Span, 2, 481e3, 94.4e9, _HD2, note="printed: MACs of 48 channels, parameters of 52"),
    "SPAN-52": Peer(partial(Span, c=52), 2, 481e3, 94.4e9, _HD2, note="see SPAN-48"),
    "IMDN": Peer(imdn, 2, 694e3, 158.8e9, _HD2),
    "SwinIR-light": Peer(
        partial(swinir, c=60, groups=4, light=True), 2, 878e3, 195.6e9, _HD2, products=False,
        note="printed: parameters without one convolution of 32 k",
    ),
    "SwinIR": Peer(swinir, 2, 11.75e6, 2868e9, _HD2),
    "Restormer (x1)": Peer(lambda: Padded(Restormer()), 1, 26.13e6, 140.99e9, (256, 256), products=False),
}  # fmt: skip

# Names for `foveal bench benchmarks.peers.super_resolution:NAME`; x2, and Restormer at the image's own size.
span_48: Callable[[], nn.Module] = Span
span_52: Callable[[], nn.Module] = PEERS["SPAN-52"].build
swinir_light: Callable[[], nn.Module] = PEERS["SwinIR-light"].build
swinir_x2: Callable[[], nn.Module] = PEERS["SwinIR"].build
restormer: Callable[[], nn.Module] = PEERS["Restormer (x1)"].build
