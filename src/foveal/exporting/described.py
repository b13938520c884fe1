"""Write the descriptions of :mod:`foveal.streaming.stored`, with which the base install computes images in pieces."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import ExportError
from ..factory.load_model import load_model
from ..files import atomic_write
from ..layers.linear_attention import MultiScaleLinearAttention
from ..prediction.file_network import Settings
from ..prediction.onnx_pieces import OnnxExecutor
from ..streaming.geometry import power_of_two_below
from ..streaming.operations import (
    Attending,
    Cropping,
    Enlarging,
    KeySums,
    Padding,
    Pointwise,
    Shuffling,
    Sliding,
)
from ..streaming.passes import plan
from ..streaming.regions import Region
from ..streaming.run import run
from ..streaming.steps import SOURCE, Program, Step
from ..streaming.stored import stored_program
from ..streaming.trace import derive
from ..weights.arrays import read_arrays

_SIZES = ((131, 197), (160, 96))  # of images for which a description is compared with its model
_SIDE = 64  # of their pieces, a multiple of every stride
_TOLERANCE = 1e-4  # of the largest value
_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Hardswish: "hardswish"}
_PART = re.compile(r"(.*)\.(key|querie|query)(s|_scales\.(\d+)\.(\d+))$")  # of a split attention


def write_description(ref: str, weights: Path, file: Path) -> Path:
    """Write the description of a model, which gives the same results in pieces as the model for the whole image.

    Args:
        ref: name and tag of the weights.
        weights: their checkpoint.
        file: to write.

    Returns:
        The file.

    Raises:
        ExportError: a step that descriptions do not have, or results that differ from the model's.
    """
    model = load_model(ref).eval()
    options = {"upsample": False} if hasattr(model, "stride") else {}
    description = _Describer(model, derive(model, *_SIZES[0], **options)).describe()
    _compare(description, model, options, weights)
    lines = ",\n".join(json.dumps(entry) for entry in description.pop("steps"))
    with atomic_write(file) as temporary:
        temporary.write_bytes(f'{json.dumps(description)[:-1]}, "steps": [\n{lines}\n]}}\n'.encode())
    return file


class _Describer:
    """Describes the steps of a program; norms and activations become parts of the convolutions before them."""

    def __init__(self, model: nn.Module, program: Program) -> None:
        self.model, self.program = model, program
        self.keys = {id(tensor): key for key, tensor in model.state_dict(keep_vars=True).items()}
        self.names: dict[str, str] = {SOURCE: SOURCE}  # by step: the step of the description that has its result
        self.entries: dict[str, dict[str, Any]] = {}

    def describe(self) -> dict[str, Any]:
        """The description."""
        for step in self.program.steps.values():
            if step.name != SOURCE:
                self._visit(step)
        outputs = [self.names[name] for name in self.program.outputs]
        least: int = self.model.get_submodule("backbone").min_size  # pyright: ignore[reportAssignmentType]
        steps = list(self.entries.values())
        return {"min_size": least, "channels": self.program.channels, "outputs": outputs, "steps": steps}

    def _visit(self, step: Step) -> None:
        function: Any = step.operation.function if isinstance(step.operation, Pointwise) else None
        before = self.entries.get(self.names[step.inputs[0]], {})
        joins = before.get("op") == "conv" and len(self.program.users()[step.inputs[0]]) == 1
        if isinstance(function, nn.Identity):
            self.names[step.name] = self.names[step.inputs[0]]
        elif isinstance(function, nn.BatchNorm2d) and joins and "act" not in before and "norm" not in before["of"]:
            tensors = (function.weight, function.bias, function.running_mean, function.running_var)
            before["of"] |= {"norm": [self.keys[id(tensor)] for tensor in tensors], "eps": function.eps}
            self.names[step.name] = before["name"]
        elif type(function) in _ACTIVATIONS and joins and "act" not in before:
            before["act"] = _ACTIVATIONS[type(function)]  # pyright: ignore[reportArgumentType]
            self.names[step.name] = before["name"]
        else:
            name = self.names[step.name] = f"step{len(self.entries):03d}"
            inputs = [self.names[each] for each in step.inputs]
            start = {"name": name, "in": inputs, "channels": step.channels}
            self.entries[name] = start | self._entry(step, function)

    def _entry(self, step: Step, function: Any) -> dict[str, Any]:
        """What the description says of a step besides its name, inputs and channels."""
        operation = step.operation
        if isinstance(operation, Sliding) or isinstance(function, nn.Conv2d):
            return self._convolution(step, operation.module if isinstance(operation, Sliding) else function)
        if isinstance(step.reduction, KeySums):
            return {"op": "sum_keys", "head_dim": step.reduction.head_dim}
        if isinstance(function, Attending):
            assert step.extent is not None
            eps = function.eps / power_of_two_below(step.extent.places)
            return {"op": "attend", "head_dim": function.head_dim, "eps": eps}
        if isinstance(operation, Padding) and operation.replicate:
            multiple = self.model.get_submodule("").multiple_of
            return {"op": "pad", "multiple": multiple}
        if isinstance(operation, Cropping):
            return {"op": "crop"}
        if isinstance(operation, Enlarging):
            return {"op": "enlarge", "factor": operation.factor, "a": operation.module.a}
        if isinstance(operation, Shuffling):
            return {"op": "shuffle", "factor": operation.factor}
        if function in (operator.add, operator.iadd, torch.add) and len(step.inputs) == 2:
            return {"op": "add"}
        if function is not None and len(step.inputs) == 1:
            addend = float(function(torch.zeros(1)))
            values = torch.linspace(-4, 4, 999)
            if torch.equal(function(values), values + addend):
                return {"op": "shift", "addend": addend}
        raise ExportError(f"{step.layer or step.name}: no step of a description computes it")

    def _convolution(self, step: Step, module: Any) -> dict[str, Any]:
        if type(module) is not nn.Conv2d:
            raise ExportError(f"{step.layer}: no step of a description computes a {type(module).__name__}")
        window = {"kernel": module.kernel_size, "stride": module.stride, "dilation": module.dilation}
        if any(rows != columns for rows, columns in window.values()):
            raise ExportError(f"{step.layer}: a description has convolutions with equal sides alone")
        sides = {key: rows for key, (rows, _) in window.items()}
        return {"op": "conv", **sides, "groups": module.groups, "of": self._weights(step, module)}

    def _weights(self, step: Step, module: nn.Conv2d) -> dict[str, Any]:
        """Where the weights of a convolution are in the checkpoint."""
        found = _PART.match(step.layer)
        owner = self.model.get_submodule(found[1]) if found else None
        if found is None or not isinstance(owner, MultiScaleLinearAttention):
            of = {"weight": self.keys[id(module.weight)]}
            return of if module.bias is None else of | {"bias": self.keys[id(module.bias)]}
        source: Any = owner.qkv if found[4] is None else list(owner.aggregate[int(found[4])].children())[int(found[5])]
        of = {"weight": self.keys[id(source.weight)]}
        if source.bias is not None:
            of["bias"] = self.keys[id(source.bias)]
        return of | {"rows": [1, 2] if found[2] == "key" else [0], "head_dim": owner.head_dim}


def _compare(description: Mapping[str, Any], model: nn.Module, options: Mapping[str, Any], weights: Path) -> None:
    """Compare sizes, and results in pieces, with those of the model.

    Raises:
        ExportError: they differ.
    """
    arrays = read_arrays(weights, str(weights))
    for height, width in _SIZES:
        x = torch.rand(1, description["channels"], height, width, generator=torch.Generator().manual_seed(0))
        program = stored_program(description, height, width, arrays)
        divided = plan(program, side=_SIDE)
        executor = OnnxExecutor(divided, arrays, Settings(weights.name))
        (found,) = run(divided, _Pixels(x.numpy()), executor=executor).arrays()
        with torch.inference_mode():
            expected = model(x, **options)[0].numpy()
        if found.shape != expected.shape or not np.abs(found - expected).max() <= _TOLERANCE * np.abs(expected).max():
            raise ExportError(f"{weights.name}: the description differs from the model")


class _Pixels:
    """An image in memory, see :class:`foveal.streaming.run.Image`."""

    has_gaps = False

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values

    def read(self, region: Region) -> NDArray[np.float32]:
        return self.values[:, :, region.top : region.bottom, region.left : region.right]

    def valid(self, region: Region) -> NDArray[np.bool_]:
        return np.ones((region.height, region.width), bool)
