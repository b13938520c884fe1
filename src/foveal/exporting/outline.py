"""ONNX files without weights, which are read from the checkpoint beside them: the package has them once.

``python -m foveal.exporting.outline tf_efficientnet_lite0.sam`` writes ``NAME.encoder.onnx`` and ``NAME.prompts.onnx``
next to the bundled ``NAME.safetensors``. :mod:`foveal.prediction.outlines` opens them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import assets
from ..errors import ExportError
from ..factory.load_model import load_model
from ..files import atomic_write
from ..info import info_of
from ..prediction.exported import part_path
from ..prediction.input_limits import InputLimits
from ..prediction.outlines import PARTS, OutlineNetwork
from .graph import Options, Source, compare
from .onnx import make_onnx
from .prompt import prompt_graphs

if TYPE_CHECKING:
    import onnx

_LEAST = 256  # numbers of an array that is read from the checkpoint; smaller ones stay in the graph
_TYPES = {"F16": (np.float16, 10), "F32": (np.float32, 1)}  # of safetensors: NumPy's type, and the number of ONNX's


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A tensor in the checkpoint."""

    values: NDArray[np.float32]
    onnx_type: int
    offset: int
    length: int


def write_outlines(ref: str, folder: Path) -> list[Path]:
    """Write the networks of a bundled promptable model as graphs whose weights are in ``ref.safetensors`` beside them.

    Raises:
        ExportError: a file differs from the model.
    """
    checkpoint = assets.path(ref, ".safetensors")
    stored = _read(checkpoint)
    model = load_model(ref).cpu().float().eval()
    source = Source(
        model, model, info_of(model), False, (256, 320), InputLimits()
    )  # norms unfolded: weights are as stored
    written = []
    for graph in prompt_graphs(source):
        if graph.part not in PARTS:
            continue
        proto = make_onnx(graph, Options())
        _refer(proto, stored, checkpoint.name)
        path = part_path(folder / f"{ref}.onnx", graph.part)
        with atomic_write(path) as temporary:
            temporary.write_bytes(proto.SerializeToString())
            network = OutlineNetwork(temporary)
            compare(graph, lambda feed, network=network: list(network(feed).values()), "float32")
        written.append(path)
    return written


def _read(checkpoint: Path) -> dict[int, list[_Stored]]:
    """Tensors of a safetensors file with their places in it, by their number of values."""
    content = checkpoint.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    found: dict[int, list[_Stored]] = {}
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__" or entry["dtype"] not in _TYPES:
            continue
        dtype, onnx_type = _TYPES[entry["dtype"]]
        first, last = (start + offset for offset in entry["data_offsets"])
        values = np.frombuffer(content[first:last], dtype).astype(np.float32).reshape(entry["shape"])
        found.setdefault(values.size, []).append(_Stored(values, onnx_type, first, last - first))
    return found


def _refer(proto: onnx.ModelProto, stored: dict[int, list[_Stored]], location: str) -> None:
    """Put the places of the checkpoint's tensors in place of constants that are equal to them, or transposed."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        match = _find(values, stored) if values.size >= _LEAST else None
        if match is None:
            continue
        found, transposed = match
        name, shape = tensor.name, values.T.shape if transposed else values.shape
        tensor.Clear()
        tensor.name, tensor.data_type, tensor.data_location = f"{name}.stored", found.onnx_type, TensorProto.EXTERNAL
        tensor.dims.extend(shape)
        for key, value in (("location", location), ("offset", found.offset), ("length", found.length)):
            tensor.external_data.add(key=key, value=str(value))
        wide = f"{name}.wide" if transposed else name
        nodes.append(helper.make_node("Cast", [tensor.name], [wide], name=f"{name}.cast", to=TensorProto.FLOAT))
        if transposed:
            nodes.append(helper.make_node("Transpose", [wide], [name], name=f"{name}.transpose"))
    nodes += proto.graph.node
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _find(values: NDArray[np.float32], stored: dict[int, list[_Stored]]) -> tuple[_Stored, bool] | None:
    """The stored tensor with these values, and whether it is transposed."""
    for candidate in stored.get(values.size, ()):
        if np.array_equal(candidate.values.ravel(), values.ravel()):
            return candidate, False
        if candidate.values.ndim == 2 and np.array_equal(candidate.values.T, values):
            return candidate, True
    return None


def main() -> None:
    """Write the graphs of the named bundled models into the package."""
    for ref in sys.argv[1:]:
        if ref not in assets.WEIGHTS:
            raise ExportError(f"{ref}: not in the package; there are {', '.join(assets.WEIGHTS)}")
        for path in write_outlines(ref, assets.FOLDER):
            print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
