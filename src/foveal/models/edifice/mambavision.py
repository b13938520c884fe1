"""The network behind Edifice's ``MambaVision`` (see :mod:`foveal.models.edifice.models`).

Notable:
  - the stages of NVIDIA's MambaVision (arXiv 2407.08083): two convolutional, two of Mamba mixers and windowed attention
  - NVIDIA's weights do not fit: all layers have biases, step sizes have a lower rank, and their bias is added once
  - ``compat=True`` computes what Edifice's code computes instead of what its documentation describes

Source: documentation and behaviour of Edifice 0.2.0 (MIT licence), run with Axon 0.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...layers.attention import Attention
from ...layers.conv import ConvNormAct, ResidualConv, widened
from ...layers.drop_path import DropPath, drop_path_rates
from ...layers.mlp import Mlp
from ...layers.scan import selective_scan
from ...layers.windows import Windows
from ..registry import Backbone, FeatureInfo
from ..renaming import Renaming, rename_keys
from .efficientvit import check_ranges, children


@dataclass(frozen=True)
class MambaVisionConfig:
    """Edifice's options with their defaults, then ours.

    Attributes:
        image_size: side of the image, in pixels. The network takes any H x W from ``min(32, image_size)`` up; a
            classifier with ``compat`` takes only this size.
        in_channels: channels of the image.
        dim: channels of the first stage; each further stage has twice as many.
        depths: blocks of each of the four stages. In the last two stages the first half of the blocks (rounded up) are
            mixers, the others attention.
        num_heads: attention heads of each stage; only the last two stages have attention.
        mlp_ratio: hidden channels of the feed-forward networks over those of the stage.
        dropout: stochastic depth: rate of the last block; rates rise linearly from 0 at the first block. It has no
            effect in Edifice and with ``compat``.
        d_state: states per channel of the scan.
        d_conv: kernel size of the mixers' convolutions.
        num_classes: number of classes; ``None`` (or 0) returns the pooled features.
        window_size: sides of the windows in the last two stages, in tokens.
        compat: compute what Edifice's code computes.

    Raises:
        ConfigError: a value out of range, heads that do not divide the channels, or a combination with ``compat`` that
            Edifice does not have.
    """

    image_size: int = 224
    in_channels: int = 3
    dim: int = 80
    depths: tuple[int, int, int, int] = (1, 3, 8, 4)
    num_heads: tuple[int, int, int, int] = (2, 4, 8, 16)
    mlp_ratio: float = 4
    dropout: float = 0.0
    d_state: int = 8
    d_conv: int = 3
    num_classes: int | None = None
    window_size: tuple[int, int] = (14, 7)
    compat: bool = False

    def __post_init__(self) -> None:
        check_ranges(
            "MambaVision",
            self,
            {
                "image_size": (self.image_size >= 1, "1 or more"),
                "in_channels": (self.in_channels >= 1, "1 or more"),
                "dim": (self.dim >= 1, "1 or more"),
                "depths": (min(self.depths) >= 0, "numbers of 0 or more"),
                "num_heads": (min(self.num_heads) >= 1, "numbers of 1 or more"),
                "mlp_ratio": (self.mlp_ratio > 0, "more than 0"),
                "dropout": (0 <= self.dropout < 1, "0 or more, and less than 1"),
                "d_state": (self.d_state >= 1, "1 or more"),
                "d_conv": (self.d_conv >= 1, "1 or more"),
                "num_classes": ((self.num_classes or 0) >= 0, "0 or more, or None"),
                "window_size": (min(self.window_size) >= 1, "numbers of 1 or more"),
            },
        )
        for dim, heads in zip(self.dims[2:], self.num_heads[2:], strict=True):
            if dim % heads if not self.compat else dim < heads:
                problem = f"{heads} does not divide {dim} channels"
                raise ConfigError(f"MambaVision: num_heads={self.num_heads}: {problem}; give a divisor")
        if self.compat and 0 in self.depths:
            problem = "Edifice builds two blocks for a depth of 0"
            raise ConfigError(f"MambaVision: compat=True, depths={self.depths}: {problem}; give 1 or more")

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.dim << i for i in range(4))


class MambaMixer(nn.Module):
    """Convolution over all channels, then a selective scan over half of them; keeps ``(B, N, C)``.

    Args:
        dim: channels, even.
        d_state: states per channel.
        d_conv: kernel size of the depthwise convolutions, which are centred, not causal.
        compat: Edifice's scan: a fixed ``A = -log(1..d_state)`` (whose first state never decays), no skip ``D``.
    """

    decay: Tensor

    def __init__(self, dim: int, d_state: int, d_conv: int, compat: bool = False) -> None:
        super().__init__()
        half = dim // 2
        self.sizes = (max(half // 16, 1), d_state, d_state)
        self.in_proj = nn.Linear(dim, dim)
        self.ssm_conv = nn.Conv1d(half, half, d_conv, padding=d_conv // 2, groups=half)
        self.sym_conv = nn.Conv1d(half, half, d_conv, padding=d_conv // 2, groups=half)
        self.x_proj = nn.Linear(half, sum(self.sizes))
        self.dt_proj = nn.Linear(self.sizes[0], half)
        self.out_proj = nn.Linear(dim, dim)
        states = torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(half, 1)
        if compat:
            self.register_buffer("decay", -states, persistent=False)
        self.A_log = None if compat else nn.Parameter(states)
        self.D = None if compat else nn.Parameter(torch.ones(half))

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        u, z = F.silu(_centred(self.ssm_conv, u)), F.silu(_centred(self.sym_conv, z))
        low_rank, b, c = self.x_proj(u.transpose(1, 2)).split(self.sizes, dim=-1)
        delta = self.dt_proj(low_rank).transpose(1, 2)
        a = self.decay if self.A_log is None else -widened(self.A_log).exp()
        y = selective_scan(u, delta, a, b.transpose(1, 2), c.transpose(1, 2), self.D, delta_softplus=True)
        return self.out_proj(torch.cat([cast(Tensor, y), z], dim=1).transpose(1, 2))


def _centred(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Convolve ``(B, C, N)`` to the same length; an even kernel reads one token more after its centre than before.

    This is torch's ``padding="same"``, which LiteRT does not convert.
    """
    out = conv(x)
    return out if conv.kernel_size[0] % 2 else out[..., 1:]


class OneHeadAttention(nn.Module):
    """Edifice's attention, ``(B, N, C) -> (B, N, C)``: a single head with the scale of one of ``num_heads`` heads."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale).squeeze(1))


class TokenBlock(nn.Module):
    """Pre-norm mixer and feed-forward network, each with a residual connection: keeps ``(B, N, C)``."""

    def __init__(self, mixer: nn.Module, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer = mixer
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ConvStage(nn.Module):
    """Downsampling (not in the first stage), then convolutional blocks: ``(B, C, H, W) -> (B, C', h, w)``."""

    def __init__(self, index: int, config: MambaVisionConfig, rates: list[float]) -> None:
        super().__init__()
        dim = config.dims[index]
        self.downsample = _downsample(config, index) if index else nn.Identity()
        self.blocks = nn.Sequential(*(ResidualConv(dim, dim, act=nn.GELU, bias=True, drop_path=rate) for rate in rates))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class TokenStage(nn.Module):
    """Downsampling, then mixers and attention within windows: ``(B, C, H, W) -> (B, 2C, ceil(H/2), ceil(W/2))``.

    Windows at the right and bottom are padded with zeros. With ``compat`` the whole map is one window.
    """

    def __init__(self, index: int, config: MambaVisionConfig, rates: list[float]) -> None:
        super().__init__()
        dim, heads, compat = config.dims[index], config.num_heads[index], config.compat
        self.window_size = None if compat else config.window_size[index - 2]
        self.downsample = _downsample(config, index)
        mixers = (len(rates) + 1) // 2
        attention = OneHeadAttention if compat else Attention
        self.blocks = nn.Sequential()
        for i, rate in enumerate(rates):
            mixer = MambaMixer(dim, config.d_state, config.d_conv, compat) if i < mixers else attention(dim, heads)
            self.blocks.append(TokenBlock(mixer, dim, config.mlp_ratio, rate))

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.window_size is None:
            return self.blocks(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        height, width = x.shape[-2:]
        windows = Windows(self.window_size, height, width, neutral=False, device=x.device)
        return windows.join(self.blocks(windows.cut(x)))


def _downsample(config: MambaVisionConfig, index: int) -> nn.Conv2d:
    return nn.Conv2d(config.dims[index - 1], config.dims[index], 3, 2, 1)


class MambaVisionBackbone(Backbone):
    """Backbone: ``(B, in_channels, H, W) ->`` maps at strides 4, 8, 16, 32, finest first, sides rounded up.

    Raises:
        InputError: a side of the image is below 32 pixels (or below ``image_size``, if that is less).
    """

    undecayed = ("A_log", "D")

    def __init__(self, config: MambaVisionConfig) -> None:
        super().__init__()
        self.min_size = min(Backbone.min_size, config.image_size)
        width = min(config.dim, 64)
        self.stem = nn.Sequential(
            ConvNormAct(config.in_channels, width, 3, 2, bias=True, act=nn.ReLU),
            ConvNormAct(width, config.dim, 3, 2, bias=True, act=nn.ReLU),
        )
        stages = (ConvStage, ConvStage, TokenStage, TokenStage)
        rates = drop_path_rates(0.0 if config.compat else config.dropout, config.depths)
        self.stages = nn.ModuleList(stage(i, config, rates[i]) for i, stage in enumerate(stages))
        self.feature_info = [FeatureInfo(dim, 4 << i) for i, dim in enumerate(config.dims)]


_NAMES: tuple[Renaming, ...] = (
    (r"^stem_conv(\d)\.", lambda m: f"backbone.stem.{int(m[1]) - 1}.conv."),
    (r"^stem_bn(\d)\.", lambda m: f"backbone.stem.{int(m[1]) - 1}.norm."),
    (r"^downsample_(\d)\.", lambda m: f"backbone.stages.{int(m[1]) + 1}.downsample."),
    (r"^stage_(\d)_block_(\d+)_conv(\d)\.", r"backbone.stages.\1.blocks.\2.conv\3.conv."),
    (r"^stage_(\d)_block_(\d+)_bn(\d)\.", r"backbone.stages.\1.blocks.\2.conv\3.norm."),
    (r"^stage_(\d)_(?:mamba|attn)_(\d+)_", r"backbone.stages.\1.blocks.\2."),
    (r"\.mixer_(?=in_|out_)", ".mixer."),
    (r"\.mixer_ssm_(?=x_|dt_)", ".mixer."),
    (r"\.mixer_(ssm|sym)_conv\.", r".mixer.\1_conv."),
    (r"\.attn_proj\.", ".mixer.proj."),
    (r"\.attn_qkv\.", ".mixer.qkv."),
    (r"\.mlp_up\.", ".mlp.fc1."),
    (r"\.mlp_down\.", ".mlp.fc2."),
    (r"^final_norm\.", "head.norm."),
    (r"^classifier\.", "head.classifier."),
    (r"\.(kernel|gamma)$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"\.(mean|var)$", r".running_\1"),
)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Convert parameters of Edifice's model (keys ``layer.parameter``, shapes as in Axon) to our layout.

    Our layout is returned unchanged, and ``None`` for any other.
    """
    if any(key.startswith("backbone.stages.2.") and ".mixer.ssm_conv." in key for key in state):
        return dict(state)
    if "stem_conv1.kernel" not in state:
        return None
    transposed = {
        # Axon's kernels are (in, out) for dense layers and (k, in, out) for 1-D convolutions.
        key: value.permute(*reversed(range(value.dim()))) if key.endswith(".kernel") and value.dim() < 4 else value
        for key, value in state.items()
    }
    return rename_keys(transposed, _NAMES)


def implied(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of a state dict that differ from the defaults, as far as its shapes show them.

    For ``compat`` there are none, because shapes do not show the number of heads; give its options to build it.
    """
    state = convert(state) or {}
    mixers = [key.removesuffix("A_log") for key in state if key.endswith(".mixer.A_log")]
    if not mixers:
        return {}
    hidden, dim = state[mixers[0].replace("mixer.", "mlp.fc1.weight")].shape
    options = {
        "dim": state["backbone.stem.1.conv.weight"].shape[0],
        "depths": tuple(children(state, f"backbone.stages.{i}.blocks.") for i in range(4)),
        "mlp_ratio": hidden / dim,
        "d_state": state[f"{mixers[0]}A_log"].shape[1],
        "d_conv": state[f"{mixers[0]}ssm_conv.weight"].shape[2],
    }
    return {key: value for key, value in options.items() if value != getattr(MambaVisionConfig, key)}
