"""What tests of the selective scan share: arguments, and one call of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foveal.layers.scan import selective_scan

COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler here")
ROOT = Path(__file__).parents[2]


def tensors(
    batch: int,
    channels: int,
    length: int,
    states: int,
    groups: int = 1,
    seed: int = 0,
    shift: float = 0,
    scale: float = 1,
) -> dict[str, Tensor]:
    """All arguments of the scan, float64; the steps are softplus(scale * normal + shift)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return {
        "u": normal(batch, channels, length),
        "delta": scale * normal(batch, channels, length) + shift,
        "A": -torch.arange(1.0, states + 1) * torch.exp(0.1 * normal(channels, states)),
        "B": normal(batch, groups, states, length),
        "C": normal(batch, groups, states, length),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": 0.1 * normal(channels),
    }


def scan(given: dict[str, Any], method: str, dtype: torch.dtype = torch.float64, softplus: bool = True) -> Any:
    """``y`` and the last state."""
    cast = {name: tensor if tensor is None else tensor.to(dtype) for name, tensor in given.items()}
    return selective_scan(**cast, delta_softplus=softplus, return_last_state=True, method=method)


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


def rounded(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers as float32 has them, so that both precisions compute from the same."""
    return {name: tensor.float().double() for name, tensor in given.items()}


def gradients(given: dict[str, Tensor], method: str, dtype: torch.dtype, softplus: bool = True) -> list[Tensor]:
    """Of a random sum of both outputs, for all arguments."""
    leaves = {name: tensor.to(dtype).requires_grad_() for name, tensor in given.items()}
    y, state = scan(leaves, method, dtype, softplus)
    generator = torch.Generator().manual_seed(1)
    weights = (torch.randn(v.shape, dtype=torch.float64, generator=generator).to(dtype) for v in (y, state))
    loss = sum(((v * w).sum() for v, w in zip((y, state), weights, strict=True)), torch.zeros(()))
    return list(torch.autograd.grad(loss, list(leaves.values())))
