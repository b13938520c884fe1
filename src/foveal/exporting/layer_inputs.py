"""What the layers of an ONNX model read on images of calibration: ranges, and means and covariances of patches.

A layer with weights multiplies a matrix with patches of its input: all channels under a kernel of a convolution, a row
of a matrix product. Rounding its weights well needs the covariance of these patches, correcting its bias their mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ExportError
from .graph import Feed

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_POSITIONS = 256  # of each image that patches are taken from
_VALUES = 512  # of each image that a range is chosen on
_LARGEST_PATCH = 4096  # numbers: the covariance of a longer patch takes too much memory
_LEVELS = 255  # between the ends of a range of 8 bits
_SHRINKS = np.linspace(1.0, 0.3, 15)  # of a range that are tried
_SEED = 0
_BYTES = 256 << 20  # of values that are fetched at once
_ITEM = 4  # bytes of a number: layers compute in float32
_COUNT = "number of values of "  # beginning of the names of outputs, which no tensor of a traced model has


@dataclass(frozen=True)
class Layer:
    """A node with weights.

    Attributes:
        name: of the module that it was traced from, or of the node.
        node: name of the node.
        op: its operator.
        input: name of the tensor that it reads.
        weight: name of its weights.
        bias: name of its bias; empty if it has none, or one that is computed.
        weights: their values.
        attributes: of the node.
    """

    name: str
    node: str
    op: str
    input: str
    weight: str
    bias: str
    weights: Array
    attributes: Mapping[str, Any]

    @property
    def axis(self) -> int:
        """Axis of the weights that has the output channels."""
        if self.op == "Gemm":
            return 0 if self.attributes.get("transB") else 1
        return 0 if self.op == "Conv" else 1

    @property
    def has_patches(self) -> bool:
        """Whether its output is a matrix times patches of the input, as this module takes them."""
        if self.op == "Conv":
            explicit = self.attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
            return explicit and self.weights.ndim == 4 and self.matrix().shape[2] <= _LARGEST_PATCH
        plain = not self.attributes.get("transA") and {*map(self.attributes.get, ("alpha", "beta"))} <= {None, 1.0}
        return self.op != "ConvTranspose" and plain and self.matrix().shape[2] <= _LARGEST_PATCH

    def matrix(self) -> Array:
        """The weights as (groups, output channels of a group, numbers of a patch)."""
        rows = np.moveaxis(self.weights, self.axis, 0)
        groups = self.attributes.get("group", 1) if self.op == "Conv" else 1
        return rows.reshape(groups, len(rows) // groups, -1)

    def like_weights(self, matrix: Array) -> Array:
        """An array of the shape of :meth:`matrix` in the shape of the weights."""
        shape = np.moveaxis(self.weights, self.axis, 0).shape
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(shape), 0, self.axis))

    def patches(self, x: Array, rng: np.random.Generator) -> Array:
        """Patches of an input at random places: (groups, places, numbers of a patch)."""
        if self.op != "Conv":
            rows = x.reshape(-1, x.shape[-1])
            return rows[rng.integers(0, len(rows), min(_POSITIONS, len(rows)))][None]
        (kh, kw), groups = self.weights.shape[2:], self.attributes.get("group", 1)
        (top, left, bottom, right), steps, gaps = (
            self.attributes.get(key, default)
            for key, default in (("pads", [0] * 4), ("strides", [1, 1]), ("dilations", [1, 1]))
        )
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        batch, channels, height, width = x.shape
        places = [
            (side - (size - 1) * gap - 1) // step + 1
            for side, size, gap, step in zip((height, width), (kh, kw), gaps, steps, strict=True)
        ]
        count = min(_POSITIONS, batch * places[0] * places[1])
        image, row, column = (rng.integers(0, most, count) for most in (batch, *places))
        rows = (row * steps[0])[:, None, None] + (np.arange(kh) * gaps[0])[:, None]
        columns = (column * steps[1])[:, None, None] + np.arange(kw) * gaps[1]
        found = x[image[:, None, None], :, rows, columns]  # count, kh, kw, channels
        found = found.reshape(count, kh * kw, groups, channels // groups)
        return found.transpose(2, 0, 3, 1).reshape(groups, count, -1)


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """The nodes with weights that can be quantised, in order."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == tensor.FLOAT}
    found: dict[str, Layer] = {}
    for node in model.graph.node:
        if node.op_type not in _LAYERS or node.input[1] not in constants:
            continue
        weight, is_parameter = node.input[1], node.input[1].endswith(".weight")
        is_product = "Conv" not in node.op_type
        if not (is_parameter or is_product) or (is_product and len(constants[weight].dims) != 2):
            continue  # other filters are fixed ones
        name = weight.removeprefix("model.").removesuffix(".weight") if is_parameter else node.name
        bias = next((other for other in node.input[2:] if other in constants), "")
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        values = numpy_helper.to_array(constants[weight])
        found[name] = Layer(name, node.name, node.op_type, node.input[0], weight, bias, values, attributes)
    return list(found.values())


@dataclass(frozen=True)
class Range:
    """How a tensor is quantised: ``round(x / scale) + zero``, between -128 and 127."""

    scale: float
    zero: int

    def __call__(self, x: Array) -> Array:
        """The values that the integers stand for."""
        codes = np.clip(np.rint(x / np.float32(self.scale)) + self.zero, -128, 127)
        return (codes - self.zero) * np.float32(self.scale)

    @classmethod
    def between(cls, low: float, high: float) -> Range:
        """The range from ``low`` to ``high``, in which 0 is a value of an integer."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / _LEVELS)) or 1.0
        return cls(scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)))


@dataclass
class Moments:
    """Mean and covariance of the patches that a layer reads.

    Attributes:
        mean: (groups, numbers of a patch).
        mean_quantised: the same of the input after quantisation.
        covariance: (groups, numbers, numbers); for layers without a bias second moments about 0, not about the mean.
    """

    mean: Array
    mean_quantised: Array
    covariance: Array


def ranges_of(model: onnx.ModelProto, layers: Sequence[Layer], feeds: Iterable[Feed]) -> dict[str, Range]:
    """The range of each tensor that a layer reads, with the smallest mean square error on a sample of values.

    It lies inside the mean over the images of the smallest and the largest value.
    """
    rng = np.random.default_rng(_SEED)
    ends: dict[str, list[tuple[float, float]]] = {}
    samples: dict[str, list[Array]] = {}
    fetch = _Fetcher(model, names := sorted({layer.input for layer in layers}))
    for feed in feeds:
        for name, x in zip(names, fetch(feed), strict=True):
            ends.setdefault(name, []).append((float(x.min()), float(x.max())))
            samples.setdefault(name, []).append(x.reshape(-1)[rng.integers(0, x.size, min(_VALUES, x.size))])
    if not samples:
        raise ExportError("none of the images to calibrate on can be read")
    found = {}
    for name, sample in samples.items():
        low, high = np.mean(ends[name], axis=0).tolist()
        found[name] = _best_range(low, high, np.concatenate(sample))
    return found


def _best_range(low: float, high: float, sample: Array) -> Range:
    """The part of the range from ``low`` to ``high`` with the smallest mean square error of a sample."""

    def error(ends: tuple[float, float]) -> float:
        return float(np.square(Range.between(*ends)(sample) - sample).mean())

    best = low, high
    for _ in range(2):  # one end after the other
        best = min(((low * shrink, best[1]) for shrink in _SHRINKS), key=error)
        best = min(((best[0], high * shrink) for shrink in _SHRINKS), key=error)
    return Range.between(*best)


def moments_of(
    model: onnx.ModelProto, layers: Sequence[Layer], ranges: Mapping[str, Range], feeds: Iterable[Feed]
) -> dict[str, Moments]:
    """Moments of the patches of each layer that has some, by the names of the layers."""
    rng = np.random.default_rng(_SEED)
    layers = [layer for layer in layers if layer.has_patches]
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.input, []).append(layer)
    sums: dict[str, list[Any]] = {}
    fetch = _Fetcher(model, [layer.input for layer in layers])
    for feed in feeds:
        for layer, x in zip(layers, fetch(feed), strict=True):
            patches = layer.patches(x, rng)
            new = [
                patches.sum(1, dtype=np.float64),
                ranges[layer.input](patches).sum(1, dtype=np.float64),
                patches.swapaxes(1, 2) @ patches,
                patches.shape[1],
            ]
            old = sums.get(layer.name)
            sums[layer.name] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]
    found = {}
    for layer in layers:
        total, quantised, products, count = sums[layer.name]
        mean = total / count
        covariance = products / count
        if layer.bias:  # it takes what is constant
            covariance = covariance - mean[:, :, None] * mean[:, None]
        found[layer.name] = Moments(mean, quantised / count, covariance)
    return found


class _Fetcher:
    """Fetches the values of tensors of a model, not more of them at once than :data:`_BYTES`.

    All layer inputs of one large image together take gigabytes. The network therefore runs several times on it, each
    time for some of the tensors and as far as these need it.

    Args:
        model: the model.
        names: of the tensors, in the order in which they are fetched; a name may come more than once.
    """

    def __init__(self, model: onnx.ModelProto, names: Iterable[str]) -> None:
        self.model, self.names = model, list(names)
        self.inputs = {value.name for value in model.graph.input}
        self._groups: dict[tuple[tuple[int, ...], ...], list[list[str]]] = {}  # by the shapes of the feed
        self._sessions: dict[tuple[str, ...], Any] = {}
        self._counting: Any = None  # a session

    def __call__(self, feed: Feed) -> Iterator[Array]:
        """The values of each tensor on a feed, in the order of the names."""
        shapes = tuple(value.shape for value in feed.values())
        if shapes not in self._groups:
            self._groups[shapes] = self._grouped(feed)
        for group in self._groups[shapes]:
            values = self._fetch(group, feed)
            yield from map(values.__getitem__, group)
            del values  # before the next ones are fetched

    def _fetch(self, names: Sequence[str], feed: Feed) -> dict[str, Array]:
        computed = tuple(dict.fromkeys(name for name in names if name not in self.inputs))
        if not computed:
            return dict(feed)
        if computed not in self._sessions:
            self._sessions[computed] = _session(_part(self.model, computed))
        return {**feed, **dict(zip(computed, self._sessions[computed].run(computed, dict(feed)), strict=True))}

    def _grouped(self, feed: Feed) -> list[list[str]]:
        """The names in groups whose values take at most :data:`_BYTES`, or that have one name."""
        sizes = self._bytes(feed)
        groups: list[list[str]] = []
        left = -1
        for name in self.names:
            size = 0 if groups and name in groups[-1] else sizes[name]
            if size > left:
                groups.append([])
                left = _BYTES
            groups[-1].append(name)
            left -= size
        return groups

    def _bytes(self, feed: Feed) -> dict[str, int]:
        """Bytes of the values of each tensor; the network counts them and gives no values."""
        from onnx import TensorProto, helper

        sizes = {name: int(value.nbytes) for name, value in feed.items()}
        if computed := sorted(set(self.names) - self.inputs):
            if self._counting is None:
                model = _part(self.model, computed)
                del model.graph.output[:]
                for number, name in enumerate(computed):
                    count = f"{_COUNT}{number}"
                    model.graph.node.append(helper.make_node("Size", [name], [count]))
                    model.graph.output.append(helper.make_tensor_value_info(count, TensorProto.INT64, []))
                self._counting = _session(model)
            counts = self._counting.run(None, dict(feed))
            sizes |= {name: _ITEM * int(count) for name, count in zip(computed, counts, strict=True)}
        return sizes


def _part(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The part of a model that computes these tensors, which are its outputs."""
    import onnx

    wanted, nodes = set(names), []
    for node in reversed(model.graph.node):  # they are in the order of computation
        if wanted.intersection(node.output):
            nodes.append(node)
            wanted.update(node.input)
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.initializer[:], part.graph.output[:]
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in wanted)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return part


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # several sessions are open, and each would keep what it used
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
