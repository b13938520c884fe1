"""The format of OpenVINO: the graph (.xml) and the weights (.bin), converted from the ONNX model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..info import ModelInfo
from ..prediction.file_network import Settings
from ..prediction.openvino_runner import open_openvino_network
from .graph import Graph, Options, RunFile, Written, exporter_errors, metadata
from .onnx import make_onnx

_HALF = "weights in float16; OpenVINO computes in float32 on CPUs and in float16 on GPUs"
if TYPE_CHECKING:
    import onnx


def write_openvino(graph: Graph, files: Sequence[Path], options: Options) -> Written:
    """Write a network as a graph and its weights.

    Raises:
        ExportError: OpenVINO cannot convert it.
        DependencyError: a package is missing.
    """
    proto = make_onnx(graph, replace(options, half=False))  # OpenVINO stores weights in float16 by itself
    convert_onnx(proto, files, graph.info, options.half)
    return Written(notes=(_HALF,) if options.half else ())


def convert_onnx(proto: onnx.ModelProto, files: Sequence[Path], info: ModelInfo, half: bool = False) -> None:
    """Convert an ONNX model to the two files of OpenVINO, with weights in float16 if ``half``.

    Raises:
        ExportError: OpenVINO cannot convert it.
        DependencyError: a package is missing.
    """
    # Through a file: in the path that takes a model in memory, OpenVINO loses the names of free dimensions.
    with exporter_errors(info.model, "OpenVINO", "openvino"), tempfile.TemporaryDirectory() as folder:
        import openvino
        from openvino import passes

        (path := Path(folder) / "model.onnx").write_bytes(proto.SerializeToString())
        model = openvino.Core().read_model(str(path))
        for key, value in metadata(info).items():
            model.set_rt_info(value, [key])
        if half:
            openvino.save_model(model, path.with_suffix(".xml"), compress_to_fp16=True)
            for file in files:
                shutil.copyfile(path.with_suffix(file.suffix), file)
            return
        manager = passes.Manager()
        manager.register_pass(passes.Serialize(*map(str, files)))
        manager.run_passes(model)


def open_openvino(files: Sequence[Path]) -> RunFile:
    """Open the files with OpenVINO in float32, to compare them with the model."""
    network = open_openvino_network(files, Settings(files[0].name))
    return lambda feed: list(network(feed).values())
