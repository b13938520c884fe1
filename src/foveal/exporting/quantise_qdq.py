"""Quantise with ONNX Runtime: pairs of QuantizeLinear and DequantizeLinear before layers, which OpenVINO reads, too."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..info import ModelInfo
from .graph import Feed, exporter_errors, metadata
from .openvino import convert_onnx

if TYPE_CHECKING:
    import onnx

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FUSED = ("Relu", "Clip")  # activations that kernels of integers compute, too


class OnnxQuantizer:
    """Writes an ONNX file in int8, with any of its layers left in float32.

    Only layers with weights are quantised, with their inputs. Products of two activations (attention), normalisers,
    softmax, fixed filters (resampling) and other activations always stay in float32. Weights have a scale per output
    channel; inputs have the mean over the images of their smallest and largest value as range.

    Args:
        source: the ONNX model in float32.
        feeds: inputs to calibrate on.

    Attributes:
        layers: bytes of the weights of each layer in float32, by name.

    Raises:
        ExportError: it cannot be quantised.
        DependencyError: a package is missing.
    """

    layers: Mapping[str, int]

    def __init__(self, source: Path, feeds: Iterable[Feed]) -> None:
        with exporter_errors("the network", "int8"), TemporaryDirectory() as folder:
            import onnx
            from onnxruntime.quantization.shape_inference import quant_pre_process

            prepared = Path(folder) / "prepared.onnx"
            # Without the optimiser, which renames nodes and splits HardSwish.
            quant_pre_process(source, prepared, skip_optimization=True, auto_merge=True)
            self.model = onnx.load(prepared)
            self.nodes, self.layers = _find_layers(self.model)
            self.ranges = _calibrate(prepared, feeds)

    def write(self, files: Sequence[Path], names: Collection[str], weights: Collection[str], info: ModelInfo) -> None:
        """Write the file; see :class:`foveal.exporting.quantise.Quantizer`."""
        files[0].write_bytes(self.make(names, weights, info).SerializeToString())

    def make(self, names: Collection[str], weights: Collection[str], info: ModelInfo) -> onnx.ModelProto:
        """The ONNX model with the layers ``names`` in int8, and of the layers ``weights`` the weights alone.

        Raises:
            ExportError: it cannot be quantised.
        """
        with exporter_errors(info.model, "int8"):
            nodes = [self.nodes[name] for name in (*names, *weights)]
            quantised = _quantise(copy.deepcopy(self.model), self.ranges, nodes)
            _keep_inputs(quantised, self.model, [self.nodes[name] for name in weights])
            _keep_biases(quantised, self.model)
            _drop_unused(quantised)
            _shorten_names(quantised)
        del quantised.metadata_props[:]
        for key, value in metadata(info).items():
            quantised.metadata_props.add(key=key, value=value)
        return quantised


class OpenVinoQuantizer(OnnxQuantizer):
    """Writes the quantised network of ONNX as files of OpenVINO, which then computes in integers what it can."""

    def write(self, files: Sequence[Path], names: Collection[str], weights: Collection[str], info: ModelInfo) -> None:
        """Write the files; see :class:`foveal.exporting.quantise.Quantizer`."""
        convert_onnx(self.make(names, weights, info), files, info)


def _find_layers(model: onnx.ModelProto) -> tuple[dict[str, str], dict[str, int]]:
    """Names of the nodes that can be quantised and bytes of their weights, by the names of the layers."""
    weights = {tensor.name: 4 * int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    nodes: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type not in _LAYERS or node.input[1] not in weights:
            continue
        is_parameter = node.input[1].endswith(".weight")
        if is_parameter or "Conv" not in node.op_type:  # other filters are fixed ones
            name = node.input[1].removeprefix("model.").removesuffix(".weight") if is_parameter else node.name
            nodes[name], sizes[name] = node.name, weights[node.input[1]]
    return nodes, sizes


def _calibrate(file: Path, feeds: Iterable[Feed]) -> Any:
    """The range of every tensor that may be quantised."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(feeds)

        def get_next(self) -> Any:
            return next(self.rest, None)

    augmented = str(file.with_name("augmented.onnx"))
    means = {"moving_average": True}  # of a single merge: the means of all images
    calibrator = create_calibrator(file, _LAYERS, augmented, CalibrationMethod.MinMax, extra_options=means)
    calibrator.collect_data(Reader())
    return calibrator.compute_data()


def _quantise(model: onnx.ModelProto, ranges: Any, nodes: list[str]) -> onnx.ModelProto:
    """Quantise some nodes of a model, which is changed."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    if not nodes:  # which would mean all
        return model
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=list(_LAYERS),
        # An output is quantised where a layer reads it: before HardSwish or an addition, that would only add errors.
        extra_options={"OpTypesToExcludeOutputQuantization": list(_LAYERS)},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    del quantizer.model.model.graph.value_info[:]
    return quantizer.model.model


def _keep_inputs(model: onnx.ModelProto, original: onnx.ModelProto, nodes: Collection[str]) -> None:
    """Let nodes read their inputs as they were before quantisation, and leave out what nothing reads any more."""
    inputs = {node.name: node.input[0] for node in original.graph.node if node.name in nodes}
    for node in model.graph.node:
        if node.name in inputs:
            node.input[0] = inputs[node.name]
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    for node in reversed(list(model.graph.node)):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.output[0] not in read:
            model.graph.node.remove(node)
            if not any(node.input[0] in other.input for other in model.graph.node):
                read.discard(node.input[0])


def _keep_biases(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Give layers whose output is not quantised their biases in float32 back: no kernel of integers runs them."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    values = {tensor.name: tensor for tensor in original.graph.initializer}
    biases = {node.name: values.get(node.input[2]) for node in original.graph.node if len(node.input) > 2}
    makers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in list(model.graph.node):
        bias = makers.get(node.input[2]) if node.op_type in _LAYERS and len(node.input) > 2 else None
        value = biases.get(node.name)
        if bias is not None and value is not None and not _ends_in_int8(node.output[0], readers):
            model.graph.node.remove(bias)
            kept = model.graph.initializer.add()
            kept.CopyFrom(value)
            kept.name = node.input[2]


def _ends_in_int8(name: str, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether a tensor is only read to be quantised, possibly after an activation."""
    found = readers.get(name, [])
    if len(found) == 1 and found[0].op_type in _FUSED:
        return _ends_in_int8(found[0].output[0], readers)
    return bool(found) and all(reader.op_type == "QuantizeLinear" for reader in found)


def _drop_unused(model: onnx.ModelProto) -> None:
    """Leave out the zero points of biases, which are always 0, and tensors that nothing reads."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        bias = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if bias is not None and bias.data_type == bias.INT32:
            del node.input[2:]
    used = {name for node in model.graph.node for name in node.input}
    for name, tensor in constants.items():
        if name not in used:
            model.graph.initializer.remove(tensor)


def _shorten_names(model: onnx.ModelProto) -> None:
    """Number the tensors inside the network: names that quantisation extends take a tenth of a small file."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    numbers: dict[str, str] = {"": ""}

    def short(name: str) -> str:
        return name if name in kept or name.endswith(".weight") else numbers.setdefault(name, f"{len(numbers):x}")

    for tensor in model.graph.initializer:
        tensor.name = short(tensor.name)
    for node in model.graph.node:
        node.ClearField("name")
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
