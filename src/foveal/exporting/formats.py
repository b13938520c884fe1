"""The export formats: one line per format, one file of this folder for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engine.plan import SUFFIX
from ..errors import ConfigError, nearest
from ..prediction.exported import PARTS, SAM_PARTS
from .graph import Graph, Options, RunFile, Written
from .native import open_native, write_native
from .onnx import open_onnx, write_onnx
from .openvino import open_openvino, write_openvino
from .quantise import Quantizer
from .quantise_qdq import OnnxQuantizer, OpenVinoQuantizer


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
        halves: whether it can be written in float16.
        quantizer: writes its files in int8; ``None``: there is no int8.
    """

    name: str
    suffixes: tuple[str, ...]
    write: Callable[[Graph, Sequence[Path], Options], Written]
    open: Callable[[Sequence[Path]], RunFile] | None
    parts: tuple[str, ...] = PARTS
    packages: tuple[str, ...] = ()
    onnx: bool = False
    halves: bool = False
    quantizer: type[Quantizer] | None = None


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
            ("onnx", "onnxscript", "onnxruntime"),
            onnx=True,
            quantizer=OnnxQuantizer,
        ),
        Format(
            "openvino",
            (".xml", ".bin"),
            write_openvino,
            open_openvino,
            packages=("onnxscript", "openvino"),
            quantizer=OpenVinoQuantizer,
        ),
        Format("native", (SUFFIX,), write_native, open_native),
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
