"""Segmentation and Segment Anything models of transformers, classifiers of timm, and MobileSAM, with random weights.

They are built from their configurations; nothing is downloaded. transformers is in the dependency group
``benchmarks``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

import foveal

#: Channels of the stages and of the decoder, and depths, of SegFormer B0 to B5 (arXiv 2105.15203, table 6).
_WIDE = (64, 128, 320, 512)
_SEGFORMERS = {
    "b0": ((32, 64, 160, 256), 256, (2, 2, 2, 2)),
    "b1": (_WIDE, 256, (2, 2, 2, 2)),
    "b2": (_WIDE, 768, (3, 4, 6, 3)),
    "b3": (_WIDE, 768, (3, 4, 18, 3)),
    "b4": (_WIDE, 768, (3, 8, 27, 3)),
    "b5": (_WIDE, 768, (3, 6, 40, 3)),
}
#: Width, depth, heads and blocks with global attention of SAM's image encoders (arXiv 2304.02643, appendix A).
_SAMS = {"vit_b": (768, 12, 12, (2, 5, 8, 11)), "vit_h": (1280, 32, 16, (7, 15, 23, 31))}


class FirstOutput(nn.Module):
    """A model of transformers that returns one tensor instead of a record."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.model(x), self.name)


def segformer(variant: str, num_classes: int = 19) -> nn.Module:
    """SegFormer, whose logits have stride 4."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation  # pyright: ignore[reportMissingImports]

    widths, decoder, depths = _SEGFORMERS[variant]
    options: dict[str, Any] = {"hidden_sizes": list(widths), "depths": list(depths), "num_labels": num_classes}
    config: Any = SegformerConfig(decoder_hidden_size=decoder, **options)
    return FirstOutput(SegformerForSemanticSegmentation(config), "logits")


def mit_b1() -> nn.Module:
    """SegFormer-B1's encoder alone; its last map."""
    from transformers import SegformerConfig, SegformerModel  # pyright: ignore[reportMissingImports]

    config: Any = SegformerConfig(hidden_sizes=list(_WIDE))
    return FirstOutput(SegformerModel(config), "last_hidden_state")


def sam(variant: str) -> nn.Module:
    """Segment Anything's image encoder: ``(1, 3, 1024, 1024)`` to ``(1, 256, 64, 64)``."""
    from transformers import SamVisionConfig, SamVisionModel  # pyright: ignore[reportMissingImports]

    width, depth, heads, global_blocks = _SAMS[variant]
    config: Any = SamVisionConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        global_attn_indexes=list(global_blocks), mlp_dim=4 * width,
        initializer_range=0.02,  # the default, 1e-10, leads to numbers near the smallest ones, which are slow
    )  # fmt: skip
    return FirstOutput(SamVisionModel(config), "last_hidden_state")


def mobile_sam() -> nn.Module:
    """MobileSAM's image encoder, TinyViT (arXiv 2306.14289), which Foveal has as well."""
    model: Any = foveal.create_model("tinyvit_5m", "prompt")
    return model.image_encoder


def classifier(name: str, **options: Any) -> nn.Module:
    """A classifier of timm."""
    import timm

    return timm.create_model(name, **options)


# Names for `foveal bench benchmarks.peers.published:NAME`.
segformer_b0: Callable[[], nn.Module] = partial(segformer, "b0")
segformer_b1: Callable[[], nn.Module] = partial(segformer, "b1")
segformer_b2: Callable[[], nn.Module] = partial(segformer, "b2")
segformer_b3: Callable[[], nn.Module] = partial(segformer, "b3")
segformer_b4: Callable[[], nn.Module] = partial(segformer, "b4")
segformer_b5: Callable[[], nn.Module] = partial(segformer, "b5")
sam_vit_b: Callable[[], nn.Module] = partial(sam, "vit_b")
sam_vit_h: Callable[[], nn.Module] = partial(sam, "vit_h")
timm_efficientvit_b1: Callable[[], nn.Module] = partial(classifier, "efficientvit_b1")
timm_efficientvit_b3: Callable[[], nn.Module] = partial(classifier, "efficientvit_b3")
timm_efficientvit_l1: Callable[[], nn.Module] = partial(classifier, "efficientvit_l1")
timm_efficientvit_m5: Callable[[], nn.Module] = partial(classifier, "efficientvit_m5")
mobilevit_s: Callable[[], nn.Module] = partial(classifier, "mobilevit_s")
mobilenetv4_conv_small: Callable[[], nn.Module] = partial(classifier, "mobilenetv4_conv_small")
mobilenetv4_conv_medium: Callable[[], nn.Module] = partial(classifier, "mobilenetv4_conv_medium")
efficientnet_b0: Callable[[], nn.Module] = partial(classifier, "efficientnet_b0")
efficientnet_b1: Callable[[], nn.Module] = partial(classifier, "efficientnet_b1")
convnext_tiny: Callable[[], nn.Module] = partial(classifier, "convnext_tiny")
swin_tiny: Callable[[], nn.Module] = partial(classifier, "swin_tiny_patch4_window7_224")
deit_small: Callable[[], nn.Module] = partial(classifier, "deit_small_patch16_224", dynamic_img_size=True)
pvt_v2_b2: Callable[[], nn.Module] = partial(classifier, "pvt_v2_b2")
