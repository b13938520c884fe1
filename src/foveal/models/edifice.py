"""The vision models of Edifice, a library for Elixir, under its names and with its options.

``EfficientViT`` and ``MambaVision`` have what Edifice's modules of these names have: ``build``, ``output_size``,
``build_backbone``, ``feature_size``, ``input_shape``, and the second one ``tiny_config``, ``small_config`` and
``base_config``. As ``edifice_efficient_vit`` and ``edifice_mamba_vision`` they are models like all others.

What the library's code computes is not what its pages describe: no head cascades or has channels of its own, nothing
is downsampled, and MambaVision's last norm makes its features almost independent of the image. The models here are
those of the pages; ``compat=True`` gives the code's numbers. ``docs/edifice.md`` has every difference.

Source: Edifice 0.2.0 (MIT licence), documentation and behaviour; its published models have no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import build_config
from ..errors import InputError
from ..info import ModelInfo, attach
from ..layers.conv import LayerNorm2d
from ..layers.resample import ceil_div
from ..registry import Family, Variant, register
from . import edifice_efficientvit, edifice_mambavision
from .edifice_efficientvit import EfficientViTBackbone, EfficientViTConfig
from .edifice_mambavision import MambaVisionBackbone, MambaVisionConfig


class WidthNorm(nn.LayerNorm):
    """Layer norm over the width of ``(B, C, H, W)``: what a norm over the last axis is on channels-first maps.

    Raises:
        InputError: the map has another width than the norm has weights.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__(ceil_div(image_size, 32))
        self.image_size = image_size

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[-1] != self.normalized_shape[0]:
            raise InputError(
                f"compat=True has weights for images of {self.image_size}x{self.image_size} alone: resize to that, "
                "give another image_size, or build without compat"
            )
        return super().forward(input)


class PooledHead(nn.Module):
    """Norm, average over positions, classifier: ``(B, C, H, W) -> (B, num_classes)``.

    ``num_classes=0`` returns the pooled features, ``(B, C)``.

    Args:
        in_chans: channels of the map.
        num_classes: outputs.
        norm: norm of the map; default: layer norm over its channels.
    """

    def __init__(self, in_chans: int, num_classes: int = 1000, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.num_features = in_chans
        self.norm = norm or LayerNorm2d(in_chans, eps=1e-5)
        self.classifier = nn.Linear(in_chans, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.norm(x), 1).flatten(1))


def _mambavision_head(
    in_chans: int, num_classes: int, *, image_size: int = 224, compat: bool = False
) -> PooledHead:
    return PooledHead(in_chans, num_classes, WidthNorm(image_size) if compat else None)


class EfficientViT(nn.Module):
    """Edifice's EfficientViT: ``(B, in_channels, H, W) -> (B, feature_size)``, or ``(B, num_classes)`` logits.

    Patches; stages of linear attention in O(N) with cascaded heads (each projects its own channel split, ``elu(x) + 1``
    features) and feed-forward networks with a depthwise convolution on the token grid; between stages 2x2 tokens merge
    into one of twice the channels; layer norm, average.

    With ``compat=True``, as in Edifice's code: full projections, no cascade; in place of the depthwise convolution a
    fixed blur along the flattened tokens; stages that change the channels only.

    Args:
        **options: fields of :class:`EfficientViTConfig`.

    Raises:
        ConfigError: an unknown option (the message has the nearest), a wrong type or value.
    """

    name: ClassVar[str] = "edifice_efficient_vit"
"""
