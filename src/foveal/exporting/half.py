"""Convert an ONNX graph to float16, except the layers that need the range or the precision of float32.

float16 has 11 bits and numbers from 6e-5 to 65504. Convolutions and products of activations stay within that; these
layers do not, and are computed in float32 between casts:

- quotients, for example the normalisers of linear attention: sums over all positions and an epsilon of 1e-15;
- norms, softmax and other functions of sums, exponentials, and sums over positions;
- coordinates: what is computed from shapes, points, and images of 8 bits, sines and cosines included;
- operations with a constant that float16 does not have;
- depthwise convolutions whose bias is larger than what they add to it, with all up to the next weights: in float16 the
  bias would take the bits of what varies. Folded batch norms give such biases. With them in float32, the logits of the
  bundled EfficientViT-B0 differ by 0.03 from those of float32, else by 0.28.

Large weights are stored in float16 even in a layer that is computed in float32; a cast widens them. The network that
is traced has such weights already (:mod:`.half_weights`).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ExportError

if TYPE_CHECKING:
    import onnx

_LARGEST, _SMALLEST = float(np.finfo(np.float16).max), float(np.finfo(np.float16).tiny)

#: Operators that are computed in float32 wherever they are.
_WIDE = {
    *("Softmax", "LogSoftmax", "LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization"),
    *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceProd", "GlobalAveragePool", "AveragePool"),
    *("Sqrt", "Reciprocal", "Pow", "Exp", "Log", "Softplus", "CumSum", "Resize", "Sin", "Cos", "Range"),
}
#: Operators that only move values, or compare them: they give the same numbers in both types.
_MOVING = {
    *("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Gather", "Expand"),
    *("Identity", "Tile", "Pad", "DepthToSpace", "SpaceToDepth", "Relu", "Neg", "Abs", "Max", "Min", "MaxPool"),
}
_BIASED = 2.0  #: ratio of bias and norm of the weights, the median over the channels, above which a bias dominates
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm"}  # operators with weights, as is a product with a constant
_LARGE = 1024  # numbers of a layer's weights that are stored in float16 where the layer is computed in float32
_MAP_NDIM = 4  # inputs with fewer dimensions are no maps: they hold points and sizes


def to_half(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Convert a graph of float32, in place; its inputs and outputs stay float32.

    Args:
        proto: a graph without branches and functions.

    Returns:
        Names of the layers that are computed in float32, in the order of the graph.

    Raises:
        ExportError: the type of a value is unknown.
    """
    graph = _Graph(proto)
    kept = _kept(graph)
    _convert(graph, kept)
    return tuple(dict.fromkeys(_layer(node) for i, node in enumerate(graph.nodes) if i in kept and graph.computes(i)))


def _layer(node: onnx.NodeProto) -> str:
    """Name of the layer that a node was traced from; without the tracer's note, its own."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "[]")
    layers = [scope for scope in ast.literal_eval(scopes)[:-1] if scope]
    return layers[-1].removeprefix("model.") if layers else node.name


class _Graph:
    """The nodes of a graph with the types of their values."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        self.graph = proto.graph
        self._constants_to_initializers()
        self.nodes = list(self.graph.node)
        self.arrays = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer if tensor.data_type == 1
        }
        self.maker = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, set[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in node.input:
                self.readers.setdefault(name, set()).add(i)
        self.types, self.ndims = self._infer(proto)

    def _constants_to_initializers(self) -> None:
        """Constants of every form become initializers, which one rule converts."""
        for node in [node for node in self.graph.node if node.op_type == "Constant"]:
            tensor = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
            if tensor is not None:
                self.graph.initializer.add().CopyFrom(tensor)
                self.graph.initializer[-1].name = node.output[0]
                self.graph.node.remove(node)

    def _infer(self, proto: onnx.ModelProto) -> tuple[dict[str, int], dict[str, int]]:
        """Types of values, and numbers of dimensions of inputs."""
        from onnx import shape_inference

        inferred = shape_inference.infer_shapes(_without_weights(proto)).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        types = {value.name: value.type.tensor_type.elem_type for value in values}
        types |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
        if unknown := next((name for name in self.maker if not types.get(name)), None):
            raise ExportError(f"float16: the type of the value {unknown!r} is unknown")
        inputs = {value.name for value in proto.graph.input}
        dims = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.input if value.name in inputs}
        return types, dims

    def is_float(self, name: str) -> bool:
        """Whether a value is of float32."""
        return self.types.get(name) == 1

    def floats(self, i: int) -> Iterator[str]:
        """Inputs of a node in float32 that are no constants."""
        return (name for name in self.nodes[i].input if self.is_float(name) and name not in self.arrays)

    def makes_float(self, i: int) -> bool:
        """Whether a node has an output of float32."""
        return any(map(self.is_float, self.nodes[i].output))

    def computes(self, i: int) -> bool:
        """Whether a node computes numbers of float32, in place of moving or converting them."""
        return self.nodes[i].op_type not in (*_MOVING, "Cast") and (any(self.floats(i)) or self.makes_float(i))

    def weighted(self, i: int) -> bool:
        """Whether a node multiplies by weights."""
        node = self.nodes[i]
        return node.op_type in _WEIGHTED or (
            node.op_type == "MatMul" and any(name in self.arrays for name in node.input)
        )


def _kept(graph: _Graph) -> set[int]:
    """Numbers of the nodes that stay in float32."""
    kept = _coordinates(graph)
    for i, node in enumerate(graph.nodes):
        if node.op_type in _WIDE or any(
            _out_of_range(graph.arrays[name]) for name in node.input if name in graph.arrays
        ):
            kept.add(i)
        if node.op_type == "Div" and graph.makes_float(i) and node.input[1] not in graph.arrays:
            kept |= _sources(graph, i, through_products=False)
        if node.op_type in ("Sin", "Cos"):
            kept |= _sources(graph, i, through_products=True)
        if _bias_dominates(graph, node):
            kept |= _results(graph, i)
    for i in sorted(kept):  # in the order of the graph: what only moves values of float16 can stay in float16
        makers = [graph.maker.get(name) for name in graph.floats(i)]
        if graph.nodes[i].op_type in _MOVING and makers and all(m is not None and m not in kept for m in makers):
            kept.remove(i)
    return kept


def _out_of_range(array: np.ndarray) -> bool:
    """Whether an array has a number that float16 does not: too large or, of a single number, too small."""
    finite = np.abs(array[np.isfinite(array)])
    return bool(finite.size) and (finite.max() > _LARGEST or (array.size == 1 and 0 < finite.max() < _SMALLEST))


def _bias_dominates(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Whether a node is a depthwise convolution with biases that are large beside its weights."""
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    if node.op_type != "Conv" or groups == 1 or not all(name in graph.arrays for name in node.input[1:3]):
        return False
    weight, *biases = (graph.arrays[name] for name in node.input[1:3])
    norms = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
    return weight.shape[1] == 1 and any(float(np.median(np.abs(bias) - _BIASED * norms)) > 0 for bias in biases)


def _has_large_weights(graph: _Graph, i: int) -> bool:
    """Whether a node multiplies by large weights that float16 has.

    Products with a matrix do not count: it may hold coordinates, or the filters of a resize.
    """
    node = graph.nodes[i]
    weights = graph.arrays.get(node.input[1]) if node.op_type in _WEIGHTED else None
    return weights is not None and weights.size >= _LARGE and not _out_of_range(weights)


def _results(graph: _Graph, start: int) -> set[int]:
    """A node and all that is computed from it, up to and with those with weights."""
    found, waiting = {start}, [start]
    while waiting:
        for name in graph.nodes[waiting.pop()].output:
            new = graph.readers.get(name, set()) - found
            found |= new
            waiting += [i for i in new if not graph.weighted(i)]
    return found


def _sources(graph: _Graph, end: int, through_products: bool) -> set[int]:
    """A node and all from which it is computed, up to those with weights.

    Args:
        graph: the graph.
        end: number of the node.
        through_products: whether products with a constant matrix belong to them.
    """
    found, waiting = {end}, [end]
    while waiting:
        for name in graph.floats(waiting.pop()):
            i = graph.maker.get(name)
            if i is None or i in found:
                continue
            is_product = graph.nodes[i].op_type == "MatMul"
            if not graph.weighted(i) or (through_products and is_product):
                found.add(i)
                waiting.append(i)
    return found


def _coordinates(graph: _Graph) -> set[int]:
    """Nodes that compute with numbers made of integers, points or sizes, up to those with weights."""
    exact = {name for name, ndim in graph.ndims.items() if ndim < _MAP_NDIM and graph.is_float(name)}
    kept: set[int] = set()
    for i, node in enumerate(graph.nodes):
        floats = list(graph.floats(i))
        from_integers = node.op_type in ("Cast", "Range") and graph.makes_float(i) and not floats
        if from_integers or (any(name in exact for name in floats) and not graph.weighted(i)):
            kept.add(i)
            if all(name in exact for name in floats):
                exact.update(filter(graph.is_float, node.output))
    return kept


def _convert(graph: _Graph, kept: set[int]) -> None:
    """Give every other node float16 inputs and outputs, with casts at the borders."""
    from onnx import TensorProto, helper, numpy_helper

    proto = graph.graph
    outputs = {value.name for value in proto.output}
    half = {  # values that are computed in float16
        name for i, node in enumerate(graph.nodes) if i not in kept for name in node.output if graph.is_float(name)
    }
    renamed = {name: f"{name}.half" for name in half & outputs}
    enlarged = {graph.nodes[i].input[1] for i in kept if _has_large_weights(graph, i)}
    nodes: list[onnx.NodeProto] = []
    made: dict[tuple[str, bool], str] = {}

    def value(name: str, wide: bool) -> str:
        """Name of a value in float32 or float16."""
        if not graph.is_float(name) or (name in graph.arrays and wide and name not in enlarged):
            return name
        if name not in graph.arrays and wide != (name in half):
            return renamed.get(name, name)
        if (name, wide) not in made:
            stored = value(name, False) if wide and name in enlarged else renamed.get(name, name)
            made[name, wide] = new = name if wide and name in outputs else f"{name}.{'float' if wide else 'half'}"
            if name in graph.arrays and not wide:
                with np.errstate(under="ignore"):
                    proto.initializer.append(numpy_helper.from_array(graph.arrays[name].astype(np.float16), new))
            else:
                to = TensorProto.FLOAT if wide else TensorProto.FLOAT16
                nodes.append(helper.make_node("Cast", [stored], [new], to=to, name=f"cast_{new}"))
        return made[name, wide]

    for i, node in enumerate(graph.nodes):
        wide = i in kept or not graph.makes_float(i)
        inputs = [value(name, wide) for name in node.input]
        node.input[:] = inputs
        if not wide:
            node.output[:] = [renamed.get(name, name) for name in node.output]
            _retype(node)
        nodes.append(node)
    for name in sorted(half & outputs):
        value(name, True)
    del proto.node[:]
    proto.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | outputs
    stored = [tensor for tensor in proto.initializer if tensor.name in used]
    del proto.initializer[:]
    proto.initializer.extend(stored)


def _retype(node: onnx.NodeProto) -> None:
    """Change the attributes of a node that name float32."""
    from onnx import TensorProto, numpy_helper

    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))


_SMALL = 1024  # numbers of an array whose values shapes may depend on


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, whose large arrays are inputs: inferring shapes writes a model to memory, which ends at 2 GiB."""
    import onnx
    from onnx import helper

    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    graph, source = light.graph, proto.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    for tensor in source.initializer:
        if math.prod(tensor.dims) <= _SMALL or any(tensor.name == value.name for value in source.input):
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light
