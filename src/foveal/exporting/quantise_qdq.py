"""Quantise ONNX models with pairs of QuantizeLinear and DequantizeLinear before layers, which OpenVINO reads, too."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..info import ModelInfo
from .graph import Feed, exporter_errors, metadata
from .layer_inputs import Layer, Range, find_layers, moments_of, ranges_of
from .openvino import convert_onnx
from .rounding import Rounded, round_weights

if TYPE_CHECKING:
    import onnx

_FUSED = ("Relu", "Clip")  # activations that kernels of integers compute, too


class OnnxQuantizer:
    """Writes an ONNX file in int8, with any of its layers left in float32.

    Only layers with weights are quantised, with their inputs. Products of two activations (attention), normalisers,
    softmax, fixed filters (resampling) and other activations always stay in float32. Weights have a scale per output
    channel, inputs have one scale.

    Args:
        source: the ONNX model in float32.
        feeds: inputs to calibrate on; they are read twice.

    Attributes:
        layers: bytes of the weights of each layer in float32, by name.

    Raises:
        ExportError: it cannot be quantised.
        DependencyError: a package is missing.
    """

    layers: Mapping[str, int]

    def __init__(self, source: Path, feeds: Iterable[Feed]) -> None:
        with exporter_errors("the network", "int8"):
            import onnx

            self.model = onnx.load(source)
            found = find_layers(self.model)
            self.ranges = ranges_of(self.model, found, feeds)
            moments = moments_of(self.model, found, self.ranges, feeds)
            self.rounded = {layer.name: round_weights(layer, moments.get(layer.name)) for layer in found}
        self.found = {layer.name: layer for layer in found}
        self.layers = {layer.name: layer.weights.nbytes for layer in found}

    def write(self, files: Sequence[Path], names: Collection[str], weights: Collection[str], info: ModelInfo) -> None:
        """Write the file; see :class:`foveal.exporting.quantise.Quantizer`."""
        files[0].write_bytes(self.make(names, weights, info).SerializeToString())

    def make(self, names: Collection[str], weights: Collection[str], info: ModelInfo) -> onnx.ModelProto:
        """The ONNX model with the layers ``names`` in int8, and of the layers ``weights`` the weights alone.

        Raises:
            ExportError: it cannot be quantised.
        """
        with exporter_errors(info.model, "int8"):
            writer = _Writer(self.model)
            for name, layer in self.found.items():
                if name in names or name in weights:
                    writer.quantise(layer, self.rounded[name], self.ranges[layer.input] if name in names else None)
            quantised = writer.finish()
        del quantised.metadata_props[:]
        for key, value in metadata(info).items():
            quantised.metadata_props.add(key=key, value=value)
        return quantised


class OpenVinoQuantizer(OnnxQuantizer):
    """Writes the quantised network of ONNX as files of OpenVINO, which then computes in integers what it can."""

    def write(self, files: Sequence[Path], names: Collection[str], weights: Collection[str], info: ModelInfo) -> None:
        """Write the files; see :class:`foveal.exporting.quantise.Quantizer`."""
        convert_onnx(self.make(names, weights, info), files, info)


class _Writer:
    """A copy of a model whose layers are quantised one after another."""

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        self.model = copy.deepcopy(model)
        self.graph = self.model.graph
        self.nodes = {node.name: node for node in self.graph.node}
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        self.before: dict[str, list[onnx.NodeProto]] = {}  # new nodes, by the name of the node that reads them first
        self.quantised: dict[str, str] = {}  # inputs
        self.biases: list[tuple[Layer, Rounded, Range]] = []

    def quantise(self, layer: Layer, rounded: Rounded, input: Range | None) -> None:
        """Quantise the weights of a layer and, if it has a range, its input."""
        node, scale = self.nodes[layer.node], self._constant(f"int8/{layer.name}/scale", rounded.scale)
        codes = self._constant(f"int8/{layer.name}/codes", rounded.codes)
        # ONNX Runtime 1.32 needs zero points of weights, though they are 0, and those of each layer for themselves.
        zeros = self._constant(f"int8/{layer.name}/zeros", np.zeros(len(rounded.scale), np.int8))
        node.input[1] = self._add(layer.node, "DequantizeLinear", [codes, scale, zeros], axis=layer.axis)
        if input is not None:
            node.input[0] = self._quantised_input(layer, input)
            self.biases.append((layer, rounded, input))
        change = rounded.bias if input is None else rounded.bias_quantised
        if change is not None:
            self._constant(f"int8/{layer.name}/bias", self.values[layer.bias] + change)
            node.input[2] = f"int8/{layer.name}/bias"

    def finish(self) -> onnx.ModelProto:
        """The model, with new nodes in their places and without what nothing reads."""
        self._quantise_biases()
        nodes = [each for node in self.graph.node for each in (*self.before.get(node.name, ()), node)]
        used = {name for node in nodes for name in node.input}
        tensors = [tensor for tensor in self.graph.initializer if tensor.name in used]
        nodes, tensors = copy.deepcopy(nodes), copy.deepcopy(tensors)
        del self.graph.node[:]
        del self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(tensors)
        _shorten_names(self.model)
        return self.model

    def _quantised_input(self, layer: Layer, input: Range) -> str:
        """Name of the input of a layer after quantisation, which layers that read the same one share."""
        if layer.input not in self.quantised:
            scale = self._constant(f"int8/{layer.name}/input_scale", np.float32(input.scale))
            zero = self._constant(f"int8/{layer.name}/input_zero", np.int8(input.zero))
            codes = self._add(layer.node, "QuantizeLinear", [layer.input, scale, zero])
            self.quantised[layer.input] = self._add(layer.node, "DequantizeLinear", [codes, scale, zero])
        return self.quantised[layer.input]

    def _quantise_biases(self) -> None:
        """Give layers whose output is quantised next biases that kernels of integers take."""
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in (*self.graph.node, *(node for nodes in self.before.values() for node in nodes)):
            for name in node.input:
                readers.setdefault(name, []).append(node)
        for layer, rounded, input in self.biases:
            node = self.nodes[layer.node]
            if layer.bias and _ends_in_int8(node.output[0], readers):
                scale = rounded.scale * np.float32(input.scale)
                codes = np.rint(self.values[node.input[2]] / scale.astype(np.float64))
                limits = np.iinfo(np.int32)
                codes = np.clip(codes, limits.min, limits.max).astype(np.int32)
                names = [
                    self._constant(f"int8/{layer.name}/bias_{key}", value)
                    for key, value in (("codes", codes), ("scale", scale))
                ]
                node.input[2] = self._add(layer.node, "DequantizeLinear", names, axis=0)

    def _add(self, before: str, operator: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node in front of another one; the name of its output."""
        from onnx import helper

        made = self.before.setdefault(before, [])
        output = f"int8/{before}/{len(made)}"
        made.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def _constant(self, name: str, value: Any) -> str:
        """Add a constant; its name."""
        from onnx import numpy_helper

        self.values[name] = value = np.asarray(value)
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name


def _ends_in_int8(name: str, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether a tensor is only read to be quantised, possibly after an activation."""
    found = readers.get(name, [])
    if len(found) == 1 and found[0].op_type in _FUSED:
        return _ends_in_int8(found[0].output[0], readers)
    return bool(found) and all(reader.op_type == "QuantizeLinear" for reader in found)


def _shorten_names(model: onnx.ModelProto) -> None:
    """Number the tensors inside the network, and leave out names of nodes: they take a tenth of a small file."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    numbers: dict[str, str] = {"": ""}

    def short(name: str) -> str:
        return name if name in kept else numbers.setdefault(name, f"{len(numbers):x}")

    for tensor in model.graph.initializer:
        tensor.name = short(tensor.name)
    for node in model.graph.node:
        node.ClearField("name")
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
