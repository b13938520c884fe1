"""The pairs of the headline comparison: our models, networks of others, and what was published for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from ...errors import ConfigError, nearest


class Peer(NamedTuple):
    """A network of others, with published figures.

    Attributes:
        ref: ``module:callable`` in the folder ``benchmarks`` of the repository.
        params: millions of weights.
        gmacs: billions of multiply-accumulates for one image of ``macs_size``.
        macs_size: (H, W).
        quality: score, in percent or dB.
        metric: of the score.
        source: of the figures.
    """

    ref: str
    params: float
    gmacs: float
    macs_size: tuple[int, int]
    quality: float | None = None
    metric: str = ""
    source: str = ""


def _seg(name: str, params: float, gmacs: float, miou: float, source: str) -> Peer:
    return Peer(f"benchmarks.peers.{name}", params, gmacs, (1024, 2048), miou, "mIoU, cityscapes", source)


def _cls(name: str, params: float, gmacs: float, top1: float, source: str) -> Peer:
    return Peer(f"benchmarks.peers.published:{name}", params, gmacs, (224, 224), top1, "top-1, ImageNet", source)


def _sam(name: str, params: float, gmacs: float, ap: float | None, source: str) -> Peer:
    return Peer(f"benchmarks.peers.published:{name}", params, gmacs, (1024, 1024), ap, "mAP, COCO", source)


def _sr(name: str, params: float, gmacs: float, psnr: float | None, size: tuple[int, int], source: str) -> Peer:
    return Peer(f"benchmarks.peers.super_resolution:{name}", params, gmacs, size, psnr, "PSNR, BSD100 x2", source)


_SEGFORMER, _SEGNEXT, _TABLE = "arXiv 2105.15203", "arXiv 2209.08575", "arXiv 2205.14756, table 7"
PEERS = {
    "SegFormer-B0": _seg("published:segformer_b0", 3.8, 125.5, 76.2, _SEGFORMER),
    "SegFormer-B1": _seg("published:segformer_b1", 13.7, 243.7, 78.5, _SEGFORMER),
    "SegFormer-B2": _seg("published:segformer_b2", 27.5, 717.1, 81.0, _SEGFORMER),
    "SegFormer-B3": _seg("published:segformer_b3", 47.3, 962.9, 81.7, _SEGFORMER),
    "SegFormer-B4": _seg("published:segformer_b4", 64.1, 1240.6, 82.3, _SEGFORMER),
    "SegFormer-B5": _seg("published:segformer_b5", 84.7, 1460.4, 82.4, _SEGFORMER),
    "SegNeXt-T": _seg("segnext:segnext_t", 4.3, 50.5, 79.8, _SEGNEXT),
    "SegNeXt-S": _seg("segnext:segnext_s", 13.9, 124.6, 81.3, _SEGNEXT),
    "SegNeXt-B": _seg("segnext:segnext_b", 27.6, 275.7, 82.6, _SEGNEXT),
    "SegNeXt-L": _seg("segnext:segnext_l", 48.9, 577.5, 83.2, _SEGNEXT),
    "DDRNet-23-slim": _seg("realtime:ddrnet_23_slim", 5.7, 36.3, 77.8, "arXiv 2101.06085"),
    "PIDNet-S": _seg("realtime:pidnet_s", 7.6, 47.6, 78.8, "arXiv 2206.02066"),
    "MobileSAM": _sam("mobile_sam", 5.74, 38.8, 38.7, "arXiv 2306.14289"),
    "SAM-ViT-B": _sam("sam_vit_b", 89.7, 486.0, None, ""),
    "SAM-ViT-H": _sam("sam_vit_h", 637.0, 2973.0, 46.5, "README of EfficientViT"),
    "BSRN": _sr("bsrn", 0.332, 73.0, 32.24, (360, 640), "arXiv 2205.14756"),
    # The paper prints the cost of 48 channels with the parameters of 52; both are timed.
    "SPAN": _sr("span_48", 0.481, 94.4, 32.22, (360, 640), "arXiv 2311.12770, of 48 or 52 channels"),
    "SPAN-52": _sr("span_52", 0.481, 94.4, 32.22, (360, 640), "arXiv 2311.12770, of 48 or 52 channels"),
    "FSRCNN": _sr("fsrcnn_of_rgb", 0.013, 6.0, 31.53, (360, 640), "arXiv 1608.00367"),
    "VapSR": _sr("vapsr", 0.342, 19.5, None, (180, 320), "arXiv 2210.05960, x4"),
    "IMDN": _sr("imdn", 0.694, 158.8, 32.19, (360, 640), "arXiv 1909.11856"),
    "SwinIR-light": _sr("swinir_light", 0.878, 195.6, 32.31, (360, 640), "arXiv 2108.10257"),
    "SwinIR": _sr("swinir_x2", 11.75, 2868.0, 32.53, (360, 640), "arXiv 2108.10257"),
    "Restormer": _sr("restormer", 26.13, 140.99, 32.31, (256, 256), "arXiv 2205.14756"),
    "timm's EfficientViT-B1": _cls("timm_efficientvit_b1", 9.1, 0.52, 79.25, "timm results"),
    "timm's EfficientViT-B3": _cls("timm_efficientvit_b3", 48.6, 3.95, 83.44, "timm results"),
    "timm's EfficientViT-L1": _cls("timm_efficientvit_l1", 52.7, 5.26, 84.46, "timm results"),
    "timm's EfficientViT-M5": _cls("timm_efficientvit_m5", 12.4, 0.52, 77.1, "arXiv 2305.07027"),
    "MobileViT-S": _cls("mobilevit_s", 5.6, 1.42, 78.4, "arXiv 2110.02178"),
    "MobileNetV4-Conv-S": _cls("mobilenetv4_conv_small", 3.8, 0.2, 73.8, "arXiv 2404.10518"),
    "MobileNetV4-Conv-M": _cls("mobilenetv4_conv_medium", 9.7, 0.84, 79.1, "timm results"),
    "EfficientNet-B0": _cls("efficientnet_b0", 5.3, 0.39, 77.1, "arXiv 1905.11946"),
    "ConvNeXt-T": _cls("convnext_tiny", 28.6, 4.46, 82.1, "arXiv 2201.03545"),
    "Swin-T": _cls("swin_tiny", 28.3, 4.36, 81.3, "arXiv 2103.14030"),
    "DeiT-S": _cls("deit_small", 22.1, 4.6, 79.8, "arXiv 2012.12877"),
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two networks that are compared.

    Attributes:
        group: key of :data:`GROUPS`.
        ours: reference of our model.
        peer: key of :data:`PEERS`.
        paper: how many times faster than the peer the paper says that ours is; ``None``: it does not say.
        remark: what the paper's figure is.
        reason: why the peer is ahead, where it is, found by profiling; for the page.
    """

    group: str
    ours: str
    peer: str
    paper: float | None = None
    remark: str = ""
    reason: str = ""


class Group(NamedTuple):
    """Pairs of one task.

    Attributes:
        task: for which our models by name are built.
        sizes: (H, W) of the images; ours at the first is measured first. ``None``: each model's own.
        peer_size: (H, W) of the peers' images, if they have one of their own.
        peer_scale: sides of the peers' images over those of ours, by peer.
        batches: images per run.
    """

    task: str
    sizes: tuple[tuple[int, int] | None, ...]
    peer_size: tuple[int, int] | None = None
    peer_scale: Mapping[str, int] = MappingProxyType({})
    batches: tuple[int, ...] = (1,)


GROUPS = {
    "segmentation": Group("segment", ((512, 1024), (1024, 2048))),
    "promptable": Group("prompt", (None,), peer_size=(1024, 1024)),
    # Restormer restores an image at its own size: enlarging with it means that it runs on the interpolated image.
    "super-resolution": Group("upscale", ((160, 240), (512, 512)), peer_scale={"Restormer": 2}),
    "classification": Group("classify", ((224, 224),), batches=(1, 16)),
}
_ORIN = "the largest ratios at 1024x2048, with TensorRT in float16 on a GPU"
_A100 = "ratios of images per second, with TensorRT in float16 on an A100"
_BSD = "ratios of milliseconds at 160x240, with TensorRT in float16 on an A100"
PAIRS = (
    Pair("segmentation", "efficientvit_b1", "SegFormer-B1", 13.9, _ORIN),
    Pair("segmentation", "efficientvit_b1", "SegNeXt-T", 6.2, _ORIN),
    Pair("segmentation", "efficientvit_b0", "SegFormer-B0", 13.9, _ORIN),
    Pair("segmentation", "efficientvit_b0", "DDRNet-23-slim"),
    Pair(
        "segmentation",
        "efficientvit_b1",
        "DDRNet-23-slim",
        reason="it has 1.4 times the products, nearly all in dense 3x3 convolutions, which take less time for each "
        "product than 1x1 and depthwise ones; in bfloat16 its time falls to half of that in float32, ours to about two "
        "thirds",
    ),
    Pair("segmentation", "efficientvit_b1", "PIDNet-S"),
    Pair("segmentation", "efficientvit_b2", "SegNeXt-S", 6.2, _ORIN),
    Pair("segmentation", "efficientvit_b2", "SegFormer-B3", 13.9, _ORIN),
    Pair("segmentation", "efficientvit_b3", "SegNeXt-B", 6.2, _ORIN),
    Pair("segmentation", "efficientvit_b3", "SegFormer-B5", 13.9, _ORIN),
    Pair("segmentation", "efficientvit_l1", "SegNeXt-B", 6.2, _ORIN),
    Pair("segmentation", "efficientvit_l1", "SegFormer-B5", 13.9, _ORIN),
    Pair("segmentation", "efficientvit_l2", "SegNeXt-L", 6.2, _ORIN),
    Pair("segmentation", "efficientvit_b2", "SegFormer-B2", 13.9, _ORIN),
    Pair("segmentation", "efficientvit_b3", "SegFormer-B4", 13.9, _ORIN),
    Pair("segmentation", "efficientvit_b0", "PIDNet-S"),
    Pair("segmentation", "efficientvit_b0", "SegNeXt-T"),
    Pair("promptable", "efficientvit_l0", "MobileSAM"),
    Pair("promptable", "tf_efficientnet_lite0.sam", "MobileSAM"),
    Pair("promptable", "efficientvit_l0", "SAM-ViT-B"),
    Pair("promptable", "efficientvit_l2", "SAM-ViT-H", 48.9, _A100),
    Pair("promptable", "efficientvit_l0", "SAM-ViT-H", 69.3, _A100),
    Pair("promptable", "efficientvit_xl1", "SAM-ViT-H", 16.5, _A100),
    Pair("promptable", "tf_efficientnet_lite0.sam", "SAM-ViT-B"),
    Pair("promptable", "tf_efficientnet_lite0.sam", "SAM-ViT-H"),
    Pair("promptable", "efficientvit_xl1", "SAM-ViT-B"),
    Pair(
        "promptable",
        "efficientvit_xl1",
        "MobileSAM",
        reason="it has 0.12 times the products, and 38.7 mAP in place of 47.8",
    ),
    Pair("super-resolution", "efficientvit_sr.x2", "SwinIR-light", 3.0, _BSD),
    Pair("super-resolution", "efficientvit_sr.x2", "BSRN", 1.4, _BSD),
    Pair("super-resolution", "efficientvit_sr.x2", "SPAN"),
    Pair("super-resolution", "efficientvit_sr.x2", "IMDN"),
    Pair("super-resolution", "efficientvit_sr.x2", "Restormer", 4.7, _BSD),
    Pair("super-resolution", "efficientvit_sr_w075", "Restormer", 6.4, _BSD.replace("160x240", "512x512")),
    Pair("super-resolution", "realtime_sr", "SPAN"),
    Pair("super-resolution", "efficientvit_sr.x2", "SwinIR"),
    Pair("super-resolution", "efficientvit_sr.x2", "SPAN-52"),
    Pair("super-resolution", "realtime_sr", "FSRCNN"),
    Pair("super-resolution", "efficientvit_sr.x4", "VapSR"),
    Pair("classification", "efficientvit_b1", "timm's EfficientViT-B1"),
    Pair("classification", "efficientvit_b1", "MobileNetV4-Conv-M"),
    Pair("classification", "efficientvit_b1", "MobileViT-S"),
    Pair("classification", "efficientvit_b1", "EfficientNet-B0", reason="it has 0.75 times the products"),
    Pair("classification", "efficientvit_b0", "MobileNetV4-Conv-S"),
    Pair("classification", "efficientvit_b1", "DeiT-S"),
    Pair("classification", "efficientvit_b2", "ConvNeXt-T"),
    Pair("classification", "efficientvit_b3", "timm's EfficientViT-B3"),
    Pair("classification", "efficientvit_l1", "timm's EfficientViT-L1"),
    Pair("classification", "efficientvit_m5", "timm's EfficientViT-M5"),
    Pair("classification", "mambavision_t", "ConvNeXt-T"),
    Pair("classification", "mambavision_t", "Swin-T"),
)


def pairs_of(groups: Sequence[str], models: Sequence[str] = ()) -> list[Pair]:
    """The pairs of some groups, in the order of their importance.

    Args:
        groups: keys of :data:`GROUPS`.
        models: only pairs with one of these; none: all.

    Raises:
        ConfigError: an unknown group, or a model that is in no pair of them.
    """
    for group in groups:
        if group not in GROUPS:
            raise ConfigError(f"unknown group {group!r}{nearest(group, GROUPS)}")
    pairs = [pair for pair in PAIRS if pair.group in groups]
    names = [name for pair in pairs for name in (pair.ours, pair.peer)]
    for model in models:
        if model not in names:
            raise ConfigError(f"{model!r} is in no pair of {', '.join(groups)}{nearest(model, names)}")
    return [pair for pair in pairs if not models or pair.ours in models or pair.peer in models]
