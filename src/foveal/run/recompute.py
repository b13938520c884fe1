"""Gradient checkpointing: activations inside a backbone's stages are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import cast

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..registry import Backbone
from .sync_norm import batch_norms


def recompute_stages(model: nn.Module) -> None:
    """Keep no activations inside the stages of the backbone (arXiv 1604.06174)."""
    for stage in cast(Backbone, model.backbone).stages:
        again = partial(_untracked, stage)
        stage.forward = partial(
            checkpoint, stage.forward, use_reentrant=False, context_fn=lambda again=again: (nullcontext(), again())
        )


@contextmanager
def _untracked(stage: nn.Module) -> Iterator[None]:
    """Inside, batch norms leave their running statistics alone: they have counted this batch already."""
    norms = [(norm, norm.momentum, norm.num_batches_tracked) for norm in batch_norms(stage)]
    counted = [None if count is None else count.clone() for _, _, count in norms]
    for norm, _, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for (norm, momentum, count), before in zip(norms, counted, strict=True):
            norm.momentum = momentum
            if count is not None and before is not None:
                count.copy_(before)
