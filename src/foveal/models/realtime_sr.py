"""Super-resolution for video rates: a short chain of re-parameterised convolutions; the design is our own.

The fastest networks of the NTIRE efficiency challenges are plain 3x3 convolutions whose parallel branches are merged
after training (SPAN, arXiv 2311.12770, and its successors); networks with attention do not win there. This network has
no attention either: six convolutions of 32 channels, one long residual, at most 150 thousand parameters in training and
half of that after fusion (``fused=True``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.conv import ConvNormAct
from ..layers.reparam import RepConv
from ..layers.resample import check_min_size
from .registry import Backbone, Family, FeatureInfo, Variant, register

WIDTH, DEPTH = 32, 6


class RealtimeSR(Backbone):
    """Backbone: ``(B, in_chans, H, W) -> [(B, 32, H, W)]``, at the image's own resolution.

    Args:
        in_chans: channels of the image.
        fused: build the form for inference, with one convolution per layer (see :mod:`foveal.layers.reparam`).

    Raises:
        InputError: a side of the image is below 8 pixels.
    """

    min_size = 8

    def __init__(self, in_chans: int = 3, *, fused: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNormAct(in_chans, WIDTH, 3, norm=False))
        self.stages = nn.ModuleList(RepConv(WIDTH, fused=fused) for _ in range(DEPTH))
        self.feature_info = [FeatureInfo(WIDTH, 1)]

    def forward(self, x: Tensor) -> list[Tensor]:
        check_min_size(x, self.min_size)
        x = shallow = self.stem(x)
        for stage in self.stages:
            x = F.relu(stage(x))
        return [shallow + x]


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return our layout unchanged, ``None`` for anything else: there are no published weights in another layout."""
    return dict(state) if "backbone.stages.0.conv.weight" in state and "backbone.stem.0.conv.bias" in state else None


def implied(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the option of a state dict: whether it is the fused form."""
    return {} if "backbone.stages.0.point.weight" in state else {"fused": True}


register(
    Family(
        name="realtime_sr",
        paper="ours; after SPAN (arXiv 2311.12770) and ECBSR",
        variants={"realtime_sr": Variant(RealtimeSR, tasks=("upscale",))},
        convert=convert,
        implied=implied,
        options={"fused": "True: the form for inference, with one convolution per layer; default False"},
        licence="Apache-2.0",
    )
)
