"""The format of OpenVINO: the graph (.xml) and the weights (.bin), converted from the ONNX model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..info import ModelInfo
from ..prediction.file_network import Settings
from ..prediction.openvino_runner import open_openvino_network, openvino_core
from .graph import Graph, Options, RunFile, Written, exporter_errors, metadata
from .onnx import LARGEST, make_onnx, size_of_weights

if TYPE_CHECKING:
    import onnx
    import openvino

_HALF = "weights in float16; OpenVINO computes in float32 on CPUs and in float16 on GPUs"
_LARGE = 1024  # numbers of an array that is stored in float16


def write_openvino(graph: Graph, files: Sequence[Path], options: Options) -> Written:
    """Write a network as a graph and its weights.

    Raises:
        ExportError: OpenVINO cannot convert it.
        DependencyError: a package is missing.
    """
    proto = make_onnx(graph, replace(options, half=False))  # only what is stored is in float16
    convert_onnx(proto, files, graph.info, options.half)
    return Written(notes=(_HALF,) if options.half else ())


def convert_onnx(proto: onnx.ModelProto, files: Sequence[Path], info: ModelInfo, half: bool = False) -> None:
    """Convert an ONNX model to the two files of OpenVINO, with large arrays in float16 if ``half``.

    Raises:
        ExportError: OpenVINO cannot convert it.
        DependencyError: a package is missing.
    """
    # Through a file: in the path that takes a model in memory, OpenVINO loses the names of free dimensions.
    with exporter_errors(info.model, "OpenVINO", "openvino"), tempfile.TemporaryDirectory() as folder:
        import onnx
        from openvino import passes

        path = Path(folder) / "model.onnx"
        onnx.save_model(proto, path, save_as_external_data=size_of_weights(proto) > LARGEST, location="weights")
        model = openvino_core(info.model).read_model(str(path))
        _simplify(model)
        if half:
            _store_in_half(model)
        for key, value in metadata(info).items():
            model.set_rt_info(value, [key])
        manager = passes.Manager()
        manager.register_pass(passes.Serialize(*map(str, files)))
        manager.run_passes(model)


def _simplify(model: openvino.Model) -> None:
    """Apply what OpenVINO applies to every model that it opens: the graph's file is then half as large.

    Arrays of integers stay as they are. OpenVINO has this for its own converters, and promises no name for it.
    """
    with contextlib.suppress(ImportError):
        from openvino._offline_transformations import apply_moc_transformations

        apply_moc_transformations(model, cf=False)


def _store_in_half(model: openvino.Model) -> None:
    """Store large arrays in float16, to be converted to float32 when the file is opened.

    OpenVINO's own compression rounds biases, too: where they are large beside what varies, that changes the classes.
    """
    import openvino

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f32:
            continue
        values = node.get_data()
        if values.size < _LARGE or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        with np.errstate(under="ignore"):
            stored = openvino.opset13.constant(values.astype(np.float16), name=f"{node.get_friendly_name()}.half")
        converted = openvino.opset13.convert(stored, "f32")
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(converted.output(0))


def open_openvino(files: Sequence[Path]) -> RunFile:
    """Open the files with OpenVINO in float32, to compare them with the model."""
    network = open_openvino_network(files, Settings(files[0].name))
    return lambda feed: list(network(feed).values())
