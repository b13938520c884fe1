"""The export formats: one line per format, one file of this folder for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..engine.plan import SUFFIX
from ..errors import ConfigError, nearest
from ..prediction.native_runner import NATIVE_PARTS
from ..prediction.onnx_runner import PROMPT_PARTS
from .graph import Graph, RunFile
from .native import open_native, write_native
from .onnx import OPSET, open_onnx, write_onnx


@dataclass(frozen=True)
class Format:
    """A file format that models are exported to.

    Attributes:
        name: as users write it, in ``foveal export --to NAME``.
        suffix: of its files, with the dot.
        write: ``(graph, path)`` writes one network, with its description, to a path whose folder exists.
        open: ``(path)`` opens a written file and returns the function that runs it; the export compares its outputs
            with the model's.
        opset: version of ONNX's operator set; 0 for formats that have none.
        parts: the networks of a promptable model that it has files of, in their order.
    """

    name: str
    suffix: str
    write: Callable[[Graph, Path], None]
    open: Callable[[Path], RunFile]
    opset: int = 0
    parts: tuple[str, ...] = PROMPT_PARTS


#: By name. A format is added by one file in this folder and one line here.
FORMATS = {
    format.name: format
    for format in (
        Format("onnx", ".onnx", write_onnx, open_onnx, opset=OPSET),
        Format("native", SUFFIX, write_native, open_native, parts=NATIVE_PARTS),
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
