"""The format of TensorRT: an engine where TensorRT is installed, elsewhere an ONNX file and the command for the engine.

An engine is for one kind of GPU and one version of TensorRT. The ONNX file is for all of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ExportError
from ..prediction.file_network import Settings
from ..prediction.tensorrt_runner import open_tensorrt_network, with_description
from .graph import Graph, Options, RunFile, Written, exporter_errors
from .onnx import check_fits, make_typed_onnx, onnx_bytes, open_onnx

if TYPE_CHECKING:
    import onnx

INSTALLED = importlib.util.find_spec("tensorrt") is not None
SUFFIX = ".engine" if INSTALLED else ".trt.onnx"
#: The smallest, the usual and the largest value of the free dimensions: an engine is tuned for the second.
RANGES = {
    "batch": (1, 1, 16),
    "height": (32, 512, 2048),
    "width": (32, 1024, 4096),
    "prompts": (1, 1, 64),
    "points": (1, 2, 16),
}
#: Operators of ONNX that Foveal's graphs consist of and that TensorRT's parser has.
#: Source: docs/operators.md of onnx-tensorrt, and the release notes of TensorRT 10 for newer operators.
OPERATORS = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "Argmax",
        "ArgMax",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Ceil",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "ConvTranspose",
        "Cos",
        "CumSum",
        "DepthToSpace",
        "DequantizeLinear",
        "Div",
        "Einsum",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "EyeLike",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "Greater",
        "GreaterOrEqual",
        "GroupNormalization",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "IsNaN",
        "LayerNormalization",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "MatMul",
        "Max",
        "MaxPool",
        "Mean",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pad",
        "Pow",
        "PRelu",
        "QuantizeLinear",
        "Range",
        "Reciprocal",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Resize",
        "Round",
        "ScatterElements",
        "ScatterND",
        "Selu",
        "Shape",
        "Sigmoid",
        "Sign",
        "Sin",
        "Size",
        "Slice",
        "Softmax",
        "Softplus",
        "SpaceToDepth",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Tan",
        "Tanh",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
        "Xor",
    ]
)


def write_tensorrt(graph: Graph, files: Sequence[Path], options: Options) -> Written:
    """Write an engine, or the ONNX file that TensorRT's parser takes.

    Raises:
        ExportError: the network cannot be traced, or has an operator that TensorRT lacks.
        DependencyError: a package is missing.
    """
    proto, kept = make_typed_onnx(graph, options)
    check_operators(graph.info.model, proto)
    if INSTALLED:
        with exporter_errors(graph.info.model, "TensorRT", "tensorrt"):
            content = with_description(_build(graph, proto, options), graph.info.to_json())
        files[0].write_bytes(content)
        return Written(kept_float=kept, notes=("for this GPU and this version of TensorRT",))
    files[0].write_bytes(onnx_bytes(proto, graph.info.model))
    note = f"TensorRT is not installed here; build the engine with: {recipe(graph, options)}"
    return Written(kept_float=kept, notes=(note,))


def recipe(graph: Graph, options: Options) -> str:
    """The command of TensorRT's own tool that builds an engine of the ONNX file."""
    name = f"NAME.{graph.part}" if graph.part else "NAME"
    command = ["trtexec", f"--onnx={name}{SUFFIX}", f"--saveEngine={name}.plan", "--noTF32"]
    if options.half:
        command.append("--stronglyTyped")
    for flag, shapes in zip(("--minShapes", "--optShapes", "--maxShapes"), _profiles(graph), strict=True):
        if shapes:
            text = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
            command.append(f"{flag}={text}")
    return shlex.join(command)


def _profiles(graph: Graph) -> list[dict[str, tuple[int, ...]]]:
    """The smallest, usual and largest shape of each input that has free dimensions."""
    profiles: list[dict[str, tuple[int, ...]]] = [{}, {}, {}]
    for (name, dimensions), example in zip(graph.inputs.items(), graph.example, strict=True):
        if any(dimensions):
            free = (*dimensions, *[""] * (example.dim() - len(dimensions)))
            for i, shapes in enumerate(profiles):
                shapes[name] = tuple(
                    RANGES[dimension][i] if dimension else size
                    for dimension, size in zip(free, example.shape, strict=True)
                )
    return profiles


def check_operators(model: str, proto: onnx.ModelProto) -> None:
    """Check the file, infer all its shapes, and look for operators that TensorRT's parser does not have.

    Raises:
        ExportError: the parser would stop.
    """
    import onnx

    check_fits(proto, model)
    onnx.checker.check_model(proto)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    if lacking := sorted({node.op_type for node in proto.graph.node} - OPERATORS):
        raise ExportError(f"{model}: TensorRT does not have the operators {', '.join(lacking)}")


def _build(graph: Graph, proto: onnx.ModelProto, options: Options) -> bytes:
    """Build an engine.

    Raises:
        ExportError: TensorRT's parser or builder refuses the network.
    """
    trt: Any = importlib.import_module("tensorrt")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    # Strongly typed: the types of the graph hold, so that what the graph keeps in float32 stays in float32.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse(onnx_bytes(proto, graph.info.model)):
        raise ExportError(f"{graph.info.model}: TensorRT cannot parse it ({parser.get_error(0)})")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    low, usual, high = _profiles(graph)
    for name in usual:
        profile.set_shape(name, low[name], usual[name], high[name])
    if usual:
        config.add_optimization_profile(profile)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is what the file is compared in
    engine: Any = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(f"{graph.info.model}: TensorRT cannot build an engine")
    return bytes(engine)


def open_tensorrt(files: Sequence[Path]) -> RunFile:
    """Open what was written, to compare it with the model: the engine, or the ONNX file with ONNX Runtime."""
    if not INSTALLED:
        return open_onnx(files)
    network = open_tensorrt_network(files, Settings(files[0].name, device="cuda"))
    return lambda feed: list(network(feed).values())
