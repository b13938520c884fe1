"""From a torch model to the steps that compute it: each an operation on windows, a sum over a map, or a plain function.

``torch.fx`` records the model as a graph. Sizes in the graph are evaluated for the size of the image; what is left are
maps, and tensors that are the same for all places, such as the means of a squeeze-and-excitation.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ..errors import ConfigError
from ..layers.conv import pad_same, widened
from ..layers.packed import PackedConv2d, PackedLinear
from ..layers.resample import BicubicUpsample, check_min_size, crop
from .geometry import UnstreamableError, power_of_two_below
from .module_parts import WindowPart
from .operations import (
    Attending,
    Cropping,
    Enlarging,
    InWindows,
    KeySums,
    Mean,
    Operation,
    Padding,
    Pointwise,
    Reduction,
    Shuffling,
    Sliding,
)
from .regions import Extent
from .split_attention import attend_heads, split_modules, sum_keys
from .steps import SOURCE, Program, Step


class _Network(nn.Module):
    """The model with the arguments that are not the image."""

    def __init__(self, model: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.options = model, dict(options)

    def forward(self, x: Tensor) -> Any:
        return self.model(x, **self.options)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _MODULES or super().is_leaf_module(m, module_qualified_name)


class _Channels(fx.Interpreter):
    """Runs the graph on a small image and keeps the results, for the channels of each map."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.results: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.results[n.name] = result = super().run_node(n)
        return result


@torch.inference_mode()
def derive(model: nn.Module, height: int, width: int, *, channels: int = 3, **options: Any) -> Program:
    """Derive the steps that compute ``model`` on an image of ``height`` x ``width`` pixels.

    Args:
        model: in evaluation mode, perhaps optimised; it is not changed, and its weights are shared.
        height, width: of the image.
        channels: of the image.
        **options: further arguments of the model.

    Raises:
        ConfigError: a layer that cannot be computed in pieces; the message names it and the reason.
        InputError: an image smaller than the model takes.
    """
    network = _Network(split_modules(model), options).eval()
    kind = type(model).__name__
    try:
        graph = _Tracer().trace(network)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:  # fx.proxy.TraceError is a ValueError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{kind} cannot be streamed exactly: its graph cannot be recorded ({reason})") from error
    module = fx.GraphModule(network, graph)
    weight = next(network.parameters())
    sample = _Channels(module)
    sample.run(torch.zeros(1, channels, _SAMPLE, _SAMPLE, device=weight.device, dtype=weight.dtype))
    walk = _Walk(module, sample.results, Extent(height, width, Fraction(1)), channels)
    for node in graph.nodes:
        walk.visit(node)
    return Program(walk.image, channels, walk.steps, walk.outputs, network)


_SAMPLE = 128  # pixels on a side of the image on which channels are counted


@dataclass(frozen=True)
class _Ref:
    """Stands for the output of a step among the arguments of a node."""

    name: str


class _Walk:
    """Visits the nodes of a graph in order and collects the steps."""

    def __init__(self, module: fx.GraphModule, results: dict[str, Any], image: Extent, channels: int) -> None:
        self.modules, self.module = dict(module.named_modules()), module
        self.results, self.image = results | {SOURCE: next(iter(results.values()))}, image
        self.steps = {SOURCE: Step(SOURCE, "", (), channels, image)}
        self.outputs: tuple[str, ...] = ()
        self.converted: dict[nn.Module, Operation] = {}  # a module may be used several times
        self.values: dict[str, Any] = {}  # by node: a _Ref, or what the node is for this size of the image

    def visit(self, node: fx.Node) -> None:
        args, kwargs = map_arg((node.args, node.kwargs), lambda each: self.values[each.name])
        if node.op == "placeholder":
            self.values[node.name] = _Ref(SOURCE)
        elif node.op == "get_attr":
            self.values[node.name] = operator.attrgetter(str(node.target))(self.module)
        elif node.op == "output":
            self.outputs = tuple(ref.name for ref in _refs(args))
        else:
            try:
                self.values[node.name] = self._value(node, args, kwargs)
            except UnstreamableError as reason:
                layer = _layer(node) or node.name
                raise ConfigError(f"this model cannot be streamed exactly: {layer}: {reason}") from reason

    def _value(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """What a node is: a reference to a step, or a plain value."""
        target = self.modules[str(node.target)] if node.op == "call_module" else node.target
        refs = _refs((args, kwargs))
        if not refs:
            method = node.op == "call_method"
            call: Any = getattr(args[0], str(target)) if method else target
            return call(*args[method:], **kwargs)
        first = self.steps[refs[0].name]
        if target in (getattr, "size"):
            shape = self._shape(first)
            if target == "size":
                return shape[args[1]] if len(args) > 1 else shape
            return shape if args[1] == "shape" else getattr(self.results[first.name], args[1])
        names = tuple(ref.name for ref in refs)
        if all(self.steps[name].extent is None for name in names):
            return self._add(node, names, function=_bound(node, target, args, kwargs))
        if isinstance(target, nn.Identity | nn.Dropout):
            return refs[0]
        if target is check_min_size:
            check_min_size(torch.empty(self._shape(first), device="meta"), args[1])
            return None
        extents = [self.steps[name].extent for name in names]
        made = self._convert(node, target, args, kwargs, extents)
        if isinstance(made, Mean | KeySums):
            return self._add(node, names, reduction=made)
        arithmetic = target.weight.numel() if isinstance(target, nn.Conv2d) else 0
        return self._add(node, names, operation=made, extent=made.extent(extents), arithmetic=arithmetic)

    def _convert(self, node: fx.Node, target: Any, args: Any, kwargs: Any, extents: list[Extent | None]) -> Any:
        """The operation or reduction of a node."""
        if isinstance(target, nn.Module):
            converter = _MODULES.get(type(target)) or _TORCH_MODULES.get(type(target))
            if converter is None:
                raise UnstreamableError(f"no rule for computing a {type(target).__name__} in pieces")
            if target not in self.converted:
                self.converted[target] = converter(target)
            return self.converted[target]
        if target in _FUNCTIONS:
            return _FUNCTIONS[target](self, args, kwargs, extents)
        if target in _POINTWISE or target in _POINTWISE_METHODS:
            return Pointwise(_bound(node, target, args, kwargs))
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        if name in _TOKENS:
            raise UnstreamableError(
                f"it makes tokens of the map ({name}), each of which may depend on the whole map, as softmax attention "
                "does"
            )
        raise UnstreamableError(f"no rule for computing {name} in pieces")

    def _add(self, node: fx.Node, inputs: tuple[str, ...], **fields: Any) -> _Ref:
        result = self.results[node.name]
        channels = result.shape[1] if isinstance(result, Tensor) and result.ndim > 1 else 1
        self.steps[node.name] = Step(node.name, _layer(node), inputs, channels, **fields)
        return _Ref(node.name)

    def _shape(self, step: Step) -> torch.Size:
        if step.extent is None:
            return self.results[step.name].shape
        return torch.Size((1, step.channels, step.extent.height, step.extent.width))

    def extent_of(self, value: Any) -> Extent:
        """Size of the map that an argument stands for."""
        extent = self.steps[value.name].extent if isinstance(value, _Ref) else None
        if extent is None:
            raise UnstreamableError("it expects a map")
        return extent


def _refs(value: Any) -> list[_Ref]:
    """The references inside nested arguments, in order."""
    if isinstance(value, _Ref):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    return [ref for each in value for ref in _refs(each)] if isinstance(value, Iterable) and not isinstance(
        value, str | Tensor
    ) else []  # fmt: skip


def _filled(value: Any, tensors: Any) -> Any:
    """Nested arguments with the next of ``tensors`` in place of each reference."""
    if isinstance(value, _Ref):
        return next(tensors)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(_filled(each, tensors) for each in value)
    if isinstance(value, Mapping):
        return {key: _filled(each, tensors) for key, each in value.items()}
    return value


def _bound(node: fx.Node, target: Any, args: Any, kwargs: Any) -> Callable[..., Tensor]:
    """A function of the tensors among the arguments of a node."""
    if node.op != "call_method" and not kwargs and all(isinstance(each, _Ref) for each in args):
        return target

    def call(*tensors: Tensor) -> Tensor:
        values = iter(tensors)
        given, named = _filled(args, values), _filled(kwargs, values)
        if node.op == "call_method":
            return getattr(given[0], str(target))(*given[1:], **named)
        return target(*given, **named)

    return call


def _layer(node: fx.Node) -> str:
    """Name of the module in the model in which a node was recorded."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    name = str(stack[-1][0]) if stack else ""
    return _ADDED.sub("", name).removeprefix("model.").removeprefix("model")


_ADDED = re.compile(r"\.order\.\d+")  # names that the split modules have in addition to the model's


def _convolution(conv: nn.Conv2d) -> Operation:
    plain = conv.kernel_size == conv.stride == (1, 1) and conv.padding in ((0, 0), "valid")
    return Pointwise(conv) if plain else Sliding.convolution(conv)


def _in_windows(part: WindowPart) -> Operation:
    if part.window is None:
        raise UnstreamableError("it mixes the whole map")
    return Pointwise(part) if part.window == 1 else InWindows(part, part.window)


def _pool(walk: _Walk, args: Any, kwargs: Any, extents: list[Extent | None]) -> Reduction:
    size = args[1] if len(args) > 1 else kwargs.get("output_size")
    if size not in (1, (1, 1), [1, 1]):
        raise UnstreamableError(f"it pools to {size} places; only pooling to one is a sum")
    return Mean(keepdim=True)


def _mean(walk: _Walk, args: Any, kwargs: Any, extents: list[Extent | None]) -> Reduction | Operation:
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or [])
    keepdim = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
    if sorted(dim % 4 for dim in dims) == [2, 3]:
        return Mean(keepdim)
    if dims in ([1], [-3]) and keepdim:
        return Pointwise(lambda x: x.mean(1, keepdim=True))
    raise UnstreamableError(f"its mean is over the dimensions {dims}")


def _pad(walk: _Walk, args: Any, kwargs: Any, extents: list[Extent | None]) -> Operation:
    pads, mode = list(args[1] if len(args) > 1 else kwargs["pad"]), kwargs.get("mode", "constant")
    value = kwargs.get("value") or 0
    if len(pads) != 4 or min(pads) < 0 or mode not in ("constant", "replicate") or value:
        raise UnstreamableError(f"its padding is {mode}, {pads}")
    return Padding(*pads, replicate=mode == "replicate")


def _same(walk: _Walk, args: Any, kwargs: Any, extents: list[Extent | None]) -> Operation:
    x, kernel, stride = args
    pads: list[int] = []
    extent = walk.extent_of(x)
    for length in (extent.width, extent.height):  # as pad_same computes it
        total = max(0, (-(-length // stride) - 1) * stride + kernel - length)
        pads += [total // 2, total - total // 2]
    return Padding(*pads, replicate=False)


def _crop(walk: _Walk, args: Any, kwargs: Any, extents: list[Extent | None]) -> Operation:
    return Cropping(args[1], args[2])


def _item(walk: _Walk, args: Any, kwargs: Any, extents: list[Extent | None]) -> Operation:
    index = args[1]
    index = index if isinstance(index, tuple) else (index,)
    others, last = index[:-2], index[-2:]
    both = len(index) == 4 or (index[:1] == (...,) and len(index) in (3, 4))  # height and width are the last two
    whole = all(each is ... or each == slice(None) for each in others)
    if not (both and whole) or not all(isinstance(each, slice) and not each.start and not each.step for each in last):
        raise UnstreamableError(f"it takes the part {index} of a map")
    extent = walk.extent_of(args[0])
    height, width = (
        length if each.stop is None else (each.stop if each.stop >= 0 else length + each.stop)
        for each, length in zip(last, extent[:2], strict=True)
    )
    return Cropping(height, width)


def _shuffle(walk: _Walk, args: Any, kwargs: Any, extents: list[Extent | None]) -> Operation:
    return Shuffling(args[1] if len(args) > 1 else kwargs["upscale_factor"])


def _join(walk: _Walk, args: Any, kwargs: Any, extents: list[Extent | None]) -> Operation:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if dim not in (1, -3):
        raise UnstreamableError(f"it joins maps along dimension {dim}")
    return Pointwise(lambda *maps: torch.cat(maps, dim=1))


def _keys(walk: _Walk, args: Any, kwargs: Any, extents: list[Extent | None]) -> Reduction:
    return KeySums(args[0], power_of_two_below(walk.extent_of(args[1]).places))


def _attend(walk: _Walk, args: Any, kwargs: Any, extents: list[Extent | None]) -> Operation:
    return Pointwise(Attending(args[0], args[1] * power_of_two_below(walk.extent_of(args[3]).places)))


_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Tanh, nn.LeakyReLU,
    nn.ELU, nn.Softplus,
)  # fmt: skip
#: How a module is computed in pieces, for modules that are one step.
_MODULES: dict[type[nn.Module], Callable[[Any], Operation]] = {
    PackedConv2d: _convolution,
    PackedLinear: Pointwise,
    WindowPart: _in_windows,
    BicubicUpsample: lambda module: Pointwise(nn.Identity()) if module.factor == 1 else Enlarging.of(module),
}
_TORCH_MODULES: dict[type[nn.Module], Callable[[Any], Operation]] = {
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: Pointwise,
    **dict.fromkeys(_ACTIVATIONS, Pointwise),
}
_FUNCTIONS: dict[Any, Callable[..., Operation | Reduction]] = {
    F.adaptive_avg_pool2d: _pool,
    "mean": _mean,
    torch.mean: _mean,
    F.pad: _pad,
    pad_same: _same,
    crop: _crop,
    operator.getitem: _item,
    F.pixel_shuffle: _shuffle,
    torch.cat: _join,
    sum_keys: _keys,
    attend_heads: _attend,
}
#: Functions and methods of the values at each place, or of its channels.
_POINTWISE = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.iadd, operator.imul, torch.add,
    torch.mul, torch.sqrt, torch.rsqrt, torch.sigmoid, torch.relu, torch.clamp, F.relu, F.relu6, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.silu, F.gelu, F.sigmoid, F.tanh, F.leaky_relu, widened,
}  # fmt: skip
_POINTWISE_METHODS = {
    "add", "sub", "mul", "div", "sqrt", "rsqrt", "relu", "sigmoid", "clamp", "square", "float", "to", "type_as",
    "contiguous",
}  # fmt: skip
_TOKENS = {"flatten", "reshape", "view", "permute", "transpose", "unflatten", "chunk", "split"}
