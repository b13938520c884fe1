"""Derive a plan from a torch model: one small function for each kind of module.

A module without a function of its own is covered if it is a sequence of covered ones. A new block of a family is one
more function here, registered with its class.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..info import info_of
from ..layers.classifiers import WideClassifier
from ..layers.conv import (
    ConvNormAct,
    DepthwiseSeparableConv,
    FusedInvertedResidual,
    InvertedResidual,
    LayerNorm2d,
    ResidualConv,
    SqueezeExcite,
)
from ..layers.efficientvit_block import EfficientViTBlock
from ..layers.linear_attention import MultiScaleLinearAttention
from ..layers.optimize import fold_norms
from ..layers.reparam import RepConv, fuse_branches
from ..layers.resample import BicubicUpsample
from ..models.efficientvit import EfficientViT
from ..models.efficientvit_m import EfficientViTM
from ..models.efficientvit_sr import ContextBlock, EfficientViTSR
from ..models.mambavision import MambaVision
from ..models.mobilenet import ClassifierHead as MobileNetClassifier
from ..models.mobilenet import MobileNet
from ..models.realtime_sr import RealtimeSR
from ..models.tinyvit import TinyViT
from ..models.vit import ViT
from ..tasks.classify import ClassificationModel
from ..tasks.prompt import ImageEncoder, PlainNeck, PromptModel, PyramidNeck
from ..tasks.regress import RegressionModel
from ..tasks.segment import SegmentationHead, SegmentationModel
from ..tasks.upscale import UpscaleModel
from .builder import Builder, Lowering, bias_of
from .builder import NotCoveredError as NotCoveredError
from .lowering_prompts import PROMPTS
from .lowering_tokens import TOKENS
from .lowering_windows import WINDOWS
from .plan import Plan, check


def make_plan(model: nn.Module, part: str = "") -> Plan:
    """Derive the plan of a model of :func:`foveal.create_model`; segmentation gives logits at the model's own stride.

    Args:
        model: the model.
        part: of a promptable model, which of its networks: "encoder", or "prompts" or "masks", see
            :mod:`.lowering_prompts`.

    Raises:
        NotCoveredError: the engine has no operation for a layer of the model, or the model has no such part.
        ConfigError: Foveal did not make the model.
    """
    info = info_of(model).replace(output_stride=getattr(model, "stride", 1))
    folded = copy.deepcopy(model).cpu().float().eval()
    fold_norms(folded)
    fuse_branches(folded)
    builder = Builder(info, LOWERINGS)
    with torch.no_grad():
        builder.lower(_part_of(folded, part), 0)
    plan = Plan(builder.info, tuple(builder.steps), builder.weights)
    check(plan)
    return plan


def _part_of(model: nn.Module, part: str) -> nn.Module:
    """The network of this name; an empty name means the model."""
    parts: dict[str, nn.Module] = {"": model}
    if isinstance(model, PromptModel):
        parts = {"encoder": model.image_encoder, "prompts": model, "masks": model.prompt_encoder}
    if part not in parts:
        known = " or ".join(map(repr, parts))
        raise NotCoveredError(f"{info_of(model).model}: no part {part!r}; the native engine has plans for part {known}")
    return parts[part]


# ---- blocks


def _conv_norm_act(builder: Builder, module: ConvNormAct, x: int) -> int:
    return builder.conv_norm_act(module, x)


def _squeeze_excite(builder: Builder, module: SqueezeExcite, x: int) -> int:
    return builder.add("multiply", (x, _gate(builder, module, x)))


def _gate(builder: Builder, module: SqueezeExcite, x: int) -> int:
    """The factor of each channel, a map of one position."""
    gate = builder.add("mean", (x,))
    gate = builder.conv(module.reduce, gate, act=builder.activation(module.act))
    return builder.conv(module.expand, gate, act=builder.activation(module.gate))


def _inverted_residual(builder: Builder, module: InvertedResidual, x: int) -> int:
    residual = x if module.residual else None
    if type(module.squeeze) is not nn.Identity:
        y = builder.chain("expand_depthwise", module.depthwise, None, x, None, expand=module.expand)
        return _squeeze_and_project(builder, module, y, residual)
    return builder.chain("inverted_residual", module.depthwise, module.project, x, residual, expand=module.expand)


def _separable(builder: Builder, module: DepthwiseSeparableConv, x: int) -> int:
    residual = x if module.residual else None
    if type(module.squeeze) is not nn.Identity:
        return _squeeze_and_project(builder, module, builder.conv_norm_act(module.depthwise, x), residual)
    return builder.chain("separable", module.depthwise, module.project, x, residual)


def _squeeze_and_project(
    builder: Builder, module: InvertedResidual | DepthwiseSeparableConv, x: int, residual: int | None
) -> int:
    """The last convolution multiplies each channel with its factor when it reads it."""
    if type(module.squeeze) is SqueezeExcite:
        gate = _gate(builder, module.squeeze, x)
        return builder.conv_norm_act(module.project, x, residual=residual, gate=gate)
    return builder.conv_norm_act(module.project, builder.lower(module.squeeze, x), residual=residual)


def _fused_inverted_residual(builder: Builder, module: FusedInvertedResidual, x: int) -> int:
    residual = x if module.residual else None
    return builder.chain("fused_inverted_residual", module.expand, module.project, x, residual)


def _residual_conv(builder: Builder, module: ResidualConv, x: int) -> int:
    y = builder.conv_norm_act(module.conv1, x)
    return builder.conv_norm_act(module.conv2, y, residual=x if module.residual else None)


def _efficientvit_block(builder: Builder, module: EfficientViTBlock, x: int) -> int:
    return builder.lower(module.local, _attention(builder, module.attention, x, residual=x))


def _attention(builder: Builder, module: MultiScaleLinearAttention, x: int, residual: int | None = None) -> int:
    scales = [builder.conv(module.qkv, x)]
    branches: Any = module.aggregate
    scales += [_aggregate(builder, depthwise, pointwise, scales[0]) for depthwise, pointwise in branches]
    if not module.global_attention:
        return _project_sum(builder, module.project, scales, residual)
    heads = module.qkv.out_channels // (3 * module.head_dim)
    y = builder.add("linear_attention", tuple(scales), head_dim=module.head_dim, heads=heads, eps=module.eps)
    return builder.conv_norm_act(module.project, y, residual=residual)


def _project_sum(builder: Builder, project: ConvNormAct, maps: list[int], residual: int | None) -> int:
    """A 1x1 convolution of joined maps, as the sum of one for each map."""
    builder.check_folded(project)
    weights = project.conv.weight.chunk(len(maps), dim=1)
    common = {"kernel": 1, "stride": 1, "groups": 1, "padding": "symmetric"}
    bias = bias_of(project.conv)
    for x, weight in zip(maps, weights, strict=True):
        arrays = {"weight": weight, "bias": bias}
        residual = builder.add("conv", (x,), residual=residual, arrays=arrays, **common)
        bias = torch.zeros_like(bias)
    assert residual is not None
    return residual


def _aggregate(builder: Builder, depthwise: nn.Conv2d, pointwise: nn.Conv2d, x: int) -> int:
    """A depthwise convolution, then a grouped 1x1 convolution."""
    arrays = {"weight": depthwise.weight, "bias": bias_of(depthwise)}
    arrays |= {"project_weight": pointwise.weight, "project_bias": bias_of(pointwise)}
    window = {"kernel": depthwise.kernel_size[0], "stride": 1, "padding": "symmetric"}
    return builder.add_chain("separable", x, None, arrays, {**window, "act": "none", "groups": pointwise.groups})


def _layer_norm(builder: Builder, module: nn.LayerNorm | LayerNorm2d, x: int) -> int:
    arrays: dict[str, Tensor] = {"weight": module.weight, "bias": module.bias}
    return builder.add("layer_norm", (x,), arrays=arrays, eps=module.eps)


def _upsample(builder: Builder, module: BicubicUpsample, x: int) -> int:
    return x if module.factor == 1 else builder.add("upsample", (x,), factor=module.factor, a=module.a)


def _context_block(builder: Builder, module: ContextBlock, x: int) -> int:
    y = builder.lower(module.block, builder.lower(module.down, x))
    up = copy.deepcopy(module.up)
    _order_for_shuffle(up.conv, 2)
    return builder.add("pixel_shuffle", (builder.lower(up, y),), residual=x, factor=2)


def _order_for_shuffle(conv: nn.Conv2d, factor: int) -> None:
    """Order the outputs (row, column, channel) instead of (channel, row, column), so that a pixel is one block."""

    def order(tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.unflatten(0, (-1, factor**2)).transpose(0, 1).flatten(0, 1).contiguous())

    conv.weight, conv.bias = order(conv.weight), order(bias_of(conv))


# ---- backbones, heads and tasks


def maps(builder: Builder, backbone: Any, x: int) -> list[int]:
    """The feature maps of a backbone that has a stem and stages."""
    if type(backbone) not in (EfficientViT, EfficientViTM, MobileNet, MambaVision, TinyViT, ViT):
        raise NotCoveredError(f"{builder.info.model}: the native engine does not cover {type(backbone).__name__}")
    x = builder.lower(backbone.stem, x)
    norms = getattr(backbone, "out_norms", None) or [nn.Identity() for _ in backbone.stages]
    found = []
    for stage, norm in zip(backbone.stages, norms, strict=True):
        x = builder.lower(stage, x)
        found.append(builder.lower(norm, x))
    return found


def _efficientvit_sr(builder: Builder, backbone: EfficientViTSR, x: int) -> int:
    x = shallow = builder.lower(backbone.stem, x)
    for stage in backbone.stages:
        x = builder.lower(stage, x)
    return builder.conv_norm_act(backbone.merge, x, residual=shallow)


def _realtime_sr(builder: Builder, backbone: RealtimeSR, x: int) -> int:
    x = shallow = builder.lower(backbone.stem, x)
    last = len(backbone.stages) - 1
    stages: Any = backbone.stages
    for index, stage in enumerate(stages):
        x = builder.conv(stage.conv, x, act="relu", residual=shallow if index == last else None)
    return x


def _wide_classifier(builder: Builder, head: WideClassifier, x: int) -> int:
    x = builder.add("mean", (builder.lower(head.conv, x),))
    x = builder.lower(head.norm, builder.linear(head.hidden, x))
    builder.steps[-1] = replace(builder.steps[-1], act=builder.activation(head.act))
    return builder.lower(head.classifier, x)


def _mobilenet_classifier(builder: Builder, head: MobileNetClassifier, x: int) -> int:
    if isinstance(head.hidden, nn.Sequential):
        linear: Any = head.hidden[0]
        x = builder.linear(linear, builder.add("mean", (x,)), act=builder.activation(head.hidden[1]))
    else:
        x = builder.add("mean", (builder.lower(head.hidden, x),))
    return builder.lower(head.classifier, x)


def _segmentation_head(builder: Builder, head: SegmentationHead, found: list[int], act: str = "none") -> int:
    coarsest_first = found[:-4:-1]
    fused = builder.lower(head.laterals[-1], coarsest_first[-1])  # the finest map is not upsampled
    for lateral, upsample, x in reversed(
        list(zip(head.laterals[:-1], head.upsamples[:-1], coarsest_first, strict=False))
    ):
        y = builder.lower(lateral, x)
        fused = builder.add("upsample", (y,), residual=fused, factor=upsample.factor, a=upsample.a)
    x = builder.lower(head.blocks, fused)
    return builder.conv(head.classifier, builder.lower(head.expand, x), act=act)


def _classification(builder: Builder, model: ClassificationModel, _: int) -> int:
    features = maps(builder, model.backbone, builder.image())[-1]
    return builder.add("vector", (builder.lower(model.head, features),))


def _segmentation(builder: Builder, model: SegmentationModel, _: int) -> int:
    found = maps(builder, model.backbone, builder.image(multiple=model.multiple_of))
    return builder.add("output", (_segmentation_head(builder, model.head, found),), stride=model.stride)


def _regression(builder: Builder, model: RegressionModel, _: int) -> int:
    """The segmentation head; its last convolution gives values in the unit of the target."""
    head = copy.deepcopy(model.head)
    act = head.output if head.output in ("sigmoid", "softplus") else "none"
    mean, std = head.target_mean, head.target_std
    head.classifier.bias = nn.Parameter(bias_of(head.classifier))
    if act == "softplus":
        head.classifier.bias += mean / std
    elif act == "none":
        head.classifier.weight *= std[:, None, None, None]
        head.classifier.bias.mul_(std).add_(mean)
    x = _segmentation_head(builder, head, maps(builder, model.backbone, builder.image(multiple=model.multiple_of)), act)
    if act == "softplus":
        factor = nn.Conv2d(len(std), len(std), 1, bias=False)
        factor.weight.copy_(std.diag()[:, :, None, None])
        x = builder.conv(factor, x)
    return builder.add("output", (x,), stride=model.stride)


def _image_encoder(builder: Builder, model: ImageEncoder, _: int) -> int:
    found = maps(builder, model.backbone, builder.image())
    neck = model.neck
    if isinstance(neck, PyramidNeck):
        x = builder.lower(neck.norm, _segmentation_head(builder, neck.fuse, found))
    else:
        x = _in_order(builder, neck, found[-1])
    return builder.add("output", (x,), stride=0)


def _in_order(builder: Builder, parts: PlainNeck, x: int) -> int:
    for part in parts:
        x = builder.lower(part, x)
    return x


def _upscale(builder: Builder, model: UpscaleModel, _: int) -> int:
    features = builder.lower(model.backbone, builder.image(shift=-0.5))
    details = builder.conv(model.head.subpixel, features)
    return builder.add("enlarge", (details, 0), factor=model.scale, a=model.base.a)


LOWERINGS: dict[type[nn.Module], Lowering] = {
    nn.Conv2d: lambda builder, module, x: builder.conv(module, x),
    nn.Linear: lambda builder, module, x: builder.linear(module, x),
    nn.LayerNorm: _layer_norm,
    LayerNorm2d: _layer_norm,
    RepConv: lambda builder, module, x: builder.conv(module.conv, x),
    ConvNormAct: _conv_norm_act,
    SqueezeExcite: _squeeze_excite,
    InvertedResidual: _inverted_residual,
    DepthwiseSeparableConv: _separable,
    FusedInvertedResidual: _fused_inverted_residual,
    ResidualConv: _residual_conv,
    EfficientViTBlock: _efficientvit_block,
    MultiScaleLinearAttention: _attention,
    BicubicUpsample: _upsample,
    ContextBlock: _context_block,
    EfficientViTSR: _efficientvit_sr,
    RealtimeSR: _realtime_sr,
    WideClassifier: _wide_classifier,
    MobileNetClassifier: _mobilenet_classifier,
    ClassificationModel: _classification,
    SegmentationModel: _segmentation,
    RegressionModel: _regression,
    UpscaleModel: _upscale,
    ImageEncoder: _image_encoder,
    **TOKENS,
    **WINDOWS,
    **PROMPTS,
}
