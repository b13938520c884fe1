"""Muon: momentum whose update is the nearest orthogonal matrix, for matrices; AdamW for all other parameters.

Sources: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024 (kellerjordan.github.io); the
scale of the update, with which AdamW's learning rate fits, is that of Liu et al., arXiv 2502.16982, section 2.2. For
matrices it computes what ``torch.optim.Muon`` does (torch 2.9), which takes neither convolutions nor other parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration
_ITERATIONS = 5
_EPS = 1e-7


class Muon(torch.optim.AdamW):
    """Muon for parameters of two dimensions, and for convolutions that mix channels, as matrices of their filters.

    Args:
        groups: groups of parameters.
        lr: learning rate; those of AdamW fit.
        momentum: share of the momentum that is kept in a step, 0..1.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], lr: float, momentum: float) -> None:
        split = []
        for group in groups:
            for matrix in (False, True):
                chosen = [p for p in group["params"] if is_matrix(p) == matrix]
                split.append({**group, "params": chosen, "matrix": matrix, "momentum": momentum})
        super().__init__(split, lr=lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        every = self.param_groups
        self.param_groups = [group for group in every if not group["matrix"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            for parameter in group["params"] if group["matrix"] else ():
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())  # AdamW expects it in states that it loads
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["step"] += 1
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonal(gradient.lerp(momentum, group["momentum"]).flatten(1))
        rate = group["lr"] * 0.2 * math.sqrt(max(update.shape))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.view(parameter.shape), alpha=-rate)


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter mixes channels: neither a vector nor the filters of a depthwise convolution."""
    return parameter.ndim > 1 and parameter.shape[0] > 1 and parameter.shape[1] > 1


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest orthogonal matrix, ``(A, B) -> (A, B)`` bfloat16: singular values become 0.5 to 1.5."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16()
    x = x.T if tall else x
    x = x / x.norm().clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
