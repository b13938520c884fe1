"""Models whose only input is an image, as one network: image in, logits or an enlarged image out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..prediction.input_limits import InputLimits
from ..task import TASKS
from ..tasks.segment import SegmentationModel
from .graph import Feed, Graph, Source


def image_graphs(source: Source) -> list[Graph]:
    """The network of a classifier, a segmentation model or a super-resolution model.

    Batch and sides are free within the limits of the source.
    """
    info, task, limits = source.info, TASKS[source.info.task], source.limits
    info = info.replace(notes=info.notes | limits.to_notes())
    scale = getattr(source.model, "scale", 1)
    ratio = f"*{scale}" if scale > 1 else f"/{info.output_stride}" if info.output_stride > 1 else ""
    sides = () if task.has_classes and not task.labels_pixels else ("", f"height{ratio}", f"width{ratio}")
    free = () if limits.fixed else ("height", "width")
    batch = "batch" if limits.batch is None else ""
    return [
        Graph(
            part="",
            network=ImageNetwork(source.folded, source.upsample),
            reference=ImageNetwork(source.model, source.upsample),
            info=info,
            example=(torch.zeros(limits.batch or 2, info.in_chans, *source.size),),
            inputs={"image": (batch, "", *free) if free else ()},
            outputs={task.output_name: (batch, *sides) if free else ()},
            feeds=_feeds(info.in_chans, source.size, limits),
            bounds=dict(zip(free, limits.size or (), strict=False)),
            has_classes=task.has_classes,
        )
    ]


class ImageNetwork(nn.Module):
    """The model's computation; that of a segmentation model with or without the upsampling."""

    def __init__(self, model: nn.Module, upsample: bool) -> None:
        super().__init__()
        self.model, self.upsample = model, upsample

    def forward(self, image: Tensor) -> Tensor:
        if not isinstance(self.model, SegmentationModel):
            return self.model(image)
        return self.model(image, upsample=self.upsample)


def _feeds(in_chans: int, size: tuple[int, int], limits: InputLimits) -> tuple[Feed, ...]:
    """Images to compare with: of the traced size and, where it is free, of an odd one, small, and the smallest.

    In the smallest, the last maps of most models have one position, which a tracer could take for a constant.
    """
    rng = np.random.default_rng(0)
    shapes = [(limits.batch or 1, *size)]
    if not limits.fixed:
        shapes += [
            (limits.batch or 2, size[0] // 2 + 5, min(size[1] + 13, limits.size[1]) if limits.size else size[1] + 13),
            (limits.batch or 1, 33, 64),
            (limits.batch or 1, 32, 32),
        ]
    return tuple(
        {"image": rng.standard_normal((batch, in_chans, height, width)).astype(np.float32)}
        for batch, height, width in shapes
    )
