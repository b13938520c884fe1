"""Narrow models of every family that the native engine covers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from foveal.info import ModelInfo, attach
from foveal.layers.conv import ResidualConv, set_convention
from foveal.models import efficientvit, efficientvit_sr, mobilenet, realtime_sr
from foveal.models.mobilenet import Block, MobileNet
from foveal.tasks.classify import ClassificationModel
from foveal.tasks.segment import SegmentationHead, SegmentationModel
from foveal.tasks.upscale import UpscaleHead, UpscaleModel
from helpers.narrow import narrow

_L = efficientvit.Config(
    (8, 12, 16, 20, 24),
    (1, 1, 1, 1, 1),
    blocks=("fused", "fused", "mb", "attention"),
    expand_ratios=(4, 4, 4, 6),
    strided_expand_ratios=(16, 16, 8, 8),
    head_dim=12,
    classifier_dim=(20, 24),
    scales=(3, 5),
    stem_block=ResidualConv,
    act=partial(nn.GELU, approximate="tanh"),
    norm_eps=1e-7,
)
_BLOCKS = (  # with and without expansion, residual, squeeze and excitation
    Block(3, 8, 8),
    Block(3, 24, 12, 2),
    Block(5, 36, 20, 2, 6),
    Block(5, 60, 20, 1, 5),
    Block(3, 60, 24, 2),
    Block(3, 24, 24, 1, 4),
    Block(5, 96, 28, 2),
    Block(5, 112, 28),
)
_V2 = mobilenet.Config(8, tuple(block._replace(reduced=0) for block in _BLOCKS), head=40)
_V3 = mobilenet.Config(8, _BLOCKS, head=40, last=44, act=nn.Hardswish)
_EFFICIENTNET = mobilenet.Config(8, _BLOCKS, head=40, act=nn.SiLU, squeeze_act=nn.SiLU, gate=nn.Sigmoid)


def _efficientvit_l(task: str) -> nn.Module:
    backbone = efficientvit.EfficientViT(_L, 3)
    if task == "segment":
        return SegmentationModel(backbone, SegmentationHead(backbone.feature_info, 5, width=12, depth=1))
    head = efficientvit.ClassifierHead(24, 5, dims=_L.classifier_dim, act=_L.act, norm_eps=_L.norm_eps)
    return ClassificationModel(backbone, head)


def _mobilenet(config: mobilenet.Config, *, padding: Any = "symmetric", task: str = "classify") -> nn.Module:
    backbone = MobileNet(config)
    if task == "segment":
        model: nn.Module = SegmentationModel(backbone, SegmentationHead(backbone.feature_info, 5, width=8, depth=1))
    else:
        head = mobilenet.ClassifierHead(backbone.feature_info[-1].channels, 5, config=config)
        model = ClassificationModel(backbone, head)
    set_convention(model, padding=padding)
    return model


def _efficientvit_sr(scale: int) -> nn.Module:
    config = efficientvit_sr.Config(12, depth=1, convs=1, context_width=8, head_dim=4)
    return UpscaleModel(efficientvit_sr.EfficientViTSR(config), UpscaleHead(12, 3, scale))


def _realtime_sr(scale: int) -> nn.Module:
    return UpscaleModel(realtime_sr.RealtimeSR(), UpscaleHead(realtime_sr.WIDTH, 3, scale))


#: Name of a case -> (architecture and task that the description names, model).
_BUILDERS: dict[str, tuple[str, str, Callable[[], nn.Module]]] = {
    "efficientvit_b classify": ("efficientvit_b0", "classify", narrow),
    "efficientvit_b segment": ("efficientvit_b0", "segment", partial(narrow, "segment")),
    "efficientvit_l classify": ("efficientvit_l0", "classify", partial(_efficientvit_l, "classify")),
    "efficientvit_l segment": ("efficientvit_l0", "segment", partial(_efficientvit_l, "segment")),
    "efficientvit_sr x2": ("efficientvit_sr", "upscale", partial(_efficientvit_sr, 2)),
    "realtime_sr x3": ("realtime_sr", "upscale", partial(_realtime_sr, 3)),
    "mobilenetv2": ("mobilenetv2_100", "classify", partial(_mobilenet, _V2)),
    "mobilenetv2 segment": ("mobilenetv2_100", "segment", partial(_mobilenet, _V2, task="segment")),
    "mobilenetv3": ("mobilenetv3_large_100", "classify", partial(_mobilenet, _V3)),
    "tf_mobilenetv3": ("tf_mobilenetv3_large_100", "classify", partial(_mobilenet, _V3, padding="same")),
    "efficientnet": ("efficientnet_b0", "classify", partial(_mobilenet, _EFFICIENTNET)),
    "tf_efficientnet": ("tf_efficientnet_b0", "classify", partial(_mobilenet, _EFFICIENTNET, padding="same")),
}
CASES = tuple(_BUILDERS)


def covered(case: str, seed: int = 0) -> nn.Module:
    """The model of a case in evaluation mode: random weights, and norms that change what passes them."""
    name, task, build = _BUILDERS[case]
    torch.manual_seed(seed)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # pyright: ignore[reportArgumentType]
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
            nn.init.normal_(module.bias, std=0.1)
    if isinstance(model, UpscaleModel):
        nn.init.normal_(model.head.subpixel.weight, std=0.02)
    attach(model, ModelInfo(name, task, 5 * (task != "upscale"), output_stride=getattr(model, "stride", 1)))
    return model.eval()
