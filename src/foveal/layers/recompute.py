"""Gradient checkpointing: activations inside blocks of a model are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from .sync_norm import batch_norms


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Store no activations inside these blocks, each of which takes one input (arXiv 1604.06174)."""
    for block in blocks:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, context_fn=partial(_contexts, block)
        )  # partials, because a copy of the model copies the block in them, too


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first and the second forward pass of a block."""
    return nullcontext(), _freeze_running_statistics(block)


@contextmanager
def _freeze_running_statistics(block: nn.Module) -> Iterator[None]:
    """Keep batch norms from updating their running statistics: the first forward pass has done it for this batch."""
    norms = [(norm, norm.momentum, norm.num_batches_tracked) for norm in batch_norms(block)]
    counts = [None if count is None else count.clone() for _, _, count in norms]
    for norm, _, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for (norm, momentum, count), first_count in zip(norms, counts, strict=True):
            norm.momentum = momentum
            if count is not None and first_count is not None:
                count.copy_(first_count)
