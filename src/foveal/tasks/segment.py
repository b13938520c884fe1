"""Semantic segmentation: a backbone and EfficientViT's head on its feature maps (arXiv 2205.14756, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, nearest
from ..layers.conv import Activation, ConvNormAct, InvertedResidual
from ..layers.resample import BicubicUpsample, ceil_div, check_min_size, crop, pad_to_multiple
from ..models.registry import Backbone, FeatureInfo, Variant
from .builder import Builder, Request

#: The head for backbones without a published one: EfficientViT-B1's for Cityscapes.
DEFAULT_HEAD = {"width": 64, "depth": 3, "expand_ratio": 4, "final_expand": 4, "act": nn.Hardswish, "num_classes": 19}


class SegmentationHead(nn.Module):
    """Fuse the three coarsest feature maps at the finest of their strides and classify each position.

    Each map is projected to ``width`` channels and upsampled bicubically to the finest of the three strides. The maps
    are added; ``depth`` residual blocks and a classifier follow.

    Args:
        feature_info: feature maps of the backbone, finest first; the last three are used.
        num_classes: number of classes to predict.
        width: channels of the fused map.
        depth: number of blocks on the fused map.
        block: block class, built as ``block(width, width, expand_ratio=, act=, norm_eps=)``.
        expand_ratio: expansion inside the blocks.
        final_expand: factor that widens the fused map before the classifier, ``None`` for no widening.
        act: activation class.
        norm_eps: epsilon of the batch norms.
    """

    def __init__(
        self,
        feature_info: Sequence[FeatureInfo],
        num_classes: int,
        *,
        width: int = 64,
        depth: int = 3,
        block: type[nn.Module] = InvertedResidual,
        expand_ratio: float = 4,
        final_expand: float | None = 4,
        act: Activation = nn.Hardswish,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        used = list(feature_info)[:-4:-1]  # coarsest first
        self.stride = used[-1].stride
        self.laterals = nn.ModuleList(ConvNormAct(info.channels, width, 1, norm_eps=norm_eps) for info in used)
        self.upsamples = nn.ModuleList(BicubicUpsample(info.stride // self.stride) for info in used)
        self.blocks = nn.Sequential(
            *(block(width, width, expand_ratio=expand_ratio, act=act, norm_eps=norm_eps) for _ in range(depth))
        )
        wide = round(width * final_expand) if final_expand else width
        self.expand = ConvNormAct(width, wide, 1, act=act, norm_eps=norm_eps) if final_expand else nn.Identity()
        self.classifier = nn.Conv2d(wide, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        coarsest_first = maps[:-4:-1]
        levels = [up(lateral(x)) for up, lateral, x in zip(self.upsamples, self.laterals, coarsest_first, strict=True)]
        fused = levels[-1]
        for level in levels[-2::-1]:  # from fine to coarse, as published: the order of a sum changes its last bits
            fused = level + fused
        return self.classifier(self.expand(self.blocks(fused)))


class SegmentationModel(nn.Module):
    """Backbone and head: ``(B, in_chans, H, W) -> (B, num_classes, H, W)`` logits.

    H and W are any from 32 up: the input is replicate-padded at the right and bottom to a multiple of the coarsest
    stride, and the logits are cropped. ``forward(x, upsample=False)`` returns logits at the head's own stride,
    ``(B, num_classes, ceil(H / stride), ceil(W / stride))``.

    Raises:
        InputError: H or W is below the backbone's ``min_size``.
    """

    def __init__(self, backbone: Backbone, head: SegmentationHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.stride = head.stride
        self.multiple_of = max(info.stride for info in backbone.feature_info)

    def forward(self, x: Tensor, upsample: bool = True) -> Tensor:
        h, w = x.shape[-2:]
        check_min_size(x, self.backbone.min_size)
        logits = self.padded(x)
        if upsample:
            return crop(self.upsampled(logits), h, w)
        return crop(logits, ceil_div(h, self.stride), ceil_div(w, self.stride))

    def padded(self, x: Tensor) -> Tensor:
        """Logits of the padded image at the head's stride, before cropping."""
        return self.head(self.maps(x))

    def maps(self, x: Tensor) -> list[Tensor]:
        """The backbone's feature maps of the padded image."""
        return self.backbone(pad_to_multiple(x, self.multiple_of))

    def upsampled(self, logits: Tensor) -> Tensor:
        """Logits at ``stride`` times the size."""
        return F.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False)


def head_arguments(request: Request) -> dict[str, Any]:
    """Keyword arguments of the requested head: the published ones, with the width and depth that options give."""
    name, heads = request.options.get("head") or "cityscapes", request.variant.segment_heads
    heads = heads or {"cityscapes": DEFAULT_HEAD}
    if name not in heads:
        raise ConfigError(f"{request.name} has no published segmentation head {name!r}{nearest(name, heads)}")
    sizes = {key: value for key, value in request.options.items() if key.startswith("head_")}
    for option, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ConfigError(f"{option}={size!r}: give a whole number, 1 or more")
    return dict(heads[name]) | {option.removeprefix("head_"): size for option, size in sizes.items()}


def _count_classes(request: Request) -> int:
    published: int = head_arguments(request)["num_classes"]
    num_classes = published if request.num_classes is None else request.num_classes
    if num_classes < 1:
        raise ConfigError(f"num_classes={num_classes}: a segmentation model needs at least 1")
    return num_classes


def _build(backbone: Backbone, request: Request) -> SegmentationModel:
    arguments: dict[str, Any] = {**head_arguments(request), "num_classes": request.num_classes}
    return SegmentationModel(backbone, SegmentationHead(backbone.feature_info, **arguments))


def _published_heads(variant: Variant) -> list[dict[str, Any]]:
    return [{"head": name} for name in variant.segment_heads] or [{}]


BUILDER = Builder(
    _build,
    _count_classes,
    options=frozenset({"head", "head_width", "head_depth"}),
    published_heads=_published_heads,
)
