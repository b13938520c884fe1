"""Bind a plan to a size: the shape of every map, the operations of the library, and the memory that they share."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .library import Library, Map, Op
from .plan import ACTS, Plan, Step

#: Numbers of the operations in the library (the enum Kind in csrc/interface.h).
CONV, DEPTHWISE, CHAIN, ATTENTION, POOL, NORM, COMBINE, UPSAMPLE, INPUT, OUTPUT, SHUFFLE, ENLARGE = range(12)
_DEPTHWISE_PROJECT, _EXPAND_DEPTHWISE_PROJECT, _DENSE_PROJECT = range(3)  # modes of a chain
_ADD, _MULTIPLY, _FIRST = range(3)  # modes of COMBINE
_ATTENTION_ROWS = 4  # rows of the parts whose sums are added in order
_MAX_FLOATS = 1 << 36  # 256 GiB


class Shape(NamedTuple):
    """Batch, height, width and channels of a map."""

    batch: int
    height: int
    width: int
    channels: int


@dataclass
class _Map:
    shape: Shape
    planar: bool = False  # an array of the caller: (batch, channels, height, width)
    border: int = 0
    overhang: int = 0  # floats behind the channels of a pixel that grouped operations overwrite
    exact: bool = False  # exactly `channels` floats for each pixel
    first: int = 0  # the first and the last operation that use it
    last: int = 0
    offset: int = 0


@dataclass
class _Operation:
    kind: int
    inputs: tuple[int, ...]
    out: int
    residual: int | None = None
    act: str = "none"
    p: tuple[int, ...] = ()
    f: tuple[float, ...] = ()
    arrays: tuple[tuple[NDArray[np.float32] | None, NDArray[np.float32] | None], ...] = ()  # weight and bias
    work: int = 0  # floats


@dataclass
class Binding:
    """A plan bound to the shape of its input: ready to run.

    Attributes:
        library: the compiled library.
        ops: the operations, for the library.
        maps: the maps, for the library.
        arena: memory of all maps between the operations.
        image: number of the map that is the input.
        out: number of the map that is the result.
        result: shape of the result.
        flat: whether the result is ``(B, C)``, not ``(B, C, H, W)``.
        labels: kind and shapes of each operation, for reports.
        macs: multiply-accumulates of each operation.
        keep: arrays that the operations point to.
    """

    library: Library
    ops: ctypes.Array[Op]
    maps: ctypes.Array[Map]
    arena: NDArray[np.float32]
    image: int
    out: int
    result: Shape
    flat: bool
    labels: list[str]
    macs: list[int]
    keep: list[NDArray[np.float32]] = field(default_factory=list)

    def run(self, batch: NDArray[np.float32], threads: int, seconds: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """Run on ``(B, C, H, W)``, contiguous, of the shape that it is bound to.

        Raises:
            MemoryError: not enough memory for the intermediate rows of a thread.
        """
        n, height, width, channels = self.result
        result = np.empty((n, channels, height, width), np.float32)
        self.maps[self.image].data, self.maps[self.out].data = batch.ctypes.data, result.ctypes.data
        times = None if seconds is None else seconds.ctypes.data
        if self.library.run(self.ops, len(self.ops), self.maps, threads, times):
            raise MemoryError("native engine: not enough memory")
        return result


def bind(plan: Plan, packed: Packed, shape: tuple[int, int, int, int]) -> Binding:
    """Bind ``plan`` to inputs ``(B, C, H, W)``.

    Raises:
        InputError: the network cannot run at this size, or its arrays do not fit together.
    """
    builder = _Builder(plan, packed, shape)
    for number, step in enumerate(plan.steps):
        try:
            _STEPS[step.kind](builder, step)
        except ValueError as error:
            raise InputError(f"step {number} ({step.kind}) of the plan: {error}") from None
    return builder.finish()


class Packed:
    """Weights of a plan in the order that the library reads; each is packed once and shared by all bindings."""

    def __init__(self, plan: Plan, library: Library) -> None:
        self.plan, self.library = plan, library
        self.arrays: dict[tuple[str, ...], NDArray[np.float32]] = {}

    def raw(self, step: Step, role: str) -> NDArray[np.float32]:
        return self.plan.weights[step.weights[role]]

    def padded(self, step: Step, role: str, fill: float = 0.0) -> NDArray[np.float32]:
        """A vector, padded to whole vectors of the library and one more, because grouped sums run over."""

        def make() -> NDArray[np.float32]:
            values = self.raw(step, role)
            size = self.library.padded(len(values)) + 2 * self.library.width
            return np.concatenate([values, np.full(size - len(values), fill, np.float32)])

        return self._once(("padded", step.weights[role]), make)

    def panels(self, step: Step, role: str, groups: int = 1) -> NDArray[np.float32]:
        """Weights ``(out, in, K, K)`` in panels of output channels, group after group."""

        def make() -> NDArray[np.float32]:
            weight = self.raw(step, role)
            rows = np.ascontiguousarray(weight.reshape(*weight.shape[:2], -1).transpose(0, 2, 1))  # (out, taps, in)
            parts = np.split(rows.reshape(len(rows), -1), groups)
            return np.concatenate([self.library.pack(np.ascontiguousarray(part)) for part in parts])

        return self._once(("panels", step.weights[role], str(groups)), make)

    def winograd(self, step: Step, role: str) -> NDArray[np.float32]:
        """Weights ``(out, in, 3, 3)``, transformed for F(2x2, 3x3), as 16 products in panels."""

        def make() -> NDArray[np.float32]:
            g = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
            weight = np.einsum("ay,oiyx,bx->aboi", g, self.raw(step, role).astype(np.float64), g)
            return np.concatenate([self.library.pack(part) for part in weight.reshape(16, *weight.shape[2:]).astype(np.float32)])

        return self._once(("winograd", step.weights[role]), make)

    def taps(self, step: Step, role: str) -> NDArray[np.float32]:
        """Depthwise weights ``(channels, 1, K, K)`` in vectors of channels."""
        return self._once(("taps", step.weights[role]), lambda: self.library.pack_depthwise(self.raw(step, role)))

    def _once(self, key: tuple[str, ...], make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        if key not in self.arrays:
            self.arrays[key] = make()
        return self.arrays[key]


class _Builder:
    """Collects maps and operations."""

    def __init__(self, plan: Plan, packed: Packed, shape: tuple[int, int, int, int]) -> None:
        batch, channels, height, width = shape
        self.library, self.packed = packed.library, packed
        self.width = self.library.width
        self.maps = {0: _Map(Shape(batch, height, width, channels), planar=True)}
        self.operations: list[_Operation] = []
        self.extra = 1 + max(step.out for step in plan.steps)
        self.image, self.last = self.maps[0].shape, plan.steps[-1].kind

    def shape(self, index: int) -> Shape:
        return self.maps[index].shape

    def new_map(self, shape: Shape) -> int:
        """A map that no step of the plan names."""
        self.maps[self.extra] = _Map(shape)
        self.extra += 1
        return self.extra - 1

    def add(self, operation: _Operation, shape: Shape, *, planar: bool = False) -> None:
        """Append an operation that writes a map of this shape."""
        if min(shape) < 1 or math.prod(shape) > _MAX_FLOATS:
            raise ValueError(f"a map of {'x'.join(map(str, shape))} (B, H, W, C) is empty or too large")
        if operation.residual is not None and operation.kind != SHUFFLE and self.shape(operation.residual) != shape:
            raise ValueError(f"the residual is {self.shape(operation.residual)}, the result {shape}")
        self.maps.setdefault(operation.out, _Map(shape, planar))
        self.operations.append(operation)

    def spatial(self, step: Step, source: int) -> tuple[Shape, int, int]:
        """Size of the result of a convolution with its channels as in the input, and the padding at top and left.

        The input receives the border that the kernel needs.
        """
        kernel, stride = step.params["kernel"], step.params["stride"]
        batch, *sides, channels = self.shape(source)
        outs, pads, border = [], [], 0
        for side in sides:
            if step.params["padding"] == "same" and stride > 1:
                out = -(-side // stride)
                pad = max(0, (out - 1) * stride + kernel - side) // 2
            else:
                pad = kernel // 2
                out = (side + 2 * pad - kernel) // stride + 1
            outs.append(out)
            pads.append(pad)
            border = max(border, pad, (out - 1) * stride - pad + kernel - side)
        self.needs_border = border
        return Shape(batch, outs[0], outs[1], channels), pads[0], pads[1]

    def give_border(self, source: int) -> None:
        """Let the input of a spatial step have zeros around it."""
        if self.maps[source].planar:
            raise ValueError("a convolution of the planar image")
        self.maps[source].border = max(self.maps[source].border, self.needs_border)

    def finish(self) -> Binding:
        self._mark_exact()
        self._place()
        return _to_library(self)

    def _mark_exact(self) -> None:
        """Store images of few channels without padding, where only dense convolutions read them."""
        readers: dict[int, list[_Operation]] = {}
        for op in self.operations:
            for index in op.inputs:
                readers.setdefault(index, []).append(op)
        residuals = {op.residual for op in self.operations}
        for out in (op.out for op in self.operations if op.kind == INPUT):
            self.maps[out].exact = out in readers and out not in residuals and all(
                op.kind == CONV or (op.kind == CHAIN and op.p[5] != _DEPTHWISE_PROJECT) for op in readers[out]
            )  # fmt: skip

    def pixel(self, index: int) -> int:
        item = self.maps[index]
        return item.shape.channels if item.exact else self.library.padded(item.shape.channels) + item.overhang

    def floats(self, index: int) -> int:
        item = self.maps[index]
        batch, height, width, _ = item.shape
        return batch * (height + 2 * item.border) * (width + 2 * item.border) * self.pixel(index)

    def _place(self) -> None:
        """Give every map a place in the arena; maps that are not in use at the same time may share it."""
        for i, op in enumerate(self.operations):
            self.maps[op.out].first = i
            for index in (*op.inputs, op.out, op.out if op.residual is None else op.residual):
                self.maps[index].last = i
        placed: list[tuple[_Map, int]] = []
        self.size = 0
        inner = {index: item for index, item in self.maps.items() if not item.planar}
        for index, item in sorted(inner.items(), key=lambda pair: -self.floats(pair[0])):
            size = -(-(self.floats(index) + 2 * self.width) // 16) * 16
            busy = sorted(
                (other.offset, other.offset + length)
                for other, length in placed
                if other.first <= item.last and item.first <= other.last
            )
            offset = 0
            for begin, end in busy:
                if begin - offset >= size:
                    break
                offset = max(offset, end)
            item.offset = offset
            placed.append((item, size))
            self.size = max(self.size, offset + size)
        if self.size > _MAX_FLOATS:
            raise InputError(f"the maps need {self.size * 4 / 2**30:.0f} GiB: use a smaller image or batch")


# ---- one function for each kind of step


def _conv(builder: _Builder, step: Step) -> None:
    weight, groups = builder.packed.raw(step, "weight"), step.params["groups"]
    out, top, left = builder.spatial(step, step.inputs[0])
    if weight.ndim == 2:
        weight = weight[:, :, None, None]
    _expect(weight, (None, out.channels // groups, step.params["kernel"], step.params["kernel"]))
    if len(weight) % groups or out.channels % groups:
        raise ValueError(f"{out.channels} to {len(weight)} channels do not divide into {groups} groups")
    _expect(builder.packed.raw(step, "bias"), (len(weight),))
    fast = _suits_winograd(builder, step, out)
    builder.needs_border += fast  # tiles of an odd last row or column reach one pixel further
    builder.give_border(step.inputs[0])
    packed = builder.packed.winograd(step, "weight") if fast else _panels(builder, step, "weight", groups)
    arrays = ((packed, builder.packed.padded(step, "bias")),)
    p = (step.params["kernel"], step.params["kernel"], step.params["stride"], top, left, groups, int(fast))
    operation = _Operation(CONV, step.inputs, step.out, step.residual, step.act, p, arrays=arrays)
    builder.add(operation, out._replace(channels=len(weight)))
    if groups > 1 and len(weight) // groups % builder.width:
        builder.maps[step.out].overhang = builder.width


def _suits_winograd(builder: _Builder, step: Step, size: Shape) -> bool:
    """Whether Winograd's algorithm is faster: a 3x3 kernel with stride 1, whole vectors of channels, several tiles."""
    params, outputs = step.params, len(builder.packed.raw(step, "weight"))
    plain = params["kernel"] == 3 and params["stride"] == 1 and params["groups"] == 1
    wide = size.channels % builder.width == 0 and size.channels >= 16 and outputs >= 16
    return plain and wide and min(size.height, size.width) >= 8


def _panels(builder: _Builder, step: Step, role: str, groups: int = 1) -> NDArray[np.float32]:
    return builder.packed.panels(step, role, groups)


def _depthwise(builder: _Builder, step: Step) -> None:
    out, top, left = builder.spatial(step, step.inputs[0])
    kernel = step.params["kernel"]
    _expect(builder.packed.raw(step, "weight"), (out.channels, 1, kernel, kernel))
    _expect(builder.packed.raw(step, "bias"), (out.channels,))
    builder.give_border(step.inputs[0])
    arrays = ((builder.packed.taps(step, "weight"), builder.packed.padded(step, "bias")),)
    p = (kernel, step.params["stride"], top, left)
    builder.add(_Operation(DEPTHWISE, step.inputs, step.out, None, step.act, p, arrays=arrays), out)


def _chain(builder: _Builder, step: Step) -> None:
    """An inverted residual, with or without expansion, or a fused one: one operation, or two or three."""
    source, packed, kernel = step.inputs[0], builder.packed, step.params["kernel"]
    expands, dense = step.kind == "inverted_residual", step.kind == "fused_inverted_residual"
    size, top, left = builder.spatial(step, source)
    hidden, outputs = len(packed.raw(step, "weight")), len(packed.raw(step, "project_weight"))
    if expands:
        _expect(packed.raw(step, "expand_weight"), (hidden, size.channels, 1, 1))
        _expect(packed.raw(step, "expand_bias"), (hidden,))
    elif not dense and hidden != size.channels:
        raise ValueError(f"{hidden} depthwise kernels for {size.channels} channels")
    _expect(packed.raw(step, "weight"), (hidden, size.channels if dense else 1, kernel, kernel))
    _expect(packed.raw(step, "bias"), (hidden,))
    _expect(packed.raw(step, "project_weight"), (outputs, hidden, 1, 1))
    _expect(packed.raw(step, "project_bias"), (outputs,))
    way = _way(builder, step, size, hidden, outputs)
    if way == "steps":
        return _unfused(builder, step, size, hidden)
    if not expands:
        builder.give_border(source)
    weight = _panels(builder, step, "weight") if dense else packed.taps(step, "weight")
    arrays = (
        (_panels(builder, step, "expand_weight"), packed.padded(step, "expand_bias")) if expands else (None, None),
        (weight, packed.padded(step, "bias")),
        (_panels(builder, step, "project_weight"), packed.padded(step, "project_bias")),
    )
    mode = _EXPAND_DEPTHWISE_PROJECT if expands else _DENSE_PROJECT if dense else _DEPTHWISE_PROJECT
    acts = (ACTS.index(step.params.get("expand_act", "none")), ACTS.index(step.params["act"]))
    block = _channel_block(builder, step, size) if way == "channels" else 0
    p = (kernel, step.params["stride"], top, left, hidden, mode, *acts, block)
    operation = _Operation(CHAIN, step.inputs, step.out, step.residual, step.act, p, arrays=arrays)
    builder.add(operation, size._replace(channels=outputs))


def _way(builder: _Builder, step: Step, size: Shape, hidden: int, outputs: int) -> str:
    """How to run a chain: "rows" of the map in one pass, blocks of hidden "channels", or separate "steps".

    In rows, the weights are read again for every piece; in blocks of channels, the result is; in steps, the
    intermediate maps are written and read. The way with the fewest bytes is taken.
    """
    cache = builder.library.cache // 2
    inputs, stride = builder.shape(step.inputs[0]), step.params["stride"]
    if step.kind == "inverted_residual":
        block = _channel_block(builder, step, size)
        if block >= min(hidden, 2 * builder.library.panel) and size.height >= 7 and hidden >= 4 * outputs // 2:
            whole = size.height * size.width * (hidden + outputs) * 4
            if whole > cache // 2 or size.width < 16:
                return "channels"
    dense = step.kind == "fused_inverted_residual"
    expand = hidden * inputs.channels * (step.params["kernel"] ** 2 if dense else 1)
    weights = (expand * (step.kind != "separable") + hidden * outputs) * 4
    step_rows = max(1, cache // (size.width * hidden * 4 * (1 + stride**2)))
    pieces = -(-size.height // step_rows) * size.batch
    maps = (size.height * size.width * 2 + inputs.height * inputs.width * 2 * (not dense)) * hidden * 4 * size.batch
    return "rows" if weights * pieces < maps and maps > cache else "steps"


def _channel_block(builder: _Builder, step: Step, size: Shape) -> int:
    """Hidden channels of a block whose maps fill half of the second-level cache; a multiple of a panel."""
    kernel, stride = step.params["kernel"], step.params["stride"]
    inner = ((size.height - 1) * stride + kernel) * ((size.width - 1) * stride + kernel) + size.height * size.width
    return builder.library.cache // 2 // (4 * inner) // builder.library.panel * builder.library.panel


def _unfused(builder: _Builder, step: Step, size: Shape, hidden: int) -> None:
    source = step.inputs[0]
    common = {"groups": 1, "padding": "symmetric"}
    if step.kind == "inverted_residual":
        expanded = builder.new_map(builder.shape(source)._replace(channels=hidden))
        params = {"kernel": 1, "stride": 1, **common}
        weights = {"weight": step.weights["expand_weight"], "bias": step.weights["expand_bias"]}
        _conv(builder, Step("conv", (source,), expanded, None, step.params["expand_act"], params, weights))
        source = expanded
    middle = builder.new_map(size._replace(channels=hidden))
    weights = {"weight": step.weights["weight"], "bias": step.weights["bias"]}
    inner = Step("", (source,), middle, None, step.params["act"], {**step.params, "groups": 1}, weights)
    (_conv if step.kind == "fused_inverted_residual" else _depthwise)(builder, inner)
    weights = {"weight": step.weights["project_weight"], "bias": step.weights["project_bias"]}
    params = {"kernel": 1, "stride": 1, **common}
    _conv(builder, Step("conv", (middle,), step.out, step.residual, step.act, params, weights))


def _attention(builder: _Builder, step: Step) -> None:
    first = builder.shape(step.inputs[0])
    dim, heads = step.params["head_dim"], step.params["heads"]
    for index in step.inputs:
        if builder.shape(index) != first or first.channels != 3 * dim * heads:
            raise ValueError(f"maps of {builder.shape(index)} for {heads} heads of {dim} channels")
    lanes = builder.library.padded(dim)
    if lanes // builder.width not in (1, 2, 3, 4, 8):
        raise ValueError(f"head_dim={dim}: this library has no kernel for it")
    parts = -(-first.height // _ATTENTION_ROWS)
    work = first.batch * heads * len(step.inputs) * parts * (dim + 1) * lanes
    p = (len(step.inputs), dim, heads, _ATTENTION_ROWS)
    operation = _Operation(ATTENTION, step.inputs, step.out, p=p, f=(step.params["eps"],), work=work)
    builder.add(operation, first._replace(channels=len(step.inputs) * heads * dim))
    for index in (*step.inputs, step.out):
        builder.maps[index].overhang = max(builder.maps[index].overhang, lanes - dim)


def _mean(builder: _Builder, step: Step) -> None:
    shape = builder.shape(step.inputs[0])
    builder.add(_Operation(POOL, step.inputs, step.out), Shape(shape.batch, 1, 1, shape.channels))


def _layer_norm(builder: _Builder, step: Step) -> None:
    shape = builder.shape(step.inputs[0])
    for role in ("weight", "bias"):
        _expect(builder.packed.raw(step, role), (shape.channels,))
    arrays = ((builder.packed.padded(step, "weight"), builder.packed.padded(step, "bias")),)
    operation = _Operation(NORM, step.inputs, step.out, None, step.act, f=(step.params["eps"],), arrays=arrays)
    builder.add(operation, shape)


def _combine(builder: _Builder, step: Step) -> None:
    first = builder.shape(step.inputs[0])
    mode = {"add": _ADD, "multiply": _MULTIPLY, "affine": _FIRST}[step.kind]
    if mode != _FIRST and builder.shape(step.inputs[1]) not in (first, first._replace(height=1, width=1)):
        raise ValueError(f"maps of {first} and {builder.shape(step.inputs[1])}")
    f = (step.params.get("factor", 1.0), step.params.get("addend", 0.0))
    builder.add(_Operation(COMBINE, step.inputs, step.out, None, step.act, (mode,), f), first)


def _upsample(builder: _Builder, step: Step) -> None:
    factor = step.params["factor"]
    batch, height, width, channels = builder.shape(step.inputs[0])
    arrays = ((bicubic_taps(factor, step.params["a"]), None),)
    operation = _Operation(UPSAMPLE, step.inputs, step.out, step.residual, p=(factor,), arrays=arrays)
    builder.add(operation, Shape(batch, factor * height, factor * width, channels))


def _shuffle(builder: _Builder, step: Step) -> None:
    factor = step.params["factor"]
    batch, height, width, channels = builder.shape(step.inputs[0])
    if channels % factor**2:
        raise ValueError(f"{channels} channels for the factor {factor}")
    shape = Shape(batch, factor * height, factor * width, channels // factor**2)
    if step.residual is not None:
        target = builder.shape(step.residual)
        if not (target.height <= shape.height and target.width <= shape.width and target.channels == shape.channels):
            raise ValueError(f"the residual is {target}, the result {shape}")
        shape = target
    builder.add(_Operation(SHUFFLE, step.inputs, step.out, step.residual, p=(factor,)), shape)


def _enlarge(builder: _Builder, step: Step) -> None:
    factor, (batch, height, width, channels) = step.params["factor"], builder.image
    detail = builder.shape(step.inputs[0])
    if step.inputs[1] != 0 or detail != (batch, height, width, channels * factor**2):
        raise ValueError(f"details of {detail} for the image {builder.image}")
    arrays = ((bicubic_taps(factor, step.params["a"]), None),)
    operation = _Operation(ENLARGE, step.inputs, step.out, p=(factor,), arrays=arrays)
    builder.add(operation, Shape(batch, factor * height, factor * width, channels), planar=True)


def _input(builder: _Builder, step: Step) -> None:
    batch, height, width, channels = builder.image
    if step.inputs != (0,):
        raise ValueError("the input does not read the image")
    for role in ("scale", "shift"):
        array = builder.packed.raw(step, role)
        if array.shape != (channels,):
            raise ValueError(f"an image of {channels} channels, the network takes {len(array)}")
    height, width = (-(-side // step.params["multiple"]) * step.params["multiple"] for side in (height, width))
    arrays = ((builder.packed.padded(step, "scale"), builder.packed.padded(step, "shift")),)
    builder.add(_Operation(INPUT, step.inputs, step.out, arrays=arrays), Shape(batch, height, width, channels))


def _output(builder: _Builder, step: Step) -> None:
    shape, stride = builder.shape(step.inputs[0]), step.params.get("stride", 0)
    if step.kind == "vector" and shape[1:3] != (1, 1):
        raise ValueError(f"a vector of a map of {shape}")
    if stride:
        height, width = (min(-(-a // stride), b) for a, b in zip(builder.image[1:3], shape[1:3], strict=True))
        shape = shape._replace(height=height, width=width)
    builder.add(_Operation(OUTPUT, step.inputs, step.out), shape, planar=True)


_STEPS: Mapping[str, Callable[[_Builder, Step], None]] = {
    "input": _input,
    "conv": _conv,
    "depthwise": _depthwise,
    "inverted_residual": _chain,
    "separable": _chain,
    "fused_inverted_residual": _chain,
    "linear_attention": _attention,
    "mean": _mean,
    "layer_norm": _layer_norm,
    "affine": _combine,
    "add": _combine,
    "multiply": _combine,
    "upsample": _upsample,
    "pixel_shuffle": _shuffle,
    "enlarge": _enlarge,
    "output": _output,
    "vector": _output,
}


def _expect(array: NDArray[np.float32], shape: tuple[int | None, ...]) -> None:
    if array.ndim != len(shape) or any(b is not None and a != b for a, b in zip(array.shape, shape, strict=True)):
        raise ValueError(f"an array of {array.shape} where {shape} is needed")


def bicubic_taps(factor: int, a: float) -> NDArray[np.float32]:
    """Weights of the five nearest pixels for each of the ``factor`` pixels that a pixel becomes: ``(factor, 5)``."""
    phase = (np.arange(factor) + 0.5) / factor - 0.5
    t = np.abs(phase[:, None] - np.arange(-2, 3))
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0)).astype(np.float32)


# ---- the library's structures


def _to_library(builder: _Builder) -> Binding:
    memory = np.empty(builder.size + 16, np.float32)
    start = -(memory.ctypes.data // 4) % 16
    arena = memory[start:]
    maps = (Map * (max(builder.maps) + 1))()
    for index, item in builder.maps.items():
        _describe_map(maps[index], builder, index, item, arena.ctypes.data)
    keep: list[NDArray[np.float32]] = [memory]
    ops = (Op * len(builder.operations))()
    for op, operation in zip(ops, builder.operations, strict=True):
        _describe_operation(op, operation, keep)
    out = builder.operations[-1].out
    labels = [_label(builder, operation) for operation in builder.operations]
    macs = [_count_macs(builder, operation) for operation in builder.operations]
    flat = builder.last == "vector"
    return Binding(builder.library, ops, maps, arena, 0, out, builder.shape(out), flat, labels, macs, keep)


def _describe_map(entry: Map, builder: _Builder, index: int, item: _Map, arena: int) -> None:
    batch, height, width, channels = item.shape
    entry.batch, entry.height, entry.width, entry.channels = item.shape
    if item.planar:
        entry.pixel, entry.row, entry.image = 1, width, channels * height * width
        return
    pixel, border = builder.pixel(index), item.border
    entry.pixel, entry.row = pixel, pixel * (width + 2 * border)
    entry.image, entry.border = entry.row * (height + 2 * border), border
    entry.data = arena + 4 * (item.offset + border * (entry.row + pixel))


def _describe_operation(entry: Op, operation: _Operation, keep: list[NDArray[np.float32]]) -> None:
    entry.kind, entry.act, entry.out = operation.kind, ACTS.index(operation.act), operation.out
    entry.residual = -1 if operation.residual is None else operation.residual
    for i in range(4):
        entry.inputs[i] = operation.inputs[i] if i < len(operation.inputs) else -1
    for i, value in enumerate(operation.p):
        entry.p[i] = value
    for i, value in enumerate(operation.f):
        entry.f[i] = value
    for i, pair in enumerate(operation.arrays):
        for pointers, array in zip((entry.weight, entry.bias), pair, strict=True):
            if array is not None:
                keep.append(array)
                pointers[i] = array.ctypes.data
    if operation.work:
        keep.append(np.empty(operation.work, np.float32))
        entry.work = keep[-1].ctypes.data


_NAMES = (
    "conv", "depthwise", "chain", "attention", "mean", "layer_norm", "combine", "upsample", "input", "output",
    "pixel_shuffle", "enlarge",
)  # fmt: skip


def _label(builder: _Builder, operation: _Operation) -> str:
    source, out = builder.shape(operation.inputs[0]), builder.shape(operation.out)
    name = _NAMES[operation.kind]
    if operation.kind in (CONV, DEPTHWISE, CHAIN):
        name = f"{name} {operation.p[0]}x{operation.p[0]}"
    hidden = f" -> {operation.p[4]}" if operation.kind == CHAIN else ""
    return f"{name} {source.height}x{source.width}x{source.channels}{hidden} -> {out.height}x{out.width}x{out.channels}"


def _count_macs(builder: _Builder, operation: _Operation) -> int:
    """Multiply-accumulates of the products; small operations count as none."""
    source, out = builder.shape(operation.inputs[0]), builder.shape(operation.out)
    pixels = out.batch * out.height * out.width
    if operation.kind == CONV:
        return pixels * out.channels * (source.channels // operation.p[5]) * operation.p[0] ** 2
    if operation.kind == DEPTHWISE:
        return pixels * out.channels * operation.p[0] ** 2
    if operation.kind == CHAIN:
        kernel, hidden, mode = operation.p[0], operation.p[4], operation.p[5]
        before = source.batch * source.height * source.width * source.channels * hidden
        spatial = pixels * hidden * kernel**2 * (source.channels if mode == _DENSE_PROJECT else 1)
        return before * (mode == _EXPAND_DEPTHWISE_PROJECT) + spatial + pixels * hidden * out.channels
    if operation.kind == ATTENTION:
        return 2 * pixels * out.channels * (operation.p[1] + 1)
    return 0


