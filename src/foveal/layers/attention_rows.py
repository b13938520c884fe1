"""Queries, keys and values among the rows of a weight that computes all three: of one head after the other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .linear_attention import MultiScaleLinearAttention


def select_rows(weight: Tensor, head_dim: int, parts: Sequence[int]) -> Tensor:
    """Select the rows of queries (0), keys (1) or values (2) of all heads, ``(heads * 3 * head_dim, ...)``."""
    return weight.unflatten(0, (-1, 3, head_dim))[:, list(parts)].flatten(0, 2)


def select_values(module: MultiScaleLinearAttention, name: str, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Reduce weights in ``state`` to those of the values, if ``module``, called ``name`` in it, has no attention.

    Weights of the module with attention, and those that Foveal wrote before without it, have queries and keys too.

    Returns:
        The keys that were reduced.
    """
    if module.global_attention:
        return ()
    own = {f"{name}.{key}": p for key, p in module.named_parameters() if not key.startswith("project.")}
    wider = [key for key, p in own.items() if key in state and state[key].shape == (3 * len(p), *p.shape[1:])]
    state |= {key: select_rows(state[key], module.head_dim, [2]) for key in wider}
    return tuple(wider)
