"""The format of LiteRT (TensorFlow Lite): a .tflite file with a signature, for the CPUs of phones."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..prediction.file_network import Settings
from ..prediction.litert_runner import LITERT_FILES
from ..prediction.sealed import seal, with_outputs
from .graph import Graph, Options, RunFile, Written, exporter_errors, metadata

_ALIGNMENT = 64  # of the weights behind a FlatBuffer
_HALF = "weights of convolutions and linear layers in float16; LiteRT computes in float32 on CPUs, in float16 on GPUs"


def write_litert(graph: Graph, files: Sequence[Path], options: Options) -> Written:
    """Write a network as a model whose signature has the names of its inputs and outputs.

    The description is the metadata ``foveal`` of the file; its parts are metadata, too.

    Raises:
        ExportError: LiteRT cannot convert it.
        DependencyError: a package is missing.
    """
    info = with_outputs(graph.info, graph.outputs)
    with exporter_errors(info.model, "LiteRT", "litert-export"):
        import litert_torch  # pyright: ignore[reportMissingImports] - not among the test tools, for its size

        named = _Named(graph.network.eval(), tuple(graph.inputs), tuple(graph.outputs))
        examples = [dict(zip(graph.inputs, example, strict=True)) for example in (graph.example, *graph.variants)]
        converter = litert_torch.signature("serving_default", named, sample_kwargs=examples[0])
        for number, example in enumerate(examples[1:], 1):
            converter = converter.signature(f"shape_{number}", named, sample_kwargs=example)
        converted: Any = converter.convert()
        content = converted.model_content()
        content = _with_metadata(_in_half(content) if options.half else content, metadata(info))
        macs, operations = _delegated(content)
    files[0].write_bytes(seal(content, info.to_json()))
    notes = (f"{operations:.0%} of the operations by number",)
    return Written(macs, notes=(*notes, _HALF) if options.half else notes)


def open_litert(files: Sequence[Path]) -> RunFile:
    """Open a file with LiteRT, to compare it with the model."""
    network = LITERT_FILES.open(files[0], Settings(files[0].name))
    return lambda feed: list(network(feed).values())


class _Named(nn.Module):
    """A network with its inputs and outputs by name, which become those of the signature."""

    def __init__(self, network: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.inputs, self.outputs = network, inputs, outputs

    def forward(self, **feed: Tensor) -> dict[str, Tensor]:
        results = self.network(*(feed[name] for name in self.inputs))
        return dict(zip(self.outputs, results if isinstance(results, tuple) else (results,), strict=True))


def _in_half(content: bytes) -> bytes:
    """The content of a file whose layers have their weights in float16, each behind an operation that widens them."""
    from ai_edge_quantizer import (  # pyright: ignore[reportMissingImports] - comes with litert_torch
        algorithm_manager,
        qtyping,
        quantizer,
    )

    halver = quantizer.Quantizer(bytearray(content))
    halver.update_quantization_recipe(
        ".*",
        qtyping.TFLOperationName.ALL_SUPPORTED,
        qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(16, dtype=qtyping.TensorDataType.FLOAT),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
        algorithm_manager.AlgorithmName.FLOAT_CASTING,
    )
    with contextlib.redirect_stderr(io.StringIO()):  # it has a progress bar that no option hides
        halved = halver.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model
    return bytes(halved or b"")


def _with_metadata(content: bytes, entries: dict[str, str]) -> bytes:
    """The content of a file with further entries of metadata.

    The weights of a model above 2 GiB are behind the FlatBuffer, which has their places in the file.
    """
    from ai_edge_litert.schema_py_generated import BufferT, MetadataT
    from ai_edge_litert.tools import flatbuffer_utils

    model: Any = flatbuffer_utils.convert_bytearray_to_object(content)
    model.metadata = model.metadata or []
    for name, text in entries.items():
        model.buffers.append(BufferT(data=np.frombuffer(text.encode(), np.uint8)))
        model.metadata.append(MetadataT(name=name, buffer=len(model.buffers) - 1))
    head = flatbuffer_utils.convert_object_to_bytearray(model)
    behind = [buffer for buffer in model.buffers if buffer.offset]
    if not behind:
        return bytes(head)
    first = min(buffer.offset for buffer in behind)
    start = -(-len(head) // _ALIGNMENT) * _ALIGNMENT
    for buffer in behind:
        buffer.offset += start - first
    head = flatbuffer_utils.convert_object_to_bytearray(model)  # as long as before: places have a fixed size
    return b"".join((head, bytes(start - len(head)), memoryview(content)[first:]))


def _delegated(content: bytes) -> tuple[float, float]:
    """Shares of the multiply-accumulates and of the operations that XNNPACK runs."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()  # this gives operations to XNNPACK: each group becomes one more operation
    nodes = interpreter._get_ops_details()
    shapes = {tensor["index"]: tensor["shape"] for tensor in interpreter.get_tensor_details()}
    groups = [node for node in nodes if node["op_name"] == "DELEGATE"]
    maker = {output: node for node in (*nodes, *groups) for output in node["outputs"]}  # groups replace their nodes
    wanted, runs = [output["index"] for output in interpreter.get_output_details()], {}
    while wanted:  # the operations that still run on their own, from the outputs back
        node = maker.get(wanted.pop())
        if node is not None and node["index"] not in runs:
            runs[node["index"]] = node
            wanted.extend(node["inputs"])
    single = [node for node in nodes if node["op_name"] != "DELEGATE"]
    costs = np.array([(_macs(node, shapes), 1) for node in single])
    alone = np.array([node["index"] in runs for node in single])
    macs, operations = 1 - costs[alone].sum(0) / np.maximum(costs.sum(0), 1)
    return (float(macs) if costs[:, 0].any() else float(operations)), float(operations)


def _macs(node: dict[str, Any], shapes: dict[int, NDArray[np.int32]]) -> float:
    """Multiply-accumulates of an operation; 0 if it is no matrix product."""
    name, output = node["op_name"], float(np.prod(shapes[node["outputs"][0]]))
    if name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL"):
        return 0.0
    left, right = (shapes[index] for index in node["inputs"][:2])
    if name == "BATCH_MATMUL":
        return math.sqrt(float(np.prod(left)) * float(np.prod(right)) * output / float(np.prod(left[:-2])))
    return output * float(np.prod(right[1:3] if name == "DEPTHWISE_CONV_2D" else right[1:]))
