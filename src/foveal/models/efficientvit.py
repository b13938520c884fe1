"""EfficientViT of MIT (arXiv 2205.14756): multi-scale ReLU linear attention for dense prediction.

Notable:
  - B: two convolutional stages (inverted residuals), then two stages that alternate linear attention with an inverted
    residual
  - L and XL: dense 3x3 convolutions in the early stages; attention only in the last stage (XL: in the last two)
  - no position embedding, no softmax and no token grid of fixed size, so the backbone takes any H x W
  - "fewer norm" blocks normalise only their last convolution
  - Microsoft's EfficientViT-M (``efficientvit_m.py``) has the same name and is a different architecture

Widths, depths, epsilons and heads follow the authors' released code (Apache-2.0). Its checkpoints load here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ..layers.classifiers import WideClassifier
from ..layers.conv import (
    ConvNormAct,
    DepthwiseSeparableConv,
    FusedInvertedResidual,
    InvertedResidual,
    ResidualConv,
)
from ..layers.efficientvit_block import EfficientViTBlock
from . import registry
from .registry import OUTPUT_STRIDE, STEM_STRIDE, Backbone, Family, FeatureInfo, Published, Variant, from_timm
from .renaming import Renaming, rename_keys
from .sizes import replace_sizes

_GELU = partial(nn.GELU, approximate="tanh")
ClassifierHead = WideClassifier  #: its name for clients of this file


@dataclass(frozen=True)
class Config:
    """Sizes of one variant. The first width and depth are the stem's, at stride 2; each stage has stride 2.

    Attributes:
        embed_dim: channels of the stem and of each stage.
        depths: blocks of the stem after its first convolution, then blocks of each stage after its strided block. (For
            B's convolutional stages the paper counts the strided block too.)
        blocks: kind of block in each stage: "mb" (inverted residual), "fused" (inverted residual with a dense 3x3
            convolution) or "attention".
        expand_ratios: hidden channels over channels in the blocks of each stage.
        strided_expand_ratios: the same for the strided convolutional block at the start of each stage.
        fewer_norm: whether the convolutional blocks of a stage normalise only their last convolution.
        head_dim: channels of an attention head.
        classifier_dim: width of the classifier's 1x1 convolution, then of its linear layer. The authors published no
            classifier for L0 and XL; these variants use the one of the variant with the same widths.
        scales: kernel sizes of the attention branches in addition to the identity.
        stem_block: block after the first convolution.
        act: activation.
        norm_eps: epsilon of the norms.
    """

    embed_dim: tuple[int, ...]
    depths: tuple[int, ...]
    blocks: tuple[str, ...] = ("mb", "mb", "attention", "attention")
    expand_ratios: tuple[float, ...] = (4, 4, 4, 4)
    strided_expand_ratios: tuple[float, ...] = (4, 4, 4, 4)
    fewer_norm: tuple[bool, ...] = (False, False, True, True)
    head_dim: int = 32
    classifier_dim: tuple[int, int] = (2304, 2560)
    scales: tuple[int, ...] = (5,)
    stem_block: Callable[..., nn.Module] = DepthwiseSeparableConv
    act: Callable[[], nn.Module] = nn.Hardswish
    norm_eps: float = 1e-5


_L = partial(
    Config,
    embed_dim=(32, 64, 128, 256, 512),
    blocks=("fused", "fused", "mb", "attention"),
    expand_ratios=(4, 4, 4, 6),
    strided_expand_ratios=(16, 16, 16, 24),
    classifier_dim=(3072, 3200),
    stem_block=ResidualConv,
    act=_GELU,
    norm_eps=1e-7,
)
_XL = partial(
    Config,
    embed_dim=(32, 64, 128, 256, 512, 1024),
    blocks=("fused", "fused", "fused", "attention", "attention"),
    expand_ratios=(4, 4, 4, 4, 6),
    strided_expand_ratios=(16, 16, 16, 16, 24),
    fewer_norm=(False, False, False, True, True),
    classifier_dim=(6144, 6400),
    scales=(3,),
    stem_block=ResidualConv,
    act=_GELU,
    norm_eps=1e-6,
)
#: To add a variant of your own, call ``register_variant("efficientvit_mine", Config(...))``.
CONFIGS = {
    "efficientvit_b0": Config((8, 16, 32, 64, 128), (1, 1, 1, 2, 2), head_dim=16, classifier_dim=(1024, 1280)),
    "efficientvit_b1": Config((16, 32, 64, 128, 256), (1, 1, 2, 3, 4), head_dim=16, classifier_dim=(1536, 1600)),
    "efficientvit_b2": Config((24, 48, 96, 192, 384), (1, 2, 3, 4, 6)),
    "efficientvit_b3": Config((32, 64, 128, 256, 512), (1, 3, 5, 6, 9)),
    "efficientvit_l0": _L(depths=(1, 1, 1, 4, 4)),
    "efficientvit_l1": _L(depths=(1, 1, 1, 6, 6)),
    "efficientvit_l2": _L(depths=(1, 2, 2, 8, 8)),
    "efficientvit_l3": _L(embed_dim=(64, 128, 256, 512, 1024), depths=(1, 2, 2, 8, 8), classifier_dim=(6144, 6400)),
    "efficientvit_xl0": _XL(depths=(0, 1, 1, 2, 3, 3)),
    "efficientvit_xl1": _XL(depths=(1, 2, 2, 4, 6, 6)),
    "efficientvit_xl2": _XL(depths=(1, 2, 2, 6, 9, 9)),  # ours: XL1's widths, its last three stages 1.5 times as deep
}


class EfficientViT(Backbone):
    """Backbone: ``(B, in_chans, H, W) ->`` maps at strides 4, 8, 16, 32 (XL: 64 too), finest first, sides rounded up.

    Args:
        config: sizes, an entry of :data:`CONFIGS`.
        in_chans: channels of the image.
        scales: kernel sizes of the attention branches in addition to the identity, any number of them. Default: those
            of ``config``.
        attention_eps: epsilon of the attention normaliser: 1e-15 in the official code, 1e-5 in timm.
        global_attention: ``False`` gives the paper's ablation without attention (multi-scale aggregation only), whose
            modules have no queries and keys. Its ablation without aggregation (attention only) is ``scales=()``.
        embed_dim, depths: sizes that replace those of ``config``, see :class:`Config`.
        stem_stride: stride of the first convolution. 1 instead of 2 halves the stride of every map, for small images.
        output_stride: largest stride of a map: the convolutions beyond it are dilated instead, and the attention there
            is over more positions. Default: 32 (XL: 64).

    Raises:
        ConfigError: an output stride that no map has, another stride of the stem, or a size that is not possible.
        InputError: a side of the image is below 32 pixels.
    """

    option_blocks = MappingProxyType(dict.fromkeys(("scales", "attention_eps", "global_attention"), EfficientViTBlock))

    def __init__(
        self,
        config: Config,
        in_chans: int = 3,
        *,
        scales: Sequence[int] | None = None,
        attention_eps: float = 1e-15,
        global_attention: bool = True,
        stem_stride: int = 2,
        output_stride: int | None = None,
        embed_dim: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config = replace_sizes(config, least_depth=0, embed_dim=embed_dim, depths=depths)
        common = {"act": config.act, "norm_eps": config.norm_eps}
        self.attention_options = {
            "head_dim": config.head_dim,
            "scales": config.scales if scales is None else scales,
            "attention_eps": attention_eps,
            "global_attention": global_attention,
        }
        attention = partial(EfficientViTBlock, **self.attention_options, **common)
        width, *widths = config.embed_dim
        depth, *stage_depths = config.depths
        self.stem = nn.Sequential(
            ConvNormAct(in_chans, width, 3, 2, **common),
            *(config.stem_block(width, width, **common) for _ in range(depth)),
        )
        self.stages = nn.ModuleList()
        for i, (out, depth, kind) in enumerate(zip(widths, stage_depths, config.blocks, strict=True)):
            conv = FusedInvertedResidual if kind == "fused" else InvertedResidual
            conv = partial(conv, fewer_norm=config.fewer_norm[i], **common)
            strided = conv(width, out, 2, expand_ratio=config.strided_expand_ratios[i])
            block = partial(attention, out) if kind == "attention" else partial(conv, out, out)
            blocks = (block(expand_ratio=config.expand_ratios[i]) for _ in range(depth))
            self.stages.append(nn.Sequential(strided, *blocks))
            width = out
        self.feature_info = [FeatureInfo(width, 4 << i) for i, width in enumerate(widths)]
        self.set_stem_stride(stem_stride)
        self.limit_stride(output_stride)

    def block_options(self, index: int, kind: str) -> dict[str, Any]:
        config = self.config
        common = {"act": config.act, "norm_eps": config.norm_eps, "expand_ratio": config.expand_ratios[index]}
        own = {"convolution": {"fewer_norm": config.fewer_norm[index]}, "linear_attention": self.attention_options}
        return common | own[kind] if kind in own else {}


#: Names inside a block; the official code and timm have the same.
BLOCK_NAMES: tuple[Renaming, ...] = (
    (r"\.context_module\.main\.", ".attention."),
    (r"\.local_module\.main\.", ".local."),
    (r"\.main\.", "."),
    (r"\bqkv\.conv\.", "qkv."),
    (r"\baggreg\.", "aggregate."),
    (r"\bproj\.", "project."),
    (r"\b(inverted_conv|spatial_conv)\.", "expand."),
    (r"\bdepth_conv\.", "depthwise."),
    (r"\bpoint_conv\.", "project."),
)
_OFFICIAL_NAMES: tuple[Renaming, ...] = (
    (r"^backbone\.input_stem\.op_list\.", "backbone.stem."),
    (r"^backbone\.stages\.(\d+)\.op_list\.", r"backbone.stages.\1."),
    (r"^head\.op_list\.0\.", "head.conv."),
    (r"^head\.op_list\.2\.linear\.", "head.hidden."),
    (r"^head\.op_list\.2\.norm\.", "head.norm."),
    (r"^head\.op_list\.3\.linear\.", "head.classifier."),
    (r"^head\.input_ops\.(\d+)\.(op_list\.0\.)?", r"head.laterals.\1."),
    (r"^head\.middle\.op_list\.", "head.blocks."),
    (r"^head\.output_ops\.0\.op_list\.(\d)\.conv\.(?=weight|bias)", r"head.output.\1."),
    (r"^head\.output_ops\.0\.op_list\.0\.norm\.", "head.expand.norm."),
    (r"^neck\.input_ops\.(\d+)\.op_list\.0\.", r"neck.fuse.laterals.\1."),  # the neck of EfficientViT-SAM's encoder
    (r"^neck\.middle\.op_list\.", "neck.fuse.blocks."),
    (r"^neck\.output_ops\.0\.op_list\.0\.conv\.", "neck.fuse.classifier."),
    (r"^norm\.", "neck.norm."),
)
_TIMM_NAMES: tuple[Renaming, ...] = (
    (r"^stem\.in_conv\.", "backbone.stem.0."),
    (r"^stem\.res(\d+)\.", lambda m: f"backbone.stem.{int(m[1]) + 1}."),
    (r"^stages\.(\d+)\.blocks\.", r"backbone.stages.\1."),
    (r"^head\.in_conv\.", "head.conv."),
    (r"^head\.classifier\.0\.", "head.hidden."),
    (r"^head\.classifier\.1\.", "head.norm."),
    (r"^head\.classifier\.4\.", "head.classifier."),
)
#: The official L and XL count the stem as stage 0.
_STEM_AS_STAGE: tuple[Renaming, ...] = (
    (r"^backbone\.stages\.0\.", "backbone.input_stem."),
    (r"^backbone\.stages\.(\d+)\.", lambda m: f"backbone.stages.{int(m[1]) - 1}."),
)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Convert a state dict of this family (official, timm's or ours) to our layout; return ``None`` for any other."""
    if any(".op_list." in key for key in state):
        if not any(key.startswith(("backbone.", "head.")) for key in state):
            state = {f"backbone.{key}": value for key, value in state.items()}
        if not any(key.startswith("backbone.input_stem.") for key in state):
            state = rename_keys(state, _STEM_AS_STAGE)
        state = rename_keys(state, _OFFICIAL_NAMES)
        # A head that expands before its classifier has two outputs there, of which the first is the expansion.
        widened = "head.output.1.weight" in state
        first = "head.expand.conv." if widened else "head.classifier."
        state = rename_keys(state, ((r"^head\.output\.0\.", first), (r"^head\.output\.1\.", "head.classifier.")))
    elif "stem.in_conv.conv.weight" in state:
        state = rename_keys(state, _TIMM_NAMES)
    elif not any(re.match(r"backbone\.stages\.\d+\.\d+\.local\.expand\.", key) for key in state):
        return None
    return rename_keys(state, BLOCK_NAMES)


def implied(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options that weights need: timm's epsilon of the attention, no attention, other scales."""
    options: dict[str, Any] = {}
    if any(key.endswith("stem.in_conv.conv.weight") for key in state):
        options["attention_eps"] = 1e-5
    attention = next((key.removesuffix("qkv.weight") for key in state if key.endswith(".attention.qkv.weight")), "")
    if attention:
        outputs, inputs = state[f"{attention}qkv.weight"].shape[:2]
        options |= {} if outputs > inputs else {"global_attention": False}
        kernels = re.compile(re.escape(attention) + r"aggregate\.\d+\.0\.weight$")
        scales = [state[key].shape[-1] for key in state if kernels.match(key)]
        default = [3] if any(key.startswith("backbone.stages.4.") for key in state) else [5]  # of XL, and of the others
        options |= {} if scales == default else {"scales": scales}
    return options


def _b_heads(width: int, depth: int) -> dict[str, dict[str, Any]]:
    common = {"width": width, "depth": depth, "expand_ratio": 4, "act": nn.Hardswish}
    return {
        "cityscapes": {**common, "final_expand": 4, "num_classes": 19},
        "ade20k": {**common, "final_expand": None, "num_classes": 150},
    }


def _l_heads(cityscapes_depth: int) -> dict[str, dict[str, Any]]:
    common = {"block": FusedInvertedResidual, "act": _GELU, "norm_eps": 1e-7}
    cityscapes = {"width": 256, "depth": cityscapes_depth, "expand_ratio": 1, "final_expand": None, "num_classes": 19}
    ade20k = {"width": 128, "depth": 3, "expand_ratio": 4, "final_expand": 8, "num_classes": 150}
    return {"cityscapes": {**cityscapes, **common}, "ade20k": {**ade20k, **common}}


#: Published segmentation heads. B0 has only the one for Cityscapes; L0, L3 and XL have none.
_SEGMENT_HEADS = {
    "efficientvit_b0": {"cityscapes": _b_heads(32, 1)["cityscapes"]},
    "efficientvit_b1": _b_heads(64, 3),
    "efficientvit_b2": _b_heads(96, 3),
    "efficientvit_b3": _b_heads(128, 3),
    "efficientvit_l1": _l_heads(3),
    "efficientvit_l2": _l_heads(5),
}
#: Published necks of EfficientViT-SAM (arXiv 2402.05008): depth and expansion ratio.
_NECKS = {
    "efficientvit_l0": (4, 1),
    "efficientvit_l1": (8, 1),
    "efficientvit_l2": (12, 1),
    "efficientvit_xl0": (6, 4),
    "efficientvit_xl1": (12, 4),
}
_README = "official README"
_B0_CITYSCAPES_SHA256 = "923d6fdd5e93640cc0c2f3f213764f34e80b477cd98a6b294d870ea6df5acc50"


def _in1k(name: str, top1: Mapping[int, float], source: str = _README) -> tuple[Published, ...]:
    """ImageNet-1k classifiers by image size: the authors' weights as timm republishes them."""
    return tuple(
        from_timm(f"efficientvit_{name}", f"r{size}_in1k", value, size, source) for size, value in top1.items()
    )


def _official(name: str, size: int, top1: float) -> Published:
    """ImageNet-1k classifier of a size that timm does not republish, from the authors' repository."""
    file = f"efficientvit_{name}_r{size}.pt"
    return Published(f"r{size}_in1k", "top-1", top1, str(size), _README, repo="han-cai/efficientvit-cls", file=file)


def _segmenter(name: str, data: str, miou: float, sha256: str = "") -> Published:
    size = {"cityscapes": "1024x2048", "ade20k": "short side 512"}[data]
    file = f"efficientvit_seg_{name}_{data}.pt"
    return Published(data, "mIoU", miou, size, _README, "segment", "han-cai/efficientvit-seg", file, sha256)


def _segmenters(name: str, cityscapes: float, ade20k: float) -> tuple[Published, ...]:
    return _segmenter(name, "cityscapes", cityscapes), _segmenter(name, "ade20k", ade20k)


def _sam(name: str, mean_ap: float) -> Published:
    """Promptable model; the figure is the mask AP on COCO with the boxes of a detector as prompts."""
    repo, file = "mit-han-lab/efficientvit-sam", f"efficientvit_sam_{name}.pt"
    return Published("sam", "mAP", mean_ap, "512" if name[0] == "l" else "1024", _README, "prompt", repo, file)


_PUBLISHED = {
    "efficientvit_l0": (_sam("l0", 45.7),),
    "efficientvit_xl0": (_sam("xl0", 47.5),),
    "efficientvit_xl1": (_sam("xl1", 47.8),),
    "efficientvit_b0": (
        *_in1k("b0", {224: 71.408}, "timm results"),
        _segmenter("b0", "cityscapes", 75.653, _B0_CITYSCAPES_SHA256),
    ),
    "efficientvit_b1": (
        *_in1k("b1", {224: 79.390, 256: 79.918, 288: 80.410}),
        *_segmenters("b1", cityscapes=80.547, ade20k=42.840),
    ),
    "efficientvit_b2": (
        *_in1k("b2", {224: 82.100, 256: 82.698, 288: 83.086}),
        *_segmenters("b2", cityscapes=82.073, ade20k=45.941),
    ),
    "efficientvit_b3": (
        *_in1k("b3", {224: 83.468, 256: 83.806, 288: 84.150}),
        *_segmenters("b3", cityscapes=83.016, ade20k=49.013),
    ),
    "efficientvit_l1": (
        *_in1k("l1", {224: 84.484}),
        _sam("l1", 46.2),
        *_segmenters("l1", cityscapes=82.716, ade20k=49.191),
    ),
    "efficientvit_l2": (
        *_in1k("l2", {224: 85.050, 256: 85.366, 288: 85.630}),
        _official("l2", 320, 85.734),
        *_in1k("l2", {384: 85.978}),
        *_segmenters("l2", cityscapes=83.228, ade20k=50.702),
        _sam("l2", 46.6),
    ),
    "efficientvit_l3": (
        *_in1k("l3", {224: 85.814, 256: 85.938}),
        _official("l3", 288, 86.070),
        *_in1k("l3", {320: 86.230, 384: 86.408}),
    ),
}


def variant(name: str, config: Config) -> Variant:
    """Describe the models that can be built from ``config``."""
    depth, expand_ratio = _NECKS.get(name, (0, 0))
    neck = {"depth": depth, "expand_ratio": expand_ratio, "norm_eps": 1e-6, "backbone_eps": 1e-6}
    return Variant(
        backbone=partial(EfficientViT, config),
        classifier=partial(WideClassifier, dims=config.classifier_dim, act=config.act, norm_eps=config.norm_eps),
        segment_heads=_SEGMENT_HEADS.get(name, {}),
        prompt=neck if depth else {},
        crop_ratio=0.95 if name in ("efficientvit_b0", "efficientvit_b1") else 1.0,
        published=_PUBLISHED.get(name, ()),
    )


_FAMILY = registry.register(
    Family(
        name="efficientvit",
        paper="arXiv 2205.14756",
        variants={name: variant(name, config) for name, config in CONFIGS.items()},
        convert=convert,
        implied=implied,
        options={
            "scales": "kernel sizes of the attention branches in addition to the identity, default (5,), XL (3,)",
            "attention_eps": "epsilon of the attention normaliser, default 1e-15 (timm: 1e-5)",
            "global_attention": "False: the paper's ablation without attention; default True",
            "stem_stride": STEM_STRIDE,
            "output_stride": OUTPUT_STRIDE,
            "embed_dim": "channels of the stem and of each stage",
            "depths": "blocks of the stem and of each stage, as in Config",
        },
        licence="Apache-2.0",
    )
)


def register_variant(name: str, config: Config) -> None:
    """Add an EfficientViT of your own configuration under ``name``, for this process.

    ``create_model(name)``, training, identification and export then work as for the published variants. A process that
    loads a checkpoint of it must register it first; exported files need no registration.

    Raises:
        ConfigError: a model of this name exists, or the name has a dot.
    """
    registry.check_new_name(name)
    CONFIGS[name] = config
    _FAMILY.variants[name] = variant(name, config)
