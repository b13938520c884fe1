"""Rename the keys of published checkpoints to ours, by patterns that each model file lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

#: A pattern, and what replaces each of its matches, as in ``re.sub``.
Renaming = tuple[str, str | Callable[[re.Match[str]], str]]


def rename_key(key: str, renamings: Sequence[Renaming]) -> str:
    """Apply every renaming in order, each to the result of the one before."""
    for pattern, replacement in renamings:
        key = re.sub(pattern, replacement, key)
    return key


def rename_keys(state: Mapping[str, Tensor], renamings: Sequence[Renaming]) -> dict[str, Tensor]:
    """Return the state dict with every key passed through :func:`rename_key`; tensors are the same objects."""
    return {rename_key(key, renamings): value for key, value in state.items()}
