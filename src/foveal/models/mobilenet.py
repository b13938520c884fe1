"""MobileNetV2 (arXiv 1801.04381) and MobileNetV3 (arXiv 1905.02244): inverted residuals for phones.

Notable:
  - inverted residual: wide inside, narrow between blocks; the last convolution of a block is linear, and the input is
    added only if the stride is 1 and the widths are equal
  - V3: squeeze and excitation after the depthwise activation, with a hard sigmoid gate; hard swish in the later half
  - V3's last expensive layer runs after the pooling, where it costs almost nothing
  - each stage starts with a strided block; the layers before stride 4 are the stem

Ports of these networks differ in the epsilon and momentum of their norms and in their padding. Weights give correct
outputs only with the conventions of their training. timm's (1e-5, 0.1, symmetric) are the defaults, names with ``tf_``
have TensorFlow's padding and epsilon (1e-3), and checkpoints of torchvision set their own (V3: 1e-3, 0.01).
EfficientNet (``efficientnet.py``) has the same blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.conv import (
    ConvNormAct,
    DepthwiseSeparableConv,
    InvertedResidual,
    SqueezeExcite,
    make_divisible,
    set_convention,
)
from .registry import OUTPUT_STRIDE, STEM_STRIDE, Backbone, Family, FeatureInfo, Published, Variant, from_timm, register

_Act = Callable[[], nn.Module]


class Block(NamedTuple):
    """One inverted residual.

    Attributes:
        kernel_size: kernel size of the depthwise convolution.
        hidden: channels inside. If the input has as many, there is no expansion.
        out_chans: channels of the output.
        stride: stride of the depthwise convolution.
        reduced: channels inside the squeeze and excitation; 0: no squeeze and excitation.
        act: activation; ``None``: that of the network.
    """

    kernel_size: int
    hidden: int
    out_chans: int
    stride: int = 1
    reduced: int = 0
    act: _Act | None = None


@dataclass(frozen=True)
class Config:
    """Sizes and activations of one variant.

    Attributes:
        stem: channels of the first convolution.
        blocks: all blocks in order.
        head: input channels of the classifier.
        last: channels of a 1x1 convolution after the blocks, 0 for none. If there is one, the layer with ``head``
            channels comes after the pooling.
        act: activation of all layers, except in blocks with their own.
        squeeze_act: activation inside squeeze and excitation.
        gate: activation at the end of squeeze and excitation.
        dropout: dropout rate before the classifier.
        drop_path_rate: stochastic depth in training: block i of n has the rate ``drop_path_rate * i / n``, i from 0.
    """

    stem: int
    blocks: tuple[Block, ...]
    head: int
    last: int = 0
    act: _Act = nn.ReLU6
    squeeze_act: _Act = nn.ReLU
    gate: _Act = nn.Hardsigmoid
    dropout: float = 0.2
    drop_path_rate: float = 0.0


class Stage(NamedTuple):
    """One row of a table of stages: ``repeats`` blocks, of which the first has the stride."""

    expand_ratio: int
    kernel_size: int
    stride: int
    out_chans: int
    repeats: int


def list_blocks(stem: int, stages: Iterable[Stage], squeeze_ratio: float = 0) -> tuple[Block, ...]:
    """Return the blocks of a table of stages; ``squeeze_ratio`` is squeeze over *input* channels of a block."""
    blocks: list[Block] = []
    width = stem
    for expand_ratio, kernel_size, stride, out_chans, repeats in stages:
        for index in range(repeats):
            reduced = max(1, int(width * squeeze_ratio)) if squeeze_ratio else 0
            blocks.append(Block(kernel_size, expand_ratio * width, out_chans, 1 if index else stride, reduced))
            width = out_chans
    return tuple(blocks)


def _v3(*rows: tuple[int, int, int, bool, str, int]) -> tuple[Block, ...]:
    """Return the blocks for rows of the paper's tables 1 and 2: kernel, expansion, out, squeeze, activation, stride."""
    acts = {"RE": nn.ReLU, "HS": nn.Hardswish}
    return tuple(
        Block(kernel, hidden, out, stride, make_divisible(hidden / 4) if squeeze else 0, acts[act])
        for kernel, hidden, out, squeeze, act, stride in rows
    )


_V2 = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 3, 2, 32, 3),
    Stage(6, 3, 2, 64, 4),
    Stage(6, 3, 1, 96, 3),
    Stage(6, 3, 2, 160, 3),
    Stage(6, 3, 1, 320, 1),
)
_V3_SMALL = _v3(
    (3, 16, 16, True, "RE", 2),
    (3, 72, 24, False, "RE", 2),
    (3, 88, 24, False, "RE", 1),
    (5, 96, 40, True, "HS", 2),
    (5, 240, 40, True, "HS", 1),
    (5, 240, 40, True, "HS", 1),
    (5, 120, 48, True, "HS", 1),
    (5, 144, 48, True, "HS", 1),
    (5, 288, 96, True, "HS", 2),
    (5, 576, 96, True, "HS", 1),
    (5, 576, 96, True, "HS", 1),
)
_V3_LARGE = _v3(
    (3, 16, 16, False, "RE", 1),
    (3, 64, 24, False, "RE", 2),
    (3, 72, 24, False, "RE", 1),
    (5, 72, 40, True, "RE", 2),
    (5, 120, 40, True, "RE", 1),
    (5, 120, 40, True, "RE", 1),
    (3, 240, 80, False, "HS", 2),
    (3, 200, 80, False, "HS", 1),
    (3, 184, 80, False, "HS", 1),
    (3, 184, 80, False, "HS", 1),
    (3, 480, 112, True, "HS", 1),
    (3, 672, 112, True, "HS", 1),
    (5, 672, 160, True, "HS", 2),
    (5, 960, 160, True, "HS", 1),
    (5, 960, 160, True, "HS", 1),
)
CONFIGS = {
    "mobilenetv2_100": Config(32, list_blocks(32, _V2), head=1280),
    "mobilenetv3_small_100": Config(16, _V3_SMALL, head=1024, last=576, act=nn.Hardswish),
    "mobilenetv3_large_100": Config(16, _V3_LARGE, head=1280, last=960, act=nn.Hardswish),
}


class MobileNet(Backbone):
    """Backbone of inverted residuals: ``(B, in_chans, H, W) ->`` maps at strides 4, 8, 16, 32, finest first.

    Args:
        config: sizes, an entry of :data:`CONFIGS` or of EfficientNet's table.
        in_chans: channels of the image.
        drop_path_rate: stochastic depth in training; default: that of ``config``.
        stem_stride: stride of the first convolution. 1 instead of 2 halves the stride of every map, for small images.
        output_stride: largest stride of a map, 4, 8, 16 or 32: the convolutions beyond it are dilated instead.

    Raises:
        ConfigError: another output stride, or a stride of the stem other than 1 and 2.
        InputError: a side of the image is below 32 pixels.
    """

    def __init__(
        self,
        config: Config,
        in_chans: int = 3,
        *,
        drop_path_rate: float | None = None,
        stem_stride: int = 2,
        output_stride: int | None = None,
    ) -> None:
        super().__init__()
        rate = config.drop_path_rate if drop_path_rate is None else drop_path_rate
        stem: list[nn.Module] = [ConvNormAct(in_chans, config.stem, 3, 2, act=config.act)]
        stages: list[list[nn.Module]] = []
        self.feature_info = []
        width = config.stem
        for index, block in enumerate(config.blocks):
            if block.stride > 1:
                stages.append([])
                self.feature_info.append(FeatureInfo(block.out_chans, 2 << len(stages)))
            (stages[-1] if stages else stem).append(_block(config, width, block, rate * index / len(config.blocks)))
            width = block.out_chans
            if stages:
                self.feature_info[-1] = self.feature_info[-1]._replace(channels=width)
        if config.last:
            stages[-1].append(ConvNormAct(width, config.last, 1, act=config.act))
            self.feature_info[-1] = self.feature_info[-1]._replace(channels=config.last)
        self.stem = nn.Sequential(*stem)
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        self.set_stem_stride(stem_stride)
        self.limit_stride(output_stride)


def _block(config: Config, in_chans: int, block: Block, drop_path: float) -> nn.Module:
    squeeze = partial(SqueezeExcite, reduced=block.reduced, act=config.squeeze_act, gate=config.gate)
    build = DepthwiseSeparableConv
    if block.hidden != in_chans:
        build = partial(InvertedResidual, expand_ratio=block.hidden / in_chans)
    return build(
        in_chans,
        block.out_chans,
        block.stride,
        kernel_size=block.kernel_size,
        act=block.act or config.act,
        squeeze=squeeze if block.reduced else None,
        drop_path=drop_path,
    )


class ClassifierHead(nn.Module):
    """1x1 convolution and average pooling, dropout, classifier: ``(B, C, h, w) -> (B, num_classes)``.

    Args:
        in_chans: channels of the map.
        num_classes: number of classes. With 0 or ``pre_logits=True`` the head returns the input of the classifier,
            ``(B, config.head)``.
        config: sizes, an entry of :data:`CONFIGS`. If ``last`` is not 0, the wide layer comes after the pooling.
        dropout: rate in training; default: that of ``config``.
    """

    def __init__(self, in_chans: int, num_classes: int = 1000, *, config: Config, dropout: float | None = None) -> None:
        super().__init__()
        self.num_features = config.head
        self.late = config.last > 0
        if self.late:
            self.hidden = nn.Sequential(nn.Linear(in_chans, config.head), config.act())
        else:
            self.hidden = ConvNormAct(in_chans, config.head, 1, act=config.act)
        self.dropout = nn.Dropout(config.dropout if dropout is None else dropout)
        self.classifier = nn.Linear(config.head, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.hidden(_pool(x)) if self.late else _pool(self.hidden(x))
        return x if pre_logits else self.classifier(self.dropout(x))


def _pool(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


_STEMS = {"conv_stem.weight", "_conv_stem.weight", "features.0.0.weight"}
#: Parts of published keys (timm, torchvision, efficientnet-pytorch), sorted so that names inside one module are in the
#: order of the layers.
_ORDER = (
    *("conv_stem", "features", "conv", "conv_pw", "bn1", "conv_dw", "blocks", "conv_head", "bn2"),
    *("se", "conv_reduce", "conv_expand", "fc1", "fc2", "conv_pwl", "bn3", "classifier"),
    *("_conv_stem", "_expand_conv", "_bn0", "_depthwise_conv", "_blocks", "_conv_head", "_bn1"),
    *("_se_reduce", "_se_expand", "_project_conv", "_bn2", "_fc", "block"),
)
_RANK = {name: rank for rank, name in enumerate(_ORDER)}


def convert_by_position(state: Mapping[str, Tensor], configs: Iterable[Config]) -> dict[str, Tensor] | None:
    """Convert a state dict of timm, torchvision or efficientnet-pytorch to our layout; return ``None`` for any other.

    All of these have the same layers in the same order, so keys are matched by their position. The names come from the
    entry of ``configs`` with the same number of layers and the most tensors of the same shapes (more than half). Our
    own layout is returned unchanged.
    """
    if not _STEMS & state.keys():
        backbone = {key: value for key, value in state.items() if key.startswith("backbone.")}
        ours = any(_matching_fraction(backbone, _shapes(config)) == 1 for config in configs)
        return dict(state) if ours else None
    positions = {key: _position(key, state) for key in state}
    if any(rank < 0 for position in positions.values() for rank in position):
        return None
    best, best_fraction = None, 0.5
    for config in configs:
        renamed = _rename_by_position(state, positions, config)
        if renamed is not None and (fraction := _matching_fraction(renamed, _shapes(config))) > best_fraction:
            best, best_fraction = renamed, fraction
    return best


def _rename_by_position(
    state: Mapping[str, Tensor], positions: Mapping[str, tuple[int, ...]], config: Config
) -> dict[str, Tensor] | None:
    """Give the layers of a state dict, in order, the names of the layers of ``config``; ``None`` if numbers differ."""
    shapes = _shapes(config)
    names = list(dict.fromkeys(key.rpartition(".")[0] for key in shapes))
    layers = sorted(set(positions.values()))
    # with classifier, without classifier, only the backbone
    if len(layers) not in (len(names), len(names) - 1, sum(name.startswith("backbone.") for name in names)):
        return None
    layer_names = dict(zip(layers, names, strict=False))
    renamed = {f"{layer_names[positions[key]]}.{key.rpartition('.')[2]}": value for key, value in state.items()}
    # In timm the layer after the pooling is a 1x1 convolution.
    return {k: v.flatten(1) if v.ndim == 4 and len(shapes.get(k, v.shape)) == 2 else v for k, v in renamed.items()}


def _position(key: str, state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Position of a key's layer in the order of the layers; it has a negative part if no layout has such a name."""
    layer = key.rpartition(".")[0]
    match = re.fullmatch(r"(blocks\.\d+\.\d+\.)(conv_pw|bn[12])", layer)
    if match and f"{match[1]}conv_dw.weight" in state and f"{match[1]}conv_pwl.weight" not in state:
        # In a block without expansion, timm's numbers and names start at the depthwise convolution.
        layer = match[1] + {"conv_pw": "conv_pwl", "bn1": "bn2", "bn2": "bn3"}[match[2]]
    return tuple(int(part) if part.isdigit() else _RANK.get(part, -1) for part in layer.split("."))


def _matching_fraction(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Fraction of the tensors with the expected shape; the numbers of image channels and classes are not compared."""
    matching = 0
    for key, value in state.items():
        ignored = {"backbone.stem.0.conv.weight": 1, "head.classifier.weight": 0, "head.classifier.bias": 0}.get(key)
        pairs = zip(value.shape, shapes.get(key, ()), strict=False)
        same = all(a == b for i, (a, b) in enumerate(pairs) if i != ignored)
        matching += same and key in shapes and value.ndim == len(shapes[key])
    return matching / len(state) if state else 0.0


@cache
def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes in the state dict of a classifier, in order."""
    with torch.device("meta"):
        backbone = MobileNet(config)
        parts = {"backbone": backbone, "head": ClassifierHead(backbone.feature_info[-1].channels, config=config)}
    return {f"{name}.{key}": tuple(v.shape) for name, part in parts.items() for key, v in part.state_dict().items()}


#: Conventions of the ports; see :func:`foveal.layers.conv.set_convention`.
SYMMETRIC = {"norm_eps": 1e-5, "norm_momentum": 0.1, "padding": "symmetric"}
TENSORFLOW = {"norm_eps": 1e-3, "norm_momentum": 0.1, "padding": "same"}
SETTINGS = {
    "norm_eps": "epsilon of the batch norms, default 1e-5 (tf_: 1e-3)",
    "norm_momentum": "weight of the newest batch in their running statistics, default 0.1",
    "padding": "'symmetric' (default), or 'same' as in TensorFlow (default of tf_)",
}


def implied(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the conventions of a state dict from torchvision; timm's do not show whether they need ``tf_``."""
    if "features.0.0.weight" not in state:
        return {}
    is_v3 = any(".block." in key for key in state)
    return {**SYMMETRIC, "norm_eps": 1e-3, "norm_momentum": 0.01} if is_v3 else dict(SYMMETRIC)


def variants_of(
    configs: Mapping[str, Config], published: Mapping[str, tuple[Published, ...]], **fields: Mapping[str, Any]
) -> dict[str, Variant]:
    """Return a variant for each configuration, then the same with ``tf_`` before their names.

    Args:
        configs: configurations by name.
        published: published weights by name, with ``tf_`` for those of TensorFlow.
        **fields: further fields of :class:`Variant`, each with its value by the name of the configuration.
    """
    return {
        f"{prefix}{name}": Variant(
            backbone=partial(MobileNet, config),
            classifier=partial(ClassifierHead, config=config),
            published=published.get(f"{prefix}{name}", ()),
            settings=settings,
            twins=(name,) if prefix else (f"tf_{name}",),
            **{field: values[name] for field, values in fields.items()},
        )
        for prefix, settings in (("", SYMMETRIC), ("tf_", TENSORFLOW))
        for name, config in configs.items()
    }


_TF_INPUT = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resample": "bilinear"}
_PUBLISHED = {
    "mobilenetv2_100": (from_timm("mobilenetv2_100", "ra_in1k", 72.91),),
    "mobilenetv3_small_100": (from_timm("mobilenetv3_small_100", "lamb_in1k", 67.64),),
    "mobilenetv3_large_100": (from_timm("mobilenetv3_large_100", "ra_in1k", 75.78),),
    "tf_mobilenetv3_small_100": (from_timm("tf_mobilenetv3_small_100", "in1k", 67.92, **_TF_INPUT),),
    "tf_mobilenetv3_large_100": (from_timm("tf_mobilenetv3_large_100", "in1k", 75.51, **_TF_INPUT),),
}

register(
    Family(
        name="mobilenet",
        paper="arXiv 1801.04381, 1905.02244",
        variants=variants_of(CONFIGS, _PUBLISHED, crop_ratio=dict.fromkeys(CONFIGS, 0.875)),
        convert=partial(convert_by_position, configs=tuple(CONFIGS.values())),
        implied=implied,
        options={
            "drop_path_rate": "stochastic depth of the last block in training, default 0",
            "stem_stride": STEM_STRIDE,
            "output_stride": OUTPUT_STRIDE,
        },
        classifier_options={"dropout": "rate before the classifier in training, default 0.2"},
        settings=SETTINGS,
        set=set_convention,
        licence="Apache-2.0",
    )
)
