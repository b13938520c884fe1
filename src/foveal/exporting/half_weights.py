"""Round the weights of a network to numbers that float16 has, and correct biases by what that adds to every output.

Folded batch norms give some layers an input whose mean is large beside its variation. Rounding the weights behind it
adds a constant to the output: the product of the rounding errors and the mean. The layer's bias takes it back.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .graph import Feed

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


@torch.no_grad()
def with_half_weights(network: nn.Module, feed: Feed, smallest: int = 0) -> nn.Module:
    """A copy of a network whose convolutions and linear layers have weights that float16 holds.

    Args:
        network: in float32; it is not changed.
        feed: an input, on which the means of the layers' inputs are measured.
        smallest: layers with fewer weights keep theirs.
    """
    network = copy.deepcopy(network).eval()
    layers = [module for module in network.modules() if isinstance(module, _WEIGHTED)]
    sums: dict[nn.Module, _Sums] = {layer: _Sums() for layer in layers}
    hooks = [layer.register_forward_pre_hook(sums[layer].add) for layer in layers]
    network(*map(torch.from_numpy, feed.values()))
    for hook in hooks:
        hook.remove()
    sharing: dict[Tensor, list[nn.Module]] = {}  # layers may share their weights
    for layer in layers:
        sharing.setdefault(layer.weight, []).append(layer)
    for weight, readers in sharing.items():
        rounded = weight.half().float()
        if weight.numel() < smallest or not rounded.isfinite().all():
            continue
        for layer in readers:
            if isinstance(layer.bias, Tensor) and sums[layer].count:
                layer.bias.add_(_output_of_means(weight - rounded, sums[layer].large_means()))
        weight.copy_(rounded)
    return network


@dataclass
class _Sums:
    """Sums over all inputs of a layer, ``(C,)`` in float64: it may run several times."""

    count: int = 0
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Count the input of a call; a forward pre-hook."""
        values = inputs[0].reshape(-1, inputs[0].shape[-1]) if isinstance(layer, nn.Linear) else inputs[0]
        variance, mean = torch.var_mean(values, [axis for axis in range(values.ndim) if axis != 1], correction=0)
        count, variance, mean = values.numel() // values.shape[1], variance.double(), mean.double()
        self.count += count
        self.first += count * mean
        self.second += count * (variance + mean.square())

    def large_means(self) -> Tensor:
        """Mean of each channel that is larger than the channel's standard deviation; 0 for the others."""
        mean, square = torch.as_tensor(self.first) / self.count, torch.as_tensor(self.second) / self.count
        return torch.where(2 * mean.square() > square, mean, 0)  # square = mean^2 + variance


def _output_of_means(weight: Tensor, means: Tensor) -> Tensor:
    """What a layer without bias, ``(O, C / groups, ...)``, gives for an input of constant channels: ``(O,)``."""
    kernel = weight.double().flatten(2).sum(2) if weight.ndim > 2 else weight.double()
    groups = means.unflatten(0, (-1, kernel.shape[1]))
    return (kernel * groups.repeat_interleave(len(kernel) // len(groups), 0)).sum(1).to(weight.dtype)
