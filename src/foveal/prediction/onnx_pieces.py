"""Compute the pieces of a pass with ONNX Runtime: the steps of each pass are a graph, which is made when it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..images.resampling import bicubic_taps
from ..streaming.executor import Read, Valid
from ..streaming.geometry import (
    ArrayOperation,
    CroppingGeometry,
    PaddingGeometry,
    ShufflingGeometry,
    only_map,
)
from ..streaming.passes import Pass, Plan, map_extent
from ..streaming.regions import Region
from ..streaming.steps import Step
from ..streaming.stored import Adding, Attention, Bicubic, Convolution, KeySumsArray, Shifting
from ..streaming.windows import common_window, part_of
from .file_network import FileNetwork, Settings
from .onnx_runner import open_onnx_network
from .onnx_writing import GraphWriter

Arrays = Mapping[str, NDArray[Any]]
_SIZES = " size"  # suffix of the input with the sizes to which a step pads or crops its window


class OnnxExecutor:
    """An :class:`~foveal.streaming.executor.Executor` for programs of :mod:`foveal.streaming.stored`.

    Args:
        plan: the passes.
        weights: of the network, by key.
        settings: of the sessions.
    """

    def __init__(self, plan: Plan, weights: Arrays, settings: Settings) -> None:
        self.plan, self.weights, self.settings = plan, weights, settings
        self.steps = plan.program.steps
        self.sums: dict[str, NDArray[np.float32]] = {}  # by name
        self.graph: PassGraph | None = None

    def begin(self, part: Pass) -> None:
        self.graph = None  # its memory is free before that of the next one is needed
        self.graph = PassGraph(self.plan, part, self.weights, self.settings)

    def piece(self, part: Pass, index: int, read: Read, valid: Valid) -> dict[str, NDArray[Any]]:
        assert self.graph is not None
        regions = self.plan.needs(part, index)
        windows = self.graph.run(regions, read, self.sums)
        for step in self.graph.after:
            if step.name in regions:
                assert isinstance(step.operation, ArrayOperation)
                out, (values, window) = regions[step.name], windows[step.inputs[0]]
                size = only_map([self.steps[name].extent for name in step.inputs])
                windows[step.name] = step.operation.run_array(values, window, out, size), out
        found: dict[str, NDArray[Any]] = {}
        for name in part.targets:
            step, region = self.steps[name], part.grid.piece(index, map_extent(self.steps, name))
            if region.is_empty:
                continue
            if step.reduction is None:
                found[name] = _cut(windows[name], region).transpose(1, 2, 0)
            else:
                reduction: KeySumsArray = step.reduction
                found[name] = reduction.partial([_cut(windows[each], region) for each in step.inputs], valid.get(name))
        return found

    def finish(self, name: str, total: NDArray[np.float64], places: int) -> None:
        reduction: KeySumsArray = self.steps[name].reduction
        self.sums[name] = reduction.finish(total)

    def compute(self, functions: Sequence[Step]) -> None:
        assert not functions, "described networks have no steps without places"

    def tensor(self, name: str) -> NDArray[Any]:
        return self.sums[name]


Window = tuple[NDArray[Any], Region]  #: values ``(C, h, w)`` of a region of a map


def _cut(window: Window, region: Region) -> NDArray[Any]:
    return window[0][:, *region.within(window[1])]


class PassGraph:
    """The network of a pass.

    Attributes:
        after: steps that NumPy computes from its results.
    """

    def __init__(self, plan: Plan, part: Pass, weights: Arrays, settings: Settings) -> None:
        program = plan.program.steps
        self.after = [step for step in part.steps if isinstance(step.operation, ArrayOperation)]
        self.inside = [step for step in part.steps if step not in self.after]
        names = {step.name for step in self.inside}
        self.reads = part.reads
        wanted = {*part.keeps, *(each for name in part.sums for each in program[name].inputs)}
        wanted |= {each for step in self.after for each in step.inputs}
        self.results = [name for name in (*self.reads, *names) if name in wanted]
        maps = {name: program[name].extent for name in (*self.reads, *names)}
        self.extents = {name: extent for name, extent in maps.items() if extent is not None}
        self.sums = list(dict.fromkeys(n for step in self.inside for n in step.inputs if program[n].reduction))
        self.sized = [step for step in self.inside if isinstance(step.operation, PaddingGeometry | CroppingGeometry)]
        self.network: FileNetwork | None = None
        if self.inside:
            self.network = FileNetwork(open_onnx_network, [self._write(program, weights)], settings)

    def _write(self, program: Mapping[str, Step], weights: Arrays) -> bytes:
        """The content of an ONNX file of the steps."""
        graph = GraphWriter()
        for number, name in enumerate(self.reads):
            graph.input(name, (1, program[name].channels, f"h{number}", f"w{number}"))
        for name in self.sums:
            graph.input(name, ("heads", "columns", "channels"))
        for step in self.sized:
            graph.input(step.name + _SIZES, ("sides",), np.int64)
        for step in self.inside:
            _write_step(graph, step, weights, program)
        for name in self.results:
            if name not in self.reads:
                graph.output(name)
        return graph.model()

    def run(self, regions: Mapping[str, Region], read: Read, sums: Arrays) -> dict[str, Window]:
        """Compute the results for the regions that are needed of the maps."""
        window = common_window(self.extents, regions)
        parts = {name: part_of(window, extent) for name, extent in self.extents.items()}
        feed: dict[str, NDArray[Any]] = {
            name: np.ascontiguousarray(read(name, parts[name]), np.float32) for name in self.reads
        }
        found = {name: (feed[name][0], parts[name]) for name in self.results if name in self.reads}
        if self.network is None:
            return found
        feed |= {name: np.ascontiguousarray(sums[name].transpose(0, 2, 1)) for name in self.sums}
        for step in self.sized:
            after, before = parts[step.name], parts[step.inputs[0]]
            sides = [after.height, after.width]
            if isinstance(step.operation, PaddingGeometry):
                sides = [0] * 6 + [after.height - before.height, after.width - before.width]
            feed[step.name + _SIZES] = np.array(sides, np.int64)
        results = self.network(feed)
        return found | {name: (values[0], parts[name]) for name, values in results.items()}


def _write_step(graph: GraphWriter, step: Step, weights: Arrays, program: Mapping[str, Step]) -> None:
    """Add the nodes of a step."""
    name, inputs, operation = step.name, step.inputs, step.operation
    if isinstance(operation, Convolution):
        _write_convolution(graph, name, inputs[0], operation, weights)
    elif isinstance(operation, Attention):
        heads = program[inputs[1]].channels // operation.head_dim
        _write_attention(graph, name, inputs, operation, heads)
    elif isinstance(operation, Bicubic):
        _write_bicubic(graph, name, inputs[0], operation)
    elif isinstance(operation, ShufflingGeometry):
        graph.node("DepthToSpace", inputs, name, blocksize=operation.factor, mode="CRD")
    elif isinstance(operation, PaddingGeometry):
        graph.node("Pad", (inputs[0], name + _SIZES), name, mode="edge")
    elif isinstance(operation, CroppingGeometry):
        starts, axes = graph.constant(f"{name} starts", [0, 0]), graph.constant(f"{name} axes", [2, 3])
        graph.node("Slice", (inputs[0], starts, name + _SIZES, axes), name)
    elif isinstance(operation, Shifting):
        graph.node("Add", (inputs[0], graph.constant(f"{name} addend", operation.addend, np.float32)), name)
    elif isinstance(operation, Adding):
        graph.node("Add", inputs, name)
    else:
        raise AssertionError(f"{name}: {type(operation).__name__} has no operator of ONNX")


_ACTIVATIONS = {"relu": "Relu", "hardswish": "HardSwish"}


def _write_convolution(graph: GraphWriter, name: str, source: str, conv: Convolution, weights: Arrays) -> None:
    kernel, bias = conv.weight.read(weights)
    arrays = graph.constant(f"{name} weight", kernel, np.float32), graph.constant(f"{name} bias", bias, np.float32)
    made = f"{name} linear" if conv.act else name
    window = {"kernel_shape": conv.kernel, "strides": conv.stride, "dilations": conv.dilation}
    graph.node("Conv", (source, *arrays), made, pads=(*conv.padding, *conv.padding), group=conv.groups, **window)
    if conv.act:
        graph.node(_ACTIVATIONS[conv.act], (made,), name)


def _write_bicubic(graph: GraphWriter, name: str, source: str, operation: Bicubic) -> None:
    """Bicubic interpolation as a convolution with a kernel for each phase, on each channel alone."""
    pads = graph.constant(f"{name} pads", [0, 0, operation.reach, operation.reach] * 2)
    padded = graph.node("Pad", (source, pads), f"{name} padded", mode="edge")
    planes = graph.node("Transpose", (padded,), f"{name} planes", perm=(1, 0, 2, 3))
    line = bicubic_taps(operation.factor, operation.a)
    kernel = (line[:, None, :, None] * line[None, :, None, :]).reshape(-1, 1, *line.shape[1:] * 2)
    phases = graph.node("Conv", (planes, graph.constant(f"{name} kernel", kernel, np.float32)), f"{name} phases")
    fine = graph.node("DepthToSpace", (phases,), f"{name} fine", blocksize=operation.factor, mode="CRD")
    graph.node("Transpose", (fine,), name, perm=(1, 0, 2, 3))


def _write_attention(graph: GraphWriter, name: str, inputs: Sequence[str], attention: Attention, heads: int) -> None:
    """Linear attention of each scale: the sums times the queries, divided by the normaliser."""
    sums, *queries = inputs
    dim = attention.head_dim
    rows = graph.constant(f"{name} rows", [heads, dim, -1])
    one = graph.constant(f"{name} columns", [dim, 1])
    eps = graph.constant(f"{name} eps", attention.eps, np.float32)
    scales = [f"{name} sums {scale}" for scale in range(len(queries))]
    graph.node("Split", (sums, graph.constant(f"{name} heads", [heads] * len(queries))), scales, axis=0)
    made = []
    for scale, query in zip(scales, queries, strict=True):
        flat = graph.node("Reshape", (query, rows), f"{scale} flat")
        positive = graph.node("Relu", (flat,), f"{scale} positive")
        both = graph.node("MatMul", (scale, positive), f"{scale} both")  # (heads, D + 1, places)
        parts = [f"{scale} numerator", f"{scale} normaliser"]
        graph.node("Split", (both, one), parts, axis=1)
        safe = graph.node("Add", (parts[1], eps), f"{scale} safe")
        quotient = graph.node("Div", (parts[0], safe), f"{scale} quotient")
        shape = graph.node("Shape", (query,), f"{scale} shape")
        made.append(graph.node("Reshape", (quotient, shape), f"{scale} attended"))
    graph.node("Concat", made, name, axis=1)
