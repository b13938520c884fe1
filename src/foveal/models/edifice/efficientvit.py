"""The network behind Edifice's ``EfficientViT`` (see :mod:`foveal.models.edifice.models`).

Notable:
  - it bears the name of MIT's EfficientViT and describes Microsoft's cascaded group attention; it is neither
  - non-overlapping patches, no position embedding, pre-norm blocks with layer norm
  - each head attends linearly within its own channel split, and hands its output on to the next
  - ``compat=True`` is what Edifice's code computes instead of what its page describes

Source: documentation and behaviour of Edifice 0.2.0 (MIT licence), run with Axon 0.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...layers.linear_attention import CascadedLinearAttention, elu_plus_one, linear_attention
from ...layers.resample import check_min_size, pad_to_multiple
from ..registry import Backbone, FeatureInfo
from ..renaming import Renaming, rename_keys


@dataclass(frozen=True)
class EfficientViTConfig:
    """Edifice's options with their defaults, then ours.

    Attributes:
        image_size: side of the image, in pixels. The network takes any H x W from 32 up, and from here where this is
            less.
        patch_size: side of a patch, in pixels.
        in_channels: channels of the image.
        embed_dim: channels of the first stage; each stage doubles them.
        depths: blocks of each stage, any number of stages.
        num_heads: attention heads of each stage; more entries than stages are not looked at.
        mlp_ratio: hidden channels of the feed-forward network over the stage's.
        num_classes: outputs; ``None`` (or 0): the pooled features.
        cascade: what a head hands to the next: its "output" (Edifice's page) or an addition to its "input"
            (Microsoft's).
        downsample: between stages: "spatial" merges 2x2 tokens (sides rounded up), "channels" widens each token.
        compat: compute what Edifice's code computes.

    Raises:
        ConfigError: a value out of range, heads that do not divide their channels, or what ``compat`` excludes.
    """

    image_size: int = 224
    patch_size: int = 16
    in_channels: int = 3
    embed_dim: int = 64
    depths: tuple[int, ...] = (1, 2, 3)
    num_heads: tuple[int, ...] = (4, 4, 4)
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    cascade: Literal["output", "input"] = "output"
    downsample: Literal["spatial", "channels"] = "spatial"
    compat: bool = False

    def __post_init__(self) -> None:
        checks = {
            "image_size": self.image_size >= 1,
            "patch_size": self.patch_size >= 1,
            "in_channels": self.in_channels >= 1,
            "embed_dim": self.embed_dim >= 1,
            "depths": len(self.depths) >= 1 and min(self.depths) >= 0,
            "mlp_ratio": self.mlp_ratio > 0,
            "num_classes": (self.num_classes or 0) >= 0,
        }
        for name, good in checks.items():
            if not good:
                raise ConfigError(f"EfficientViT: {name}={getattr(self, name)!r} is out of range")
        if len(self.num_heads) < len(self.depths):
            raise ConfigError(
                f"EfficientViT: num_heads={self.num_heads} for {len(self.depths)} stages: give one for each of depths"
            )
        for dim, heads in zip(self.dims, self.num_heads, strict=False):
            if heads < 1 or dim % heads:
                raise ConfigError(f"EfficientViT: num_heads={self.num_heads}: {heads} does not divide {dim} channels")
        if self.compat and self.cascade != "output":
            raise ConfigError("EfficientViT: compat=True has no cascade: leave out cascade")
        if self.compat and 0 in self.depths:
            raise ConfigError("EfficientViT: compat=True and a depth of 0, for which Edifice builds two blocks")
        if self.compat and self.image_size % self.patch_size:
            raise ConfigError(f"EfficientViT: compat=True: patch_size={self.patch_size} does not divide image_size")

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dim << i for i in range(len(self.depths)))


class FullLinearAttention(nn.Module):
    """Linear attention as Edifice's code has it, ``(B, N, C) -> (B, N, C)``: heads are slices of full projections."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.project = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        out = linear_attention(q, k, v, feature_map=elu_plus_one, eps=1e-8)
        return self.project(out.transpose(1, 2).flatten(2))


class TokenBlur(nn.Module):
    """Edifice's stand-in for a depthwise convolution: ``[1/4, 1/2, 1/4]`` along the flattened tokens, zero-padded.

    ``(B, C, H, W) -> (B, C, H, W)``; a row's last token mixes with the next row's first.
    """

    def forward(self, x: Tensor) -> Tensor:
        line = F.pad(x.flatten(2), (1, 1))
        return (0.25 * line[..., :-2] + 0.5 * line[..., 1:-1] + 0.25 * line[..., 2:]).reshape(x.shape)


class FeedForward(nn.Module):
    """Linear, GELU, 3x3 depthwise convolution on the token grid, GELU, linear: keeps ``(B, H, W, C)``."""

    def __init__(self, dim: int, mlp_ratio: float, compat: bool = False) -> None:
        super().__init__()
        hidden = round(dim * mlp_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.depthwise = TokenBlur() if compat else nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x)).permute(0, 3, 1, 2)
        return self.fc2(F.gelu(self.depthwise(x).permute(0, 2, 3, 1)))


class Block(nn.Module):
    """Pre-norm attention and feed-forward network, each added to its input: keeps ``(B, H, W, C)``."""

    def __init__(self, dim: int, num_heads: int, config: EfficientViTConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        if config.compat:
            self.attention = FullLinearAttention(dim, num_heads)
        else:
            self.attention = CascadedLinearAttention(dim, num_heads, cascade=config.cascade)
        self.ffn = FeedForward(dim, config.mlp_ratio, config.compat)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x).flatten(1, 2)).reshape(x.shape)
        return x + self.ffn(self.norm2(x))


class PatchEmbed(nn.Module):
    """Linear projection of patches: ``(B, C, H, W) -> (B, dim, ceil(H/P), ceil(W/P))``; short ones repeat the edge."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv = nn.Conv2d(in_chans, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad_to_multiple(x, self.patch_size))


class PatchMerging(nn.Module):
    """2x2 convolution of stride 2: ``(B, H, W, C) -> (B, ceil(H/2), ceil(W/2), out)``; odd sides repeat their last."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad_to_multiple(x.permute(0, 3, 1, 2), 2)).permute(0, 2, 3, 1)


class Stage(nn.Module):
    """Downsampling (none in the first stage), then blocks, on ``(B, H, W, C)``."""

    def __init__(self, index: int, config: EfficientViTConfig) -> None:
        super().__init__()
        dim = config.dims[index]
        spatial = config.downsample == "spatial" and not config.compat
        down = PatchMerging if spatial else nn.Linear
        self.downsample = down(config.dims[index - 1], dim) if index else nn.Identity()
        blocks = (Block(dim, config.num_heads[index], config) for _ in range(config.depths[index]))
        self.blocks = nn.Sequential(*blocks)
        self.stride = 2 if spatial and index else 1

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class EfficientViTBackbone(Backbone):
    """Backbone: ``(B, in_channels, H, W) ->`` one map per stage, finest first.

    Strides are ``patch_size`` and its doubles, or all ``patch_size`` without spatial downsampling. Sides are rounded
    up: where a patch does not divide the image, the last row and column are repeated.

    Raises:
        InputError: a side of the image is below 32 pixels (or below ``image_size``, if that is less).
    """

    def __init__(self, config: EfficientViTConfig) -> None:
        super().__init__()
        self.min_size = min(Backbone.min_size, config.image_size)
        self.stem = nn.Sequential(PatchEmbed(config.in_channels, config.embed_dim, config.patch_size))
        self.stages = nn.ModuleList()
        self.feature_info = []
        stride = config.patch_size
        for index, dim in enumerate(config.dims):
            stage = Stage(index, config)
            stride *= stage.stride
            self.stages.append(stage)
            self.feature_info.append(FeatureInfo(dim, stride))

    def forward(self, x: Tensor) -> list[Tensor]:
        check_min_size(x, self.min_size)
        x = self.stem(x).permute(0, 2, 3, 1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [x.permute(0, 3, 1, 2) for x in maps]


_NAMES: tuple[Renaming, ...] = (
    (r"^patch_embed_proj\.", "backbone.stem.0.conv."),
    (r"^downsample_(\d+)\.", r"backbone.stages.\1.downsample."),
    (r"^stage_(\d+)_block_(\d+)_", r"backbone.stages.\1.blocks.\2."),
    (r"\.cga_proj\.", ".attention.project."),
    (r"\.cga_", ".attention."),
    (r"\.ffn_", ".ffn."),
    (r"^final_norm\.", "head.norm."),
    (r"^classifier\.", "head.classifier."),
    (r"\.(kernel|gamma)$", ".weight"),
    (r"\.beta$", ".bias"),
)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Bring parameters of Edifice's model (``layer.parameter`` as Axon names and lays them out) into our layout.

    Our layout is returned unchanged, ``None`` for anything else. The patch kernel is (channels * patch^2, out) there:
    of the channels that fit a square patch, the fewest are meant (always right for 1, 2, 3, 5, 6 and 7).
    """
    if "backbone.stem.0.conv.weight" in state and any(".ffn.fc1." in key for key in state):
        return dict(state)
    if "patch_embed_proj.kernel" not in state:
        return None
    transposed = {key: value.T if key.endswith(".kernel") else value for key, value in state.items()}
    converted = rename_keys(transposed, _NAMES)
    kernel = converted["backbone.stem.0.conv.weight"]
    inputs = kernel.shape[1]
    chans = next(n for n in range(1, inputs + 1) if inputs % n == 0 and isqrt(inputs // n) ** 2 == inputs // n)
    side = isqrt(inputs // chans)
    converted["backbone.stem.0.conv.weight"] = kernel.reshape(-1, chans, side, side)
    return converted


def implied(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options other than the defaults that the shapes of a file tell.

    None for ``compat``, where they do not tell the number of heads: such a model is built by its options.
    """
    state = convert(state) or {}
    if not any(".attention.qkv." in key for key in state):
        return {}
    embed_dim, _, patch_size, _ = state["backbone.stem.0.conv.weight"].shape
    stages = range(children(state, "backbone.stages."))
    hidden, dim = [value for key, value in state.items() if key.endswith(".ffn.fc1.weight")][-1].shape
    options = {
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depths": tuple(children(state, f"backbone.stages.{i}.blocks.") for i in stages),
        "num_heads": tuple(children(state, f"backbone.stages.{i}.blocks.0.attention.qkv.") for i in stages),
        "mlp_ratio": hidden / dim,
        "downsample": "channels" if "backbone.stages.1.downsample.weight" in state else "spatial",
    }
    return {key: value for key, value in options.items() if value != getattr(EfficientViTConfig, key)}


def children(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules a list has in a state dict, ``prefix`` being its name with the dot."""
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})
