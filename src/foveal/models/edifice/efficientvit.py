"""The network behind Edifice's ``EfficientViT`` (see :mod:`foveal.models.edifice.models`).

Notable:
  - it has the name of MIT's EfficientViT, and its documentation describes Microsoft's cascaded group attention, but it
    is neither of the two
  - non-overlapping patches, no position embedding, pre-norm blocks with layer norm
  - each head applies linear attention to its own split of the channels and passes its output to the next head
  - ``compat=True`` computes what Edifice's code computes instead of what its documentation describes

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
from ...layers.linear_attention import CascadedLinearAttention, linear_attention
from ...layers.resample import pad_to_multiple
from ...layers.windows import to_map
from ..registry import Backbone, FeatureInfo
from ..renaming import Renaming, rename_keys


@dataclass(frozen=True)
class EfficientViTConfig:
    """Edifice's options with their defaults, then ours.

    Attributes:
        image_size: side of the image, in pixels. The network takes any H x W from ``min(32, image_size)`` up.
        patch_size: side of a patch, in pixels.
        in_channels: channels of the image.
        embed_dim: channels of the first stage; each further stage has twice as many.
        depths: blocks of each stage, for any number of stages.
        num_heads: attention heads of each stage; entries beyond the number of stages are ignored.
        mlp_ratio: hidden channels of the feed-forward network over those of the stage.
        num_classes: number of classes; ``None`` (or 0) returns the pooled features.
        cascade: whether a head's output is added to the "output" of the next head (Edifice's documentation) or to its
            "input" (Microsoft's EfficientViT).
        downsample: between stages, "spatial" merges 2x2 tokens (sides rounded up), "channels" only widens each token.
        compat: compute what Edifice's code computes.

    Raises:
        ConfigError: a value out of range, heads that do not divide the channels, or a combination with ``compat`` that
            Edifice does not have.
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
        check_ranges(
            "EfficientViT",
            self,
            {
                "image_size": (self.image_size >= 1, "1 or more"),
                "patch_size": (self.patch_size >= 1, "1 or more"),
                "in_channels": (self.in_channels >= 1, "1 or more"),
                "embed_dim": (self.embed_dim >= 1, "1 or more"),
                "depths": (len(self.depths) >= 1 and min(self.depths) >= 0, "one or more numbers of 0 or more"),
                "mlp_ratio": (self.mlp_ratio > 0, "more than 0"),
                "num_classes": ((self.num_classes or 0) >= 0, "0 or more, or None"),
            },
        )
        if len(self.num_heads) < len(self.depths):
            raise ConfigError(
                f"EfficientViT: num_heads={self.num_heads} for {len(self.depths)} stages: give one number per stage"
            )
        for dim, heads in zip(self.dims, self.num_heads, strict=False):
            if heads < 1 or dim % heads:
                problem = f"{heads} does not divide {dim} channels"
                raise ConfigError(f"EfficientViT: num_heads={self.num_heads}: {problem}; give a divisor")
        if self.compat:
            self._check_compat()

    def _check_compat(self) -> None:
        if self.cascade != "output":
            raise ConfigError(f"EfficientViT: compat=True has no cascade: leave out cascade={self.cascade!r}")
        if 0 in self.depths:
            problem = "Edifice builds two blocks for a depth of 0"
            raise ConfigError(f"EfficientViT: compat=True, depths={self.depths}: {problem}; give 1 or more")
        if self.image_size % self.patch_size:
            problem = f"patch_size={self.patch_size} does not divide image_size={self.image_size}"
            raise ConfigError(f"EfficientViT: compat=True: {problem}; give a divisor")

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dim << i for i in range(len(self.depths)))


def check_ranges(model: str, config: Any, checks: Mapping[str, tuple[bool, str]]) -> None:
    """Raise ConfigError for the first option that is out of range.

    Args:
        model: name of the model, for the message.
        config: object with the options as attributes.
        checks: by name of the option, whether its value is valid, and its valid range in words.
    """
    for name, (valid, allowed) in checks.items():
        if not valid:
            raise ConfigError(f"{model}: {name}={getattr(config, name)!r} is out of range: give {allowed}")


class FullLinearAttention(nn.Module):
    """Linear attention of Edifice's code: heads are slices of projections of all channels; keeps ``(B, N, C)``."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.project = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        out = linear_attention(q, k, v, feature_map="elu1", eps=1e-8)
        return self.project(out.transpose(1, 2).flatten(2))


class TokenBlur(nn.Module):
    """Blur with ``[1/4, 1/2, 1/4]`` along the flattened tokens, which Edifice has instead of a depthwise convolution.

    ``(B, C, H, W) -> (B, C, H, W)``, zero-padded. The last token of a row mixes with the first token of the next row.
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
        height, width = x.shape[1:3]
        # The linear layers take three dimensions: LiteRT fails on four of a map of 1x1.
        x = to_map(F.gelu(self.fc1(x.flatten(1, 2))), height, width)
        x = F.gelu(self.depthwise(x)).flatten(2).transpose(1, 2)
        return self.fc2(x).unflatten(1, (height, width))


class Block(nn.Module):
    """Pre-norm attention and feed-forward network, each with a residual connection: keeps ``(B, H, W, C)``."""

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
    """Linear projection of patches, replicate-padded: ``(B, C, H, W) -> (B, dim, ceil(H/P), ceil(W/P))``."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv = nn.Conv2d(in_chans, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad_to_multiple(x, self.patch_size))


class PatchMerging(nn.Module):
    """2x2 convolution of stride 2, replicate-padded: ``(B, H, W, C) -> (B, ceil(H/2), ceil(W/2), out)``."""

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

    The first stride is ``patch_size`` and doubles with each stage; without spatial downsampling all strides are
    ``patch_size``. Sides are rounded up: an image whose sides are no multiples of the stride is replicate-padded.

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

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        return [x.permute(0, 3, 1, 2) for x in super().forward_stages(x.permute(0, 2, 3, 1))]


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
    """Convert parameters of Edifice's model (keys ``layer.parameter``, shapes as in Axon) to our layout.

    Our layout is returned unchanged, and ``None`` for any other. Edifice's patch kernel has the shape
    (channels * patch^2, out), which does not show the number of channels: the smallest number that leaves a square
    patch is taken (always correct for 1, 2, 3, 5, 6 and 7 channels).
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
    """Return the options of a state dict that differ from the defaults, as far as its shapes show them.

    For ``compat`` there are none, because shapes do not show the number of heads; give its options to build it.
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
    """Count the modules of a module list in a state dict; ``prefix`` is the name of the list with the dot."""
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})
