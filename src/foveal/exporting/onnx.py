"""The format ONNX: the traced graph, simplified, with the description of the model in its metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import ExportError
from ..info import ModelInfo
from ..prediction.onnx_runner import onnx_network
from .graph import Graph, Options, RunFile, Written, exporter_errors, metadata, trace
from .half import to_half

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


LARGEST = 2**31 - 2**24  #: bytes of weights in a file: protobuf's limit, less room for the graph
_HALF = "float16 is for GPUs and browsers: on CPUs ONNX Runtime converts to float32 and back, which takes longer"


def write_onnx(graph: Graph, files: Sequence[Path], options: Options) -> Written:
    """Write a network as an ONNX file.

    Raises:
        ExportError: it cannot be traced.
        DependencyError: a package is missing.
    """
    proto, kept = make_typed_onnx(graph, options)
    files[0].write_bytes(onnx_bytes(proto, graph.info.model))
    return Written(kept_float=kept, notes=(_HALF,) if options.half else ())


def onnx_bytes(proto: onnx.ModelProto, name: str) -> bytes:
    """The content of an ONNX file.

    Args:
        proto: the model.
        name: of the model, for the message.

    Raises:
        ExportError: more weights than one file can hold.
    """
    check_fits(proto, name)
    return proto.SerializeToString()


def check_fits(proto: onnx.ModelProto, name: str) -> None:
    """Check that one file can hold the weights.

    Raises:
        ExportError: it cannot.
    """
    if (size := size_of_weights(proto)) > LARGEST:
        raise ExportError(
            f"{name}: an ONNX file holds at most 2 GiB, and the weights take {size / 2**30:.1f}: export in float16 "
            "(half), or to openvino, native or executorch"
        )


def size_of_weights(proto: onnx.ModelProto) -> int:
    """Bytes of the arrays of a model."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer)


def make_onnx(graph: Graph, options: Options) -> onnx.ModelProto:
    """The ONNX model of a network, with its description.

    Raises:
        ExportError: it cannot be traced.
        DependencyError: a package is missing.
    """
    return make_typed_onnx(graph, options)[0]


def make_typed_onnx(graph: Graph, options: Options) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """As :func:`make_onnx`, with the names of the layers that are computed in float32 in a graph of float16.

    Raises:
        ExportError: it cannot be traced.
        DependencyError: a package is missing.
    """
    proto = _translate(graph, options)
    kept = to_half(proto) if options.half else ()
    finish(proto, graph, options)
    return proto, kept


def _translate(graph: Graph, options: Options) -> onnx.ModelProto:
    """The traced and simplified network, whose nodes still name the layers that they come from."""
    with exporter_errors(graph.info.model, "ONNX"):
        program = translate(graph, options.opset)
        _simplify(program.model)
    return program.model_proto


def translate(graph: Graph, opset: int) -> torch.onnx.ONNXProgram:
    """The network as torch translates it, not simplified; exceptions are those of torch."""
    # Traced here, not by torch.onnx.export: where this fails, that would try methods that fix the size.
    program = torch.onnx.export(
        trace(graph),
        dynamo=True,
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        opset_version=opset,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    return program


def finish(proto: onnx.ModelProto, graph: Graph, options: Options) -> None:
    """Name the free dimensions, write the description into the model, and remove notes of the tracer."""
    _remove_traces(proto)
    _name_dimensions(proto, graph)
    _describe(proto, graph.info)
    if options.onnx_folder is not None:
        (options.onnx_folder / graph.file_name).write_bytes(onnx_bytes(proto, graph.info.model))


def open_onnx(files: Sequence[Path]) -> RunFile:
    """Open an ONNX file with ONNX Runtime, to compare it with the model."""
    network = onnx_network(files[0])
    return lambda feed: list(network(feed).values())


def _simplify(model: ir.Model) -> None:
    """Fold constants, make them initialisers, and remove what is unused.

    The exporter's own optimiser also removes "additions of zero", and it takes the attention's epsilon of 1e-15 for
    zero: queries without a positive feature would then give 0/0. So only passes that keep every number run here.
    """
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    optimizer.fold_constants(model)
    _remove_casts(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    optimizer.remove_unused_nodes(model)


def _remove_casts(model: ir.Model) -> None:
    """Remove conversions to the type that a value has already: TensorRT does not have their operator, CastLike."""
    import onnx_ir as ir

    for node in list(model.graph):
        if node.op_type == "CastLike":
            value, like = node.inputs
            if value is not None and (dtype := _dtype(value)) is not None and dtype == _dtype(like):
                ir.convenience.replace_all_uses_with(node.outputs[0], value)


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    """Type of a value; the translation of attention does not note it where it moves numbers only."""
    while value is not None and value.dtype is None:
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in ("Reshape", "Transpose") else None
    return value.dtype if value is not None else None


def _remove_traces(proto: onnx.ModelProto) -> None:
    """Remove the tracer's notes: they are a tenth of the file and contain paths of this machine."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
    del graph.value_info[:]
    for node in graph.node:
        node.doc_string = ""


def _name_dimensions(proto: onnx.ModelProto, graph: Graph) -> None:
    """Give free dimensions names that say what they count, in place of the tracer's."""
    names = graph.inputs | graph.outputs
    for value in (*proto.graph.input, *proto.graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=False):
            if name and not dim.HasField("dim_value"):
                dim.dim_param = name


def _describe(proto: onnx.ModelProto, info: ModelInfo) -> None:
    """Write the description of the model into the file's metadata."""
    proto.doc_string = f"{info.model}, {info.task}, exported by Foveal"
    for key, value in metadata(info).items():
        proto.metadata_props.add(key=key, value=value)
