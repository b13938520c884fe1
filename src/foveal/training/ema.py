"""The exponential moving average of the weights, which a run evaluates and saves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .distributed import distribute_like, full_tensor, local_tensor


class Averaged:
    """Exponential moving average of a model's parameters and buffers, sharded where they are.

    The first update takes the current values, the next ones have a decay that rises from 2/11 to ``decay``, so that the
    random initial weights have no influence. With 0 the average is the model itself.

    Args:
        model: the model that is averaged; its keys are those of ``outline``.
        outline: the same model without values, see :func:`meta_copy`.
        decay: share of the average that is kept in an update, 0..1.
    """

    def __init__(self, model: nn.Module, outline: nn.Module, decay: float) -> None:
        self.current, self.outline, self.decay = model, outline, decay
        self.count = 0
        self.values = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current values of the model to the average."""
        current = self.current.state_dict()
        pairs = [(local_tensor(value), local_tensor(self.values[key])) for key, value in current.items()]
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        floats = [(now, mean) for now, mean in pairs if mean.is_floating_point()]
        torch._foreach_lerp_([mean for _, mean in floats], [now for now, _ in floats], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for now, mean in pairs:
            if not mean.is_floating_point():
                mean.copy_(now)
        self.count += 1

    def model(self, device: torch.device) -> nn.Module:
        """Return a separate model with the averaged values, complete in every process; every process must call this."""
        model = copy.deepcopy(self.outline)
        model.load_state_dict({key: value.clone() for key, value in self.weights().items()}, assign=True)
        return model.to(device)

    def live_model(self, device: torch.device) -> nn.Module:
        """Return a model in evaluation mode that shares the averaged values, so that it changes with them.

        The values must not be sharded.
        """
        model = copy.deepcopy(self.outline)
        model.load_state_dict(self.values, assign=True)
        return model.to(device).eval().requires_grad_(False)

    def weights(self) -> dict[str, Tensor]:
        """Return the averaged values by the model's keys, unsharded; every process must call this."""
        return {key: full_tensor(value) for key, value in self.values.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the values under the keys of torch's AveragedModel."""
        return {"n_averaged": torch.tensor(self.count)} | {f"module.{key}": v for key, v in self.values.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the values from unsharded tensors.

        Raises:
            KeyError: a value is missing.
        """
        self.count = int(state["n_averaged"])
        for key, value in self.values.items():
            value.copy_(distribute_like(state[f"module.{key}"], value))


def meta_copy(model: nn.Module) -> nn.Module:
    """Copy ``model`` with parameters that have shapes but no values (torch's meta device)."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, empty)
