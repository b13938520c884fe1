"""Collect the steps of a plan from torch modules; the functions for each kind of module are in the lowering files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ExportError
from ..info import ModelInfo
from ..layers.conv import ConvNormAct
from ..layers.drop_path import DropPath
from .plan import Step

#: Adds the steps of a module to a builder: (builder, module, number of its input) -> number of its output.
Lowering = Callable[["Builder", Any, int], int]


class NotCoveredError(ExportError):
    """The model has a layer that the native engine does not compute; the message names it."""


class Builder:
    """Collects steps; every method that adds one returns the number of the map that it writes.

    Args:
        info: description of the model.
        lowerings: the function that adds the steps of a module, by its class.
    """

    def __init__(self, info: ModelInfo, lowerings: Mapping[type[nn.Module], Lowering]) -> None:
        self.info, self.lowerings = info, lowerings
        self.steps: list[Step] = []
        self.weights: dict[str, NDArray[np.float32]] = {}

    def lower(self, module: nn.Module, x: int) -> int:
        """Add the steps of a module that has one input and one output."""
        kind = type(module)
        if kind in self.lowerings:
            return self.lowerings[kind](self, module, x)
        if kind in (nn.Identity, nn.Dropout, DropPath):
            return x
        if isinstance(module, nn.Sequential) and kind is nn.Sequential:
            for part in module:
                x = self.lower(part, x)
            return x
        if act := ACTIVATIONS.get(kind):
            return self.add("affine", (x,), act=act(module), factor=1.0, addend=0.0)
        raise NotCoveredError(f"{self.info.model}: the native engine has no operation for {kind.__name__}")

    def add(
        self, kind: str, inputs: tuple[int, ...], *, residual: int | None = None, act: str = "none",
        arrays: Mapping[str, Tensor] | None = None, **params: Any,
    ) -> int:  # fmt: skip
        """Append a step."""
        out = len(self.steps) + 1
        names: dict[str, str] = {}
        for role, tensor in (arrays or {}).items():
            names[role] = f"{out}.{role}"
            self.weights[names[role]] = np.ascontiguousarray(tensor.detach().float().numpy())
        self.steps.append(Step(kind, inputs, out, residual, act, params, names))
        return out

    def image(self, *, multiple: int = 1, shift: float = 0.0) -> int:
        """The image as a map, plus ``shift``."""
        channels = self.info.in_chans
        arrays = {"scale": torch.ones(channels), "shift": torch.full((channels,), shift)}
        return self.add("input", (0,), arrays=arrays, multiple=multiple)

    def conv(
        self, conv: nn.Conv2d, x: int, *, act: str = "none", residual: int | None = None, same: bool = False,
        gate: int | None = None,
    ) -> int:  # fmt: skip
        """A convolution with its bias; of 1x1, it may first multiply each channel with its factor, the map ``gate``."""
        self.check_conv(conv, same=same)
        if gate is not None and (conv.kernel_size, conv.stride, conv.groups) != ((1, 1), (1, 1), 1):
            raise NotCoveredError(f"{self.info.model}: the native engine has no factors of channels for {conv}")
        arrays = {"weight": conv.weight, "bias": bias_of(conv)}
        window = {"kernel": conv.kernel_size[0], "stride": conv.stride[0], "padding": "same" if same else "symmetric"}
        if conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1:
            x = self.add("depthwise", (x,), act=act, arrays=arrays, **window)
            return x if residual is None else self.add("add", (x, residual))
        inputs = (x,) if gate is None else (x, gate)
        return self.add("conv", inputs, act=act, residual=residual, arrays=arrays, groups=conv.groups, **window)

    def check_conv(self, conv: nn.Conv2d, *, same: bool = False) -> None:
        """Refuse kernels that are not square, dilation, and other padding than half of the kernel or TensorFlow's."""
        kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
        square = kernel[0] == kernel[1] and stride[0] == stride[1] and conv.dilation == (1, 1)
        if not square or conv.padding_mode != "zeros" or not (same or padding == (kernel[0] // 2,) * 2):
            raise NotCoveredError(f"{self.info.model}: the native engine does not compute {conv}")

    def chain(
        self, kind: str, spatial: ConvNormAct, project: ConvNormAct | None, x: int, residual: int | None,
        *, expand: ConvNormAct | None = None,
    ) -> int:  # fmt: skip
        """An inverted residual, with or without its first or its last convolution, or a fused one, in one step."""
        parts = [part for part in (expand, spatial, project) if part is not None]
        for part in parts:
            self.check_folded(part)
            self.check_conv(part.conv, same=part.same)
        arrays = {"weight": spatial.conv.weight, "bias": bias_of(spatial.conv)}
        if project is not None:
            arrays |= {"project_weight": project.conv.weight, "project_bias": bias_of(project.conv)}
        params: dict[str, Any] = {
            "kernel": spatial.conv.kernel_size[0],
            "stride": spatial.conv.stride[0],
            "padding": "same" if spatial.same else "symmetric",
            "act": self.activation(spatial.act),
        }
        if expand is not None:
            arrays |= {"expand_weight": expand.conv.weight, "expand_bias": bias_of(expand.conv)}
            params["expand_act"] = self.activation(expand.act)
        elif kind == "separable":
            params["groups"] = 1
        act = "none" if project is None else self.activation(project.act)
        return self.add_chain(kind, x, residual, arrays, params, act)

    def add_chain(
        self, kind: str, x: int, residual: int | None, arrays: dict[str, Tensor], params: dict[str, Any],
        act: str = "none",
    ) -> int:  # fmt: skip
        """A step that has two activations: that of its last convolution, and "act" in ``params``."""
        out = self.add(kind, (x,), residual=residual, act=act, arrays=arrays)
        self.steps[-1] = replace(self.steps[-1], params=params)
        return out

    def linear(self, linear: nn.Linear, x: int, *, act: str = "none", residual: int | None = None) -> int:
        """A linear layer over the channels of every position."""
        arrays = {"weight": linear.weight[:, :, None, None], "bias": bias_of(linear)}
        common = {"kernel": 1, "stride": 1, "groups": 1, "padding": "symmetric"}
        return self.add("conv", (x,), act=act, residual=residual, arrays=arrays, **common)

    def conv_norm_act(
        self, module: ConvNormAct, x: int, *, residual: int | None = None, gate: int | None = None
    ) -> int:
        """A :class:`ConvNormAct` without activation if there is a residual."""
        self.check_folded(module)
        act = self.activation(module.act)
        if residual is not None and act != "none":
            return self.add("add", (self.conv_norm_act(module, x, gate=gate), residual))
        return self.conv(module.conv, x, act=act, residual=residual, same=module.same, gate=gate)

    def check_folded(self, module: ConvNormAct) -> None:
        """Refuse a norm that could not be folded."""
        if type(module.norm) is not nn.Identity:
            raise NotCoveredError(
                f"{self.info.model}: the native engine has no operation for {type(module.norm).__name__}"
            )

    def activation(self, module: nn.Module) -> str:
        """The name of an activation."""
        if type(module) is nn.Identity:
            return "none"
        if type(module) not in ACTIVATIONS:
            raise NotCoveredError(f"{self.info.model}: the native engine has no activation {type(module).__name__}")
        return ACTIVATIONS[type(module)](module)


#: Names of activations in plans, by module.
ACTIVATIONS: dict[type[nn.Module], Callable[[Any], str]] = {
    nn.ReLU: lambda _: "relu",
    nn.ReLU6: lambda _: "relu6",
    nn.Hardswish: lambda _: "hardswish",
    nn.GELU: lambda module: "gelu_tanh" if module.approximate == "tanh" else "gelu",
    nn.SiLU: lambda _: "silu",
    nn.Sigmoid: lambda _: "sigmoid",
    nn.Hardsigmoid: lambda _: "hardsigmoid",
    nn.Tanh: lambda _: "tanh",
    nn.Softplus: lambda _: "softplus",
}


def bias_of(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The bias of a layer, zeros if it has none."""
    return torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
