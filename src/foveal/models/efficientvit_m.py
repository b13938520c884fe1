"""EfficientViT-M of Microsoft (arXiv 2305.07027): cascaded group attention, and few memory-bound layers.

Notable:
  - the stem has four strided convolutions, so the maps are at strides 16, 32 and 64
  - "sandwich" blocks: one attention between two feed-forward layers, and a depthwise convolution before each of these
  - attention in windows; each head has its own split of the channels and adds the output of the head before it
  - only batch norm and ReLU; a batch norm in front of the classifier
  - MIT's EfficientViT (``efficientvit.py``) has the same name and is a different architecture

Widths, depths, heads and initial values follow the authors' released code (MIT). Its checkpoints and timm's load here.
The authors fix the image size when they build a model, at 224 for the released ones. Here this determines only the
windows, of side ``min(7, map)`` in each stage; maps of any size are padded and cut into them. For image sizes that the
authors' model accepts, the outputs are the same.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..layers.cascaded_attention import CascadedGroupAttention
from ..layers.conv import ConvNormAct, InvertedResidual, SqueezeExcite
from ..layers.drop_path import DropPath
from ..layers.linear import NormLinear
from ..layers.zero_init import zero_init
from .registry import STEM_STRIDE, Backbone, Family, FeatureInfo, Variant, from_timm, register
from .renaming import Renaming, rename_keys

_WINDOWS = (7, 7, 4)  # min(7, map) at 224 pixels, where the maps are 14, 7 and 4
_MAX_WINDOW = 64  # side; position biases take the fourth power of it


@dataclass(frozen=True)
class Config:
    """Sizes of one variant.

    Attributes:
        embed_dim: channels of each stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        kernel_sizes: kernel size of the depthwise convolution on the queries, for each head, in every stage.
    """

    embed_dim: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    kernel_sizes: tuple[int, ...] = (7, 5, 3, 3)


CONFIGS = {
    "efficientvit_m0": Config((64, 128, 192), (1, 2, 3), (4, 4, 4), (5, 5, 5, 5)),
    "efficientvit_m1": Config((128, 144, 192), (1, 2, 3), (2, 3, 3)),
    "efficientvit_m2": Config((128, 192, 224), (1, 2, 3), (4, 3, 2)),
    "efficientvit_m3": Config((128, 240, 320), (1, 2, 3), (4, 3, 4), (5, 5, 5, 5)),
    "efficientvit_m4": Config((128, 256, 384), (1, 2, 3), (4, 4, 4)),
    "efficientvit_m5": Config((192, 288, 384), (1, 3, 4), (3, 3, 4)),
}


def _depthwise(channels: int) -> ConvNormAct:
    return ConvNormAct(channels, channels, 3, groups=channels)


def _feed_forward(channels: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNormAct(channels, 2 * channels, 1, act=nn.ReLU), zero_init(ConvNormAct(2 * channels, channels, 1))
    )


class EfficientViTMBlock(nn.Module):
    """Depthwise convolution, feed-forward, attention, depthwise convolution, feed-forward, each with a residual.

    ``(B, C, H, W) -> (B, C, H, W)``; arguments as in :class:`CascadedGroupAttention`.
    """

    def __init__(self, channels: int, num_heads: int, *, kernel_sizes: Sequence[int], window_size: int) -> None:
        super().__init__()
        self.conv1 = zero_init(_depthwise(channels))
        self.mlp1 = _feed_forward(channels)
        self.attention = CascadedGroupAttention(channels, num_heads, kernel_sizes=kernel_sizes, window_size=window_size)
        zero_init(self.attention.project)
        self.conv2 = zero_init(_depthwise(channels))
        self.mlp2 = _feed_forward(channels)
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.conv1(x))
        x = x + self.drop_path(self.mlp1(x))
        x = x + self.drop_path(self.attention(x))
        x = x + self.drop_path(self.conv2(x))
        return x + self.drop_path(self.mlp2(x))


class Downsample(nn.Module):
    """Halve a map between stages: ``(B, in_chans, H, W) -> (B, out_chans, ceil(H/2), ceil(W/2))``.

    An inverted residual with squeeze and excitation; before and after it a depthwise convolution and a feed-forward
    layer.
    """

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        reduced = max(8, (in_chans + 4) // 8 * 8)  # a quarter of the hidden channels, to the nearest multiple of 8
        self.conv1, self.mlp1 = _depthwise(in_chans), _feed_forward(in_chans)
        self.merge = InvertedResidual(
            in_chans, out_chans, 2, act=nn.ReLU, squeeze=partial(SqueezeExcite, reduced=reduced)
        )
        self.conv2, self.mlp2 = _depthwise(out_chans), _feed_forward(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv1(x)
        x = x + self.mlp1(x)
        x = self.merge(x)
        x = x + self.conv2(x)
        return x + self.mlp2(x)


class EfficientViTM(Backbone):
    """Backbone: ``(B, in_chans, H, W) ->`` maps at strides 16, 32, 64, finest first, sides rounded up.

    Args:
        config: sizes, an entry of :data:`CONFIGS`.
        in_chans: channels of the image.
        window_sizes: side of the attention windows in each stage. Models that the authors' code builds for larger
            images differ in the last stage: (7, 7, 6) for 384 pixels, (7, 7, 7) from 416 pixels on.
        stem_stride: stride of the first convolution. 1 instead of 2 halves the stride of every map, for small images.

    Raises:
        ConfigError: ``window_sizes`` is not one positive number per stage, or ``stem_stride`` is not 1 or 2.
        InputError: a side of the image is below 32 pixels.
    """

    def __init__(
        self,
        config: Config,
        in_chans: int = 3,
        *,
        window_sizes: Sequence[int] = _WINDOWS,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        if len(window_sizes) != len(config.depths) or not 1 <= min(window_sizes) <= max(window_sizes) <= _MAX_WINDOW:
            raise ConfigError(
                f"window_sizes={tuple(window_sizes)}: give {len(config.depths)} sides of 1 to {_MAX_WINDOW}"
            )
        width = config.embed_dim[0]
        widths = (in_chans, width // 8, width // 4, width // 2)
        self.stem = nn.Sequential(
            *(ConvNormAct(a, b, 3, 2, act=nn.ReLU) for a, b in itertools.pairwise(widths)),
            ConvNormAct(width // 2, width, 3, 2),
        )
        self.stages = nn.ModuleList()
        stages = zip(config.embed_dim, config.depths, config.num_heads, window_sizes, strict=True)
        for i, (out, depth, heads, window) in enumerate(stages):
            block = partial(EfficientViTMBlock, kernel_sizes=config.kernel_sizes, window_size=window)
            downsample = [Downsample(width, out)] if i else []
            self.stages.append(nn.Sequential(*downsample, *(block(out, heads) for _ in range(depth))))
            width = out
        self.feature_info = [FeatureInfo(width, 16 << i) for i, width in enumerate(config.embed_dim)]
        self.set_stem_stride(stem_stride)


class ClassifierHead(nn.Module):
    """Average pooling, batch norm, classifier: ``(B, C, h, w) -> (B, num_classes)``.

    Args:
        in_chans: channels of the map.
        num_classes: number of classes. With 0 or ``pre_logits=True`` the head returns the pooled features,
            ``(B, in_chans)``, as the authors' code does.
        distilled: whether to add a second classifier for the labels of a teacher (DeiT, arXiv 2012.12877, section 4).
            In training mode the output is then the pair (classifier, second classifier), in evaluation mode their mean.
    """

    def __init__(self, in_chans: int, num_classes: int = 1000, *, distilled: bool = False) -> None:
        super().__init__()
        self.num_features = in_chans
        self.classifier = _linear(in_chans, num_classes) if num_classes else nn.Identity()
        self.classifier_distilled = _linear(in_chans, num_classes) if num_classes and distilled else None

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        if pre_logits:
            return x
        if self.classifier_distilled is None:
            return self.classifier(x)
        logits, distilled = self.classifier(x), self.classifier_distilled(x)
        return (logits, distilled) if self.training else (logits + distilled) / 2


def _linear(in_features: int, out_features: int) -> NormLinear:
    layer = NormLinear(in_features, out_features)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


#: From the authors' names to timm's. Names that are missing here are the same in both.
_OFFICIAL_NAMES: tuple[Renaming, ...] = (
    (r"^patch_embed\.(\d)\.", lambda m: f"patch_embed.conv{int(m[1]) // 2 + 1}."),
    (r"^blocks1\.", "stages.0.blocks."),
    (r"^blocks(\d)\.0\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.res1."),
    (r"^blocks(\d)\.1\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.patchmerge."),
    (r"^blocks(\d)\.2\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.res2."),
    (r"^blocks(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 3}."),
    (r"\.c\.", ".conv."),
    (r"\.l\.", ".linear."),
)
_TIMM_NAMES: tuple[Renaming, ...] = (
    (r"^patch_embed\.conv(\d)\.", lambda m: f"backbone.stem.{int(m[1]) - 1}."),
    # In our layout the downsampling is the first block of the later stages.
    (r"^stages\.(\d)\.blocks\.(\d+)\.", lambda m: f"backbone.stages.{m[1]}.{int(m[2]) + (m[1] != '0')}."),
    (r"^stages\.(\d)\.downsample\.", r"backbone.stages.\1.0."),
    (r"\bres([12])\.0\.m\.", r"conv\1."),
    (r"\bres([12])\.1\.m\.", r"mlp\1."),
    (r"\bpatchmerge\.conv1\.", "merge.expand."),
    (r"\bpatchmerge\.conv2\.", "merge.depthwise."),
    (r"\bpatchmerge\.conv3\.", "merge.project."),
    (r"\bpatchmerge\.se\.fc1\.", "merge.squeeze.reduce."),
    (r"\bpatchmerge\.se\.fc2\.", "merge.squeeze.expand."),
    (r"\bdw([01])\.m\.", lambda m: f"conv{int(m[1]) + 1}."),
    (r"\bffn([01])\.m\.", lambda m: f"mlp{int(m[1]) + 1}."),
    (r"\bpw([12])\.", lambda m: f"{int(m[1]) - 1}."),
    (r"\bmixer\.m\.attn\.", "attention."),
    (r"\bqkvs\.", "qkv."),
    (r"\bdws\.", "query_convs."),
    (r"\bproj\.1\.", "project."),
    (r"\battention_biases$", "position_biases"),
    (r"^head\.(linear\.)?", "head.classifier."),
    (r"^head_dist\.(linear\.)?", "head.classifier_distilled."),
    (r"\bbn\.", "norm."),
)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Convert a state dict of this family (official, timm's or ours) to our layout; return ``None`` for any other.

    The index tables of the biases are dropped. 1x1 convolutions that are stored as matrices get two more dimensions.
    """
    if "patch_embed.0.c.weight" in state:
        state = rename_keys(state, _OFFICIAL_NAMES)
    if "patch_embed.conv1.conv.weight" in state:
        state = {key: value for key, value in state.items() if not key.endswith("attention_bias_idxs")}
        state = rename_keys(state, _TIMM_NAMES)
    elif not any(key.startswith("backbone.stages.") and key.endswith(".position_biases") for key in state):
        return None
    matrices = {key for key, value in state.items() if key.startswith("backbone.") and value.ndim == 2}
    return {
        key: value[:, :, None, None] if key in matrices and key.endswith(".weight") else value
        for key, value in state.items()
    }


def implied(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of a state dict: a second classifier, and the window sizes of a model for larger images."""
    converted = convert(state) or {}
    windows: dict[int, int] = {}
    for key, value in converted.items():
        if match := re.fullmatch(r"backbone\.stages\.(\d+)\..*\.position_biases", key):
            windows[int(match[1])] = math.isqrt(value.shape[-1])
    sizes = tuple(windows[i] for i in sorted(windows))
    options: dict[str, Any] = {} if sizes == _WINDOWS else {"window_sizes": sizes}
    return options | ({"distilled": True} if "head.classifier_distilled.weight" in converted else {})


#: Top-1 of the authors' weights on ImageNet-1k, in percent.
_TOP1 = {
    "efficientvit_m0": 63.2,
    "efficientvit_m1": 68.4,
    "efficientvit_m2": 70.8,
    "efficientvit_m3": 73.4,
    "efficientvit_m4": 74.3,
    "efficientvit_m5": 77.1,
}

register(
    Family(
        name="efficientvit_m",
        paper="arXiv 2305.07027",
        variants={
            name: Variant(
                partial(EfficientViTM, config),
                ClassifierHead,
                crop_ratio=0.875,
                published=(from_timm(name, "r224_in1k", _TOP1[name], source="official README"),),
            )
            for name, config in CONFIGS.items()
        },
        convert=convert,
        implied=implied,
        options={
            "window_sizes": "sides of the attention windows, one per stage, default (7, 7, 4)",
            "stem_stride": STEM_STRIDE,
        },
        classifier_options={
            "distilled": "True: a second classifier for the labels of a teacher, averaged with the first in evaluation"
        },
        licence="MIT",
    )
)
