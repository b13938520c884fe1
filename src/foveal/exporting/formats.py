"""The export formats: one line per format, one file of this folder for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engine.plan import SUFFIX
from ..errors import ConfigError, nearest
from ..prediction.coreml_runner import why_not
from ..prediction.exported import PARTS, SAM_PARTS
from .coreml import open_coreml, write_coreml
from .executorch import open_executorch, write_executorch
from .graph import Graph, Options, RunFile, Source, Written
from .litert import open_litert, write_litert
from .native import open_native, write_native
from .onnx import open_onnx, write_onnx
from .openvino import open_openvino, write_openvino
from .quantise import Quantizer
from .quantise_qdq import OnnxQuantizer, OpenVinoQuantizer
from .sam_clients import sam_client_graphs
from .tensorrt import SUFFIX as TENSORRT_SUFFIX
from .tensorrt import open_tensorrt, write_tensorrt
from .web import Site, write_web


@dataclass(frozen=True)
class Format:
    """A file format that models are exported to.

    Attributes:
        name: as users write it, in ``foveal export --to NAME``.
        suffixes: of the files of one network, with the dot; the first is the file that users name.
        write: ``(graph, files, options)`` writes one network, with its description, to paths whose folder exists, one
            for each suffix.
        open: ``(files)`` opens what was written and returns the function that runs it; the export compares its outputs
            with the model's. ``None``: nothing on this machine runs the format.
        parts: the networks of a promptable model that it has files of, in their order.
        packages: that write it, for the versions in the report.
        onnx: whether its files are ONNX's, which have an operator set.
        folder: whether a network is a folder.
        fixed: whether files take images of one size only.
        any_size: whether files take images of every size, so that none can be chosen.
        bounded: whether free sides and numbers need a largest value.
        free_prompts: whether the files of a promptable model take any numbers of prompts and points.
        graphs: the networks of a promptable model in place of Foveal's own, for files that other programs run. Other
            models have no such files.
        halves: whether it can be written in float16.
        half_from: numbers of an array of weights from which it is stored in float16; smaller ones stay in float32, at
            least in some layers.
        bakes: whether images of 8 bits can be its input, with all preparation inside.
        quantizer: writes its files in int8; ``None``: there is no int8.
        site: what is made around the files of a model, in the folder that users name; its files are always in float16.
    """

    name: str
    suffixes: tuple[str, ...]
    write: Callable[[Graph, Sequence[Path], Options], Written]
    open: Callable[[Sequence[Path]], RunFile] | None
    parts: tuple[str, ...] = PARTS
    packages: tuple[str, ...] = ()
    onnx: bool = False
    halves: bool = False
    half_from: int = 1024
    bakes: bool = False
    folder: bool = False
    fixed: bool = False
    any_size: bool = False
    bounded: bool = False
    free_prompts: bool = True
    graphs: Callable[[Source], list[Graph]] | None = None
    quantizer: type[Quantizer] | None = None
    site: type[Site] | None = None


_ONNX = ("onnx", "onnxscript", "onnxruntime")  # packages that write ONNX files and check them

#: By name. A format is added by one file in this folder and one line here.
FORMATS = {
    format.name: format
    for format in (
        Format(
            "onnx",
            (".onnx",),
            write_onnx,
            open_onnx,
            SAM_PARTS,
            _ONNX,
            onnx=True,
            halves=True,
            bakes=True,
            quantizer=OnnxQuantizer,
        ),
        Format(
            "openvino",
            (".xml", ".bin"),
            write_openvino,
            open_openvino,
            packages=("onnxscript", "openvino"),
            halves=True,
            bakes=True,
            quantizer=OpenVinoQuantizer,
        ),
        Format("native", (SUFFIX,), write_native, open_native, halves=True, any_size=True),
        Format(
            "samexporter",
            (".samexporter.onnx",),
            write_onnx,
            open_onnx,
            ("encoder", "decoder"),
            _ONNX,
            onnx=True,
            graphs=sam_client_graphs,
            halves=True,
        ),
        Format("executorch", (".pte",), write_executorch, open_executorch, packages=("executorch",), bounded=True),
        Format(
            "litert",
            (".tflite",),
            write_litert,
            open_litert,
            packages=("litert-torch", "ai-edge-litert"),
            halves=True,
            half_from=0,
            fixed=True,
            free_prompts=False,
        ),
        Format(
            "tensorrt",
            (TENSORRT_SUFFIX,),
            write_tensorrt,
            open_tensorrt,
            packages=("onnxscript", "tensorrt"),
            onnx=True,
            halves=True,
        ),
        Format(
            "coreml",
            (".mlpackage",),
            write_coreml,
            None if why_not() else open_coreml,
            packages=("coremltools",),
            halves=True,
            half_from=0,
            folder=True,
            fixed=True,
        ),
        Format(
            "web",
            (".onnx",),
            write_web,
            open_onnx,
            ("encoder", "prompts"),
            _ONNX,
            halves=True,
            any_size=True,
            site=Site,
        ),
    )
}


def find_format(name: str) -> Format:
    """The format of this name.

    Raises:
        ConfigError: there is none; the message has the nearest name.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown format {name!r}{nearest(name, FORMATS)}")
    return FORMATS[name]
