"""Compute the convolutions of a pass with the native engine: groups of steps become networks of their own.

All maps of a group are computed on one window; see :mod:`~.windows`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.builder import ACTIVATIONS, Builder, bias_of
from ..engine.engine import Engine
from ..engine.plan import Plan as EnginePlan
from ..engine.plan import check
from ..info import ModelInfo
from ..layers.packed import PackedConv2d
from .geometry import Geometry
from .operations import Enlarging, Pointwise, Sliding, Window
from .passes import Pass, Plan
from .regions import Extent, Region, hull
from .steps import Step
from .windows import common_window, part_of

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_MAX_READS = 8  # inputs of a network of the engine


@dataclass(frozen=True)
class Group:
    """Steps of a pass that are one network of the engine.

    Attributes:
        steps: in order.
        reads: the maps from outside that they read, in the order of the network's inputs.
        results: the maps that other steps read or that are kept, in the order of the network's results.
        extents: size of every map.
        engine: the network.
    """

    steps: tuple[Step, ...]
    reads: tuple[str, ...]
    results: tuple[str, ...]
    extents: Mapping[str, Extent]
    engine: Engine

    def window(self, regions: Mapping[str, Region]) -> Region:
        """The window, in pixels of the image, that holds the regions of its maps."""
        return common_window(self.extents, regions)

    def part(self, window: Region, name: str) -> Region:
        """What a window is of a map."""
        return part_of(window, self.extents[name])

    def run(self, windows: Mapping[str, Window], window: Region) -> dict[str, Window]:
        """Compute the results on a window of the image from windows that hold what it is of the maps that are read."""
        arrays = [
            np.ascontiguousarray(windows[name].cut(self.part(window, name)).float().numpy()) for name in self.reads
        ]
        found = self.engine.run(*arrays)[0]
        return {
            name: Window(torch.from_numpy(values), self.part(window, name))
            for name, values in zip(self.results, found, strict=True)
        }


Item = Step | Group


def reads_of(item: Item) -> tuple[str, ...]:
    """The maps and tensors that an item reads."""
    return item.inputs if isinstance(item, Step) else item.reads


def group_steps(plan: Plan, part: Pass, threads: int) -> list[Item]:
    """The steps of a pass in order, with those that follow each other and that the engine computes as groups.

    Args:
        plan: the passes.
        part: the pass.
        threads: of the engine.

    Raises:
        DependencyError: the engine cannot be built.
    """
    items: list[Item] = []
    run: list[Step] = []
    for step in part.steps:
        if _is_covered(step, plan):
            run.append(step)
            continue
        items += _grouped(plan, part, run, threads)
        items.append(step)
        run = []
    return items + _grouped(plan, part, run, threads)


def needs(plan: Plan, items: Sequence[Item], found: dict[str, list[Region]]) -> dict[Any, Region]:
    """The region of every map that a piece computes or reads, and by group the window in pixels.

    Args:
        plan: the passes.
        items: of a pass.
        found: what is kept or summed: regions by name.
    """
    steps = plan.program.steps
    regions: dict[Any, Region] = {}

    def visit(step: Step) -> None:
        if step.name not in found:  # the piece is beyond the end of its map
            return
        regions[step.name] = out = hull(found[step.name])
        assert step.operation is not None
        extents = [steps[name].extent for name in step.inputs]
        for name, need in zip(step.inputs, step.operation.needs(out, extents), strict=True):
            if need is not None:
                found.setdefault(name, []).append(need)

    for number, item in reversed(list(enumerate(items))):
        if isinstance(item, Step):
            visit(item)
            continue
        for step in reversed(item.steps):
            visit(step)
        if any(step.name in regions for step in item.steps):
            inside = {step.name: regions[step.name] for step in item.steps if step.name in regions}
            window = item.window(inside | {name: hull(found[name]) for name in item.reads if name in found})
            regions[number] = window
            for name in item.reads:
                found.setdefault(name, []).append(item.part(window, name))
    return {name: hull(each) for name, each in found.items()} | regions


def _is_covered(step: Step, plan: Plan) -> bool:
    """Whether the engine computes a step."""
    if any(plan.program.steps[name].extent is None for name in step.inputs) or step.extent is None:
        return False
    if step.dtype or step.extent.stride < 1:
        return False
    return _role(step.operation) != ""


def _role(operation: Geometry | None) -> str:
    """What the engine computes an operation as; empty: it does not."""
    if isinstance(operation, Enlarging):
        return "upsample"
    if isinstance(operation, Sliding):
        kernel, module = operation.kernel, operation.module
        square = kernel[0] == kernel[1] and operation.stride[0] == operation.stride[1] and operation.fill == 0
        halved = operation.padding == (kernel[0] // 2,) * 2 and kernel[0] % 2 == 1 and operation.dilation == (1, 1)
        return "conv" if isinstance(module, nn.Conv2d) and square and halved and _act(module) is not None else ""
    if not isinstance(operation, Pointwise):
        return ""
    function = operation.function
    if isinstance(function, nn.Conv2d):
        return "conv" if function.kernel_size == (1, 1) and _act(function) is not None else ""
    if function in _ADDITIONS:
        return "add"
    if isinstance(function, nn.Identity):
        return "same"
    return "act" if type(function) in ACTIVATIONS else ""


def _act(conv: nn.Conv2d) -> str | None:
    """The activation of a convolution as the engine names it; ``None``: it has none of this kind."""
    act = conv.act if isinstance(conv, PackedConv2d) else nn.Identity()
    if type(act) is nn.Identity:
        return "none"
    return ACTIVATIONS[type(act)](act) if type(act) in ACTIVATIONS else None


def _grouped(plan: Plan, part: Pass, run: list[Step], threads: int) -> list[Item]:
    """A group of these steps, or the steps if they are no work for the engine."""
    names = {step.name for step in run}
    reads = tuple(dict.fromkeys(name for step in run for name in step.inputs if name not in names))
    if not any(_role(step.operation) == "conv" for step in run) or not 1 <= len(reads) <= _MAX_READS:
        return list(run)
    outside = {name for step in part.steps if step.name not in names for name in step.inputs}
    outside |= set(part.keeps) | {each for name in part.sums for each in plan.program.steps[name].inputs}
    results = tuple(step.name for step in run if step.name in outside)
    extents = {name: extent for name in (*reads, *names) if (extent := plan.program.steps[name].extent) is not None}
    network = _Network(run, reads, results, {name: plan.program.steps[name].channels for name in reads})
    return [Group(tuple(run), reads, results, extents, Engine(network.plan(), threads))]


class _Network:
    """The steps of a group as operations of the engine, of which those that it computes faster together are joined."""

    def __init__(
        self, steps: Sequence[Step], reads: Sequence[str], results: Sequence[str], channels: Mapping[str, int]
    ) -> None:
        self.steps = {step.name: step for step in steps}
        self.results = results
        self.builder = Builder(ModelInfo(), {})
        self.maps: dict[str, int] = {}
        for number, name in enumerate(reads):
            self.maps[name] = self._input(number, channels[name])
        reading = [name for step in steps for name in step.inputs]
        self.chains: dict[str, tuple[str, ...]] = {}  # by 1x1 convolution: what is computed together with it
        self.once = {name for name in self.steps if reading.count(name) == 1 and name not in results}

    def plan(self) -> EnginePlan:
        """The network."""
        joined: set[str] = set()
        residuals: dict[str, tuple[str, str]] = {}  # by addition: the step that is joined to it, and the other map
        for step in reversed(list(self.steps.values())):
            if _role(step.operation) == "add" and (pair := self._joins(step)):
                residuals[step.name] = pair
                joined.add(pair[0])
        for name in reversed(list(self.steps)):
            if name not in joined - {each for each, _ in residuals.values()} and (before := self._before(name)):
                self.chains[name] = before
                joined |= set(before)
        for step in self.steps.values():
            if step.name not in joined:
                name, residual = residuals.get(step.name, (step.name, None))
                self.maps[step.name] = self._emit(self.steps[name], residual)
        for name in self.results:
            self.builder.add("output", (self.maps[name],), stride=0)
        plan = EnginePlan(self.builder.info, tuple(self.builder.steps), self.builder.weights)
        check(plan)
        return plan

    def _input(self, number: int, channels: int) -> int:
        if number:
            return self.builder.add("array", (), number=number)
        arrays = {"scale": torch.ones(channels), "shift": torch.zeros(channels)}
        return self.builder.add("input", (0,), arrays=arrays, multiple=1)

    def _joins(self, addition: Step) -> tuple[str, str] | None:
        """A step whose result an addition adds to another map, and that map; ``None``: none that can be joined."""
        first, second = addition.inputs
        for name, other in ((second, first), (first, second)):
            step = self.steps.get(name)
            if name == other or name not in self.once or step is None:
                continue
            if _role(step.operation) == "upsample":
                return name, other
            conv = _conv(step)
            if conv is not None and _act(conv) == "none" and not _is_depthwise(conv):
                return name, other
        return None

    def _before(self, name: str) -> tuple[str, ...]:
        """The steps that are computed together with a 1x1 convolution: a depthwise one, and an expansion before it."""
        conv = _conv(self.steps[name])
        if conv is None or conv.kernel_size != (1, 1):
            return ()
        (spatial,) = self.steps[name].inputs
        middle = _conv(self.steps[spatial]) if spatial in self.once else None
        if middle is None or not _is_depthwise(middle):
            return ()
        (expand,) = self.steps[spatial].inputs
        wide = _conv(self.steps[expand]) if expand in self.once else None
        if wide is None or conv.groups > 1 or wide.groups > 1 or wide.kernel_size != (1, 1):
            return (spatial,)
        return spatial, expand

    def _emit(self, step: Step, residual: str | None) -> int:
        """Add the operation of a step, with those that are joined to it, and return the number of its map."""
        inputs = tuple(self.maps[name] for name in step.inputs if name in self.maps)
        added = None if residual is None else self.maps[residual]
        role, operation = _role(step.operation), step.operation
        if role == "add":
            return self.builder.add("add", inputs)
        if role == "same":
            return inputs[0]
        if isinstance(operation, Enlarging):
            module = operation.module
            return self.builder.add("upsample", inputs, residual=added, factor=module.factor, a=module.a)
        if role == "act":
            assert isinstance(operation, Pointwise)
            act = self.builder.activation(cast(nn.Module, operation.function))
            return self.builder.add("affine", inputs, act=act, factor=1.0, addend=0.0)
        if before := self.chains.get(step.name):
            return self._chain(step, before, added)
        conv = _conv(step)
        assert conv is not None
        return self._conv(step, conv, inputs, added)

    def _conv(self, step: Step, conv: nn.Conv2d, inputs: tuple[int, ...], residual: int | None) -> int:
        window = {"kernel": conv.kernel_size[0], "stride": conv.stride[0], "padding": "symmetric"}
        arrays = {"weight": conv.weight, "bias": bias_of(conv)}
        act = _act(conv) or "none"
        if _is_depthwise(conv):
            return self.builder.add("depthwise", inputs, act=act, arrays=arrays, **window)
        kind = {"residual": residual, "groups": conv.groups, **window}
        return self.builder.add("conv", inputs, act=act, arrays=arrays, **kind)

    def _chain(self, step: Step, before: tuple[str, ...], residual: int | None) -> int:
        """A depthwise convolution between two of 1x1, or before one."""
        project, spatial = _conv(step), _conv(self.steps[before[0]])
        assert project is not None
        assert spatial is not None
        arrays: dict[str, Tensor] = {"weight": spatial.weight, "bias": bias_of(spatial)}
        arrays |= {"project_weight": project.weight, "project_bias": bias_of(project)}
        params: dict[str, Any] = {"kernel": spatial.kernel_size[0], "stride": spatial.stride[0]}
        params |= {"padding": "symmetric", "act": _act(spatial)}
        if len(before) == 1:
            kind = "separable"
            params["groups"] = project.groups
        else:
            kind, expand = "inverted_residual", _conv(self.steps[before[1]])
            assert expand is not None
            arrays |= {"expand_weight": expand.weight, "expand_bias": bias_of(expand)}
            params["expand_act"] = _act(expand)
        (source,) = self.steps[before[-1]].inputs
        act = _act(project) or "none"
        out = self.builder.add(kind, (self.maps[source],), residual=residual, act=act, arrays=arrays)
        self.builder.steps[-1] = replace(self.builder.steps[-1], params=params)  # "act" is also one of its parameters
        return out


def _conv(step: Step) -> nn.Conv2d | None:
    """The convolution of a step; ``None``: it is none."""
    operation = step.operation
    module = operation.module if isinstance(operation, Sliding) else getattr(operation, "function", None)
    return module if isinstance(module, nn.Conv2d) else None


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1
