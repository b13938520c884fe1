"""MambaVision of NVIDIA (arXiv 2407.08083): convolutions, then state spaces, then softmax attention inside windows.

Notable:
  - two convolutional stages, then two stages whose first half of blocks are Mamba mixers and whose second half are
    attention
  - the scan runs only forward, row by row, inside one window; its gate is concatenated instead of multiplied
  - windows are zero-padded and not shifted; as published, padding is scanned and attended to like the map
  - no position embedding, so the weights work for any H x W and any window size

Widths, depths and epsilons follow the authors' released weights. So do two details that look like mistakes, because the
weights were trained with them: the bias of the step size is added twice, and the depthwise convolutions have no bias.
The weights are for non-commercial use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError
from ..layers.attention import Attention
from ..layers.conv import ConvNormAct, LayerNorm2d, ResidualConv
from ..layers.drop_path import drop_path_rates
from ..layers.mamba_mixer import MambaMixer as MambaMixer
from ..layers.stage_blocks import BlockStage
from ..layers.window_blocks import WHOLE, WindowBlocks, init_linear
from ..layers.window_blocks import MixerBlock as Block
from .registry import Backbone, Family, FeatureInfo, Published, Variant, register
from .renaming import Renaming, rename_key, rename_keys
from .sizes import replace_sizes


@dataclass(frozen=True)
class Config:
    """Sizes of one variant.

    Attributes:
        embed_dim: channels of the first stage; each further stage has twice as many.
        depths: blocks of each stage.
        num_heads: attention heads in stages 3 and 4.
        stem_dim: channels of the first convolution.
        drop_path_rate: stochastic depth in training: rate of the last block; rates rise linearly from 0.
        layer_scale: initial value of the factors on the residual branches of stages 3 and 4, ``None`` for no factors.
        window_size: tokens on a side of the windows in stages 3 and 4.
    """

    embed_dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int]
    stem_dim: int = 64
    drop_path_rate: float = 0.3
    layer_scale: float | None = 1e-5
    window_size: tuple[int, int] = (14, 7)


CONFIGS = {
    "mambavision_t": Config(80, (1, 3, 8, 4), (8, 16), 32, 0.2, None),
    "mambavision_t2": Config(80, (1, 3, 11, 4), (8, 16), 32, 0.2, None),
    "mambavision_s": Config(96, (3, 3, 7, 5), (8, 16), 64, 0.2, None),
    "mambavision_b": Config(128, (3, 3, 10, 5), (8, 16)),
    "mambavision_l": Config(196, (3, 3, 10, 5), (16, 32)),
    "mambavision_l2": Config(196, (3, 3, 12, 5), (16, 32)),
    "mambavision_l3": Config(256, (3, 3, 20, 10), (16, 32), drop_path_rate=0.5, window_size=(16, 8)),
}


def _conv_stage(in_chans: int | None, channels: int, drop_path: Sequence[float]) -> BlockStage:
    """Downsample by 2 (not if ``in_chans`` is ``None``), then residual convolutions: ``-> (B, channels, H', W')``."""
    block = partial(ResidualConv, channels, channels, act=partial(nn.GELU, approximate="tanh"), bias=True)
    return BlockStage(_downsample(in_chans, channels), [block(drop_path=rate) for rate in drop_path])


class WindowStage(WindowBlocks):
    """Downsample by 2, then blocks in windows: ``-> (B, channels, ceil(H/2), ceil(W/2))``.

    The first half of the blocks (rounded up) are Mamba mixers, the others are attention.

    Args:
        in_chans: channels of the input.
        channels: channels of the output.
        drop_path: rate of each block.
        num_heads: attention heads.
        layer_scale: initial value of the factors on the residual branches, ``None`` for no factors.
        window_size: tokens on a side of a window, ``"whole"`` for one window that is the whole map.
        neutral_padding: whether the padding of a window has no effect on the tokens of the map.
    """

    def __init__(
        self,
        in_chans: int,
        channels: int,
        drop_path: Sequence[float],
        *,
        num_heads: int,
        layer_scale: float | None,
        window_size: int | str,
        neutral_padding: bool,
    ) -> None:
        downsample = _downsample(in_chans, channels)  # the first to be initialised
        scans = (len(drop_path) + 1) // 2
        mixers = [MambaMixer(channels) if i < scans else Attention(channels, num_heads) for i in range(len(drop_path))]
        blocks = (
            Block(channels, mixer, layer_scale=layer_scale, drop_path=rate)
            for mixer, rate in zip(mixers, drop_path, strict=True)
        )
        super().__init__(blocks, window_size, neutral_padding=neutral_padding, downsample=downsample)


def _downsample(in_chans: int | None, channels: int) -> nn.Module:
    return nn.Identity() if in_chans is None else nn.Conv2d(in_chans, channels, 3, 2, 1, bias=False)


class MambaVision(Backbone):
    """Backbone: ``(B, in_chans, H, W) ->`` maps at strides 4, 8, 16, 32, finest first, sides rounded up.

    Args:
        config: sizes, an entry of :data:`CONFIGS`.
        in_chans: channels of the image.
        window_size: tokens on a side of the windows in stages 3 and 4: one number for both, a pair, or four as
            published, of which the first two are ignored. ``"whole"`` in place of a number makes the whole map one
            window. Default: that of ``config``. The same weights fit all window sizes.
        neutral_padding: ``True``: padding has no effect, as if a window at the edge of the map contained only its part
            of the map. Default: the padding zeros take part in the scan and in the attention, as published.
        embed_dim, depths, num_heads, stem_dim: sizes that replace those of ``config``, see :class:`Config`.
        out_norm: whether each map that is returned passes through a layer norm over its channels, as in the published
            detectors and segmenters. The next stage takes the map without this norm.
        drop_path_rate: see :class:`Config`; default: that of ``config``.

    Raises:
        ConfigError: a window size, rate, size, depth or number of heads that is not possible.
        InputError: a side of the image is below 32 pixels.
    """

    undecayed = MambaMixer.undecayed
    optional = ("out_norms",)
    option_blocks = MappingProxyType(dict.fromkeys(("window_size", "neutral_padding", "num_heads"), WindowBlocks))

    def __init__(
        self,
        config: Config,
        in_chans: int = 3,
        *,
        window_size: int | str | Sequence[int | str] | None = None,
        neutral_padding: bool = False,
        embed_dim: int | None = None,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        stem_dim: int | None = None,
        out_norm: bool = False,
        drop_path_rate: float | None = None,
    ) -> None:
        super().__init__()
        config = replace_sizes(config, embed_dim=embed_dim, depths=depths, num_heads=num_heads, stem_dim=stem_dim)
        self.config = config
        windows = _check_windows(config.window_size if window_size is None else window_size)
        rate = config.drop_path_rate if drop_path_rate is None else drop_path_rate
        if not 0 <= rate < 1:
            raise ConfigError(f"drop_path_rate={rate} is out of range: give 0 or more, and less than 1")
        rates = drop_path_rates(rate, config.depths)
        widths = [config.embed_dim << i for i in range(4)]
        stem = partial(ConvNormAct, stride=2, norm_eps=1e-4, act=nn.ReLU)
        self.stem = nn.Sequential(stem(in_chans, config.stem_dim), stem(config.stem_dim, widths[0]))
        self.stages = nn.ModuleList(
            [_conv_stage(None, widths[0], rates[0]), _conv_stage(widths[0], widths[1], rates[1])]
        )
        for i in (2, 3):
            self.stages.append(
                WindowStage(
                    widths[i - 1],
                    widths[i],
                    rates[i],
                    num_heads=config.num_heads[i - 2],
                    layer_scale=config.layer_scale,
                    window_size=windows[i - 2],
                    neutral_padding=neutral_padding,
                )
            )
        self.out_norms = nn.ModuleList(LayerNorm2d(width, eps=1e-5) if out_norm else nn.Identity() for width in widths)
        self.feature_info = [FeatureInfo(width, 4 << i) for i, width in enumerate(widths)]
        self.apply(init_linear)

    def block_options(self, index: int, kind: str) -> dict[str, Any]:
        stage = self.stages[index]
        if not isinstance(stage, WindowStage) or kind not in ("window_attention", "scan"):
            return {}
        return {
            "num_heads": self.config.num_heads[index - 2],
            "layer_scale": self.config.layer_scale,
            "window": stage.window_size,
            "neutral_padding": stage.neutral_padding,
        }

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage, out_norm in zip(self.stages, self.out_norms, strict=True):
            x = stage(x)
            maps.append(out_norm(x))
        return maps


_MAX_WINDOW = 256  # side; that of published models is at most 32. Attention takes the fourth power of it


def _check_windows(window_size: int | str | Sequence[int | str]) -> list[int | str]:
    """Return the window sizes of stages 3 and 4, or raise ConfigError."""
    if isinstance(window_size, str) or not isinstance(window_size, Sequence):
        window_size = (window_size, window_size)
    sizes: list[int | str] = list(window_size)
    if len(sizes) not in (2, 4) or not all(
        size == WHOLE or (type(size) is int and 0 < size <= _MAX_WINDOW) for size in sizes
    ):
        raise ConfigError(f"window_size={window_size!r}: give 1 to {_MAX_WINDOW} or {WHOLE!r}, or a pair of them")
    return sizes[-2:]


class ClassifierHead(nn.Module):
    """Batch norm, average pooling, classifier: ``(B, C, h, w) -> (B, num_classes)``.

    With ``num_classes=0`` or ``pre_logits=True`` it returns the input of the classifier, ``(B, C)``.
    """

    def __init__(self, in_chans: int, num_classes: int = 1000) -> None:
        super().__init__()
        self.num_features = in_chans
        self.norm = nn.BatchNorm2d(in_chans)
        self.classifier = nn.Linear(in_chans, num_classes) if num_classes else nn.Identity()
        self.apply(init_linear)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.norm(x).mean((2, 3))
        return x if pre_logits else self.classifier(x)


_NAMES: tuple[Renaming, ...] = (
    (r"^head\.", "head.classifier."),
    (r"^norm\.", "head.norm."),
    (r"^patch_embed\.conv_down\.([03])\.", lambda m: f"backbone.stem.{int(m[1]) // 3}.conv."),
    (r"^patch_embed\.conv_down\.([14])\.", lambda m: f"backbone.stem.{int(m[1]) // 3}.norm."),
    (r"^levels\.(\d)\.downsample\.reduction\.0\.", lambda m: f"backbone.stages.{int(m[1]) + 1}.downsample."),
    (r"^levels\.([01])\.blocks\.(\d+)\.(conv|norm)([12])\.", r"backbone.stages.\1.blocks.\2.conv\4.\3."),
    (r"^levels\.(\d)\.blocks\.", r"backbone.stages.\1.blocks."),
    (r"^outnorm(\d)\.", r"backbone.out_norms.\1."),
)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Convert a state dict of this family (official or ours) to our layout; return ``None`` for any other.

    In a published detector or segmenter, only the keys of the backbone are renamed.
    """
    if any(re.match(r"backbone\.stages\.\d\.blocks\.\d+\.mixer\.A_log$", key) for key in state):
        return dict(state)
    if "backbone.patch_embed.conv_down.0.weight" in state:
        prefix = "backbone."
        return {
            rename_key(key.removeprefix(prefix), _NAMES) if key.startswith(prefix) else key: value
            for key, value in state.items()
        }
    if "patch_embed.conv_down.0.weight" in state:
        return rename_keys(state, _NAMES)
    return None


def implied(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the option of a state dict: backbones of published detectors and segmenters have norms on their maps."""
    return {"out_norm": True} if any("outnorm0." in key or ".out_norms.0." in key for key in state) else {}


def _published(name: str, tag: str, top1: float, size: int = 224, **options: Any) -> Published:
    repo = f"nvidia/MambaVision-{name}"
    return Published(tag, "top-1", top1, str(size), "official README", repo=repo, **options)


_AT_512 = {"size": 512, "options": {"window_size": (32, 16)}, "crop_ratio": 0.93, "squash": True}
#: Weights with 21k in their tag were pre-trained on ImageNet-21k.
_PUBLISHED = {
    "mambavision_t": (_published("T-1K", "in1k", 82.3),),
    "mambavision_t2": (_published("T2-1K", "in1k", 82.7),),
    "mambavision_s": (_published("S-1K", "in1k", 83.3),),
    "mambavision_b": (_published("B-1K", "in1k", 84.2), _published("B-21K", "21k_in1k", 84.9)),
    "mambavision_l": (_published("L-1K", "in1k", 85.0), _published("L-21K", "21k_in1k", 86.1)),
    "mambavision_l2": (
        _published("L2-1K", "in1k", 85.3),
        _published("L2-512-21K", "512_21k_in1k", 87.3, **_AT_512),
    ),
    "mambavision_l3": (
        _published("L3-256-21K", "256_21k_in1k", 87.3, 256),
        _published("L3-512-21K", "512_21k_in1k", 88.1, **_AT_512),
    ),
}
_CROP_RATIOS = {"mambavision_t2": 0.98, "mambavision_s": 0.93}

register(
    Family(
        name="mambavision",
        paper="arXiv 2407.08083",
        variants={
            name: Variant(
                backbone=partial(MambaVision, config),
                classifier=ClassifierHead,
                crop_ratio=_CROP_RATIOS.get(name, 1.0),
                size=256 if name == "mambavision_l3" else 224,
                published=_PUBLISHED[name],
            )
            for name, config in CONFIGS.items()
        },
        convert=convert,
        implied=implied,
        options={
            "window_size": 'side of the windows of stages 3 and 4 in tokens: a number, a pair, or "whole" (no windows)',
            "neutral_padding": "True: padding of the windows has no effect; default False, as published",
            "embed_dim": "channels of the first stage; each further stage has twice as many",
            "depths": "blocks of each of the four stages",
            "num_heads": "attention heads in stages 3 and 4, a pair",
            "stem_dim": "channels of the first convolution",
            "out_norm": "True: a layer norm on each map, as in the published detectors and segmenters",
            "drop_path_rate": "stochastic depth of the last block in training; default as published, 0.2 to 0.5",
        },
        licence="CC-BY-NC-SA-4.0",
    )
)
