"""Gradient checkpointing: activations inside parts of a model are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from .sync_norm import batch_norms


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Keep no activations inside these parts of a model, each called with one input (arXiv 1604.06174)."""
    for block in blocks:
        again = partial(_untracked, block)
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, context_fn=lambda again=again: (nullcontext(), again())
        )


@contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    """Inside, batch norms leave their running statistics alone: they have counted this batch already."""
    norms = [(norm, norm.momentum, norm.num_batches_tracked) for norm in batch_norms(block)]
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
