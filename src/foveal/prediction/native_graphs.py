"""Plans of the package that take their weights from a checkpoint, so that the weights are stored once.

The native engine runs them without torch. A file is that of a plan (engine/plan.py) without most of its arrays. Its
metadata says, under :data:`SOURCES_KEY`, what to take from the checkpoint (:data:`SOURCES`). All these numbers form one
vector, after a first number 0, and an array of the plan is a factor times the numbers at certain places of the vector.
The file has the places as compressed differences, as bytes with the name of the array.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.plan import Plan, parse_plan
from ..errors import CheckpointError
from ..images.sam_frame import FRAME
from ..weights.arrays import read_arrays
from .onnx_graphs import find_weight, find_weights, graph_file_with

SUFFIX = ".plan"
SOURCES_KEY = "foveal_sources"
GRID = FRAME // 16  #: positions on a side of an image embedding of SAM
Floats = NDArray[np.float32]


def graph_file(ref: str) -> Path | None:
    """The plan of weights by name; of a promptable model, that of its image encoder. ``None``: there is none."""
    return graph_file_with(SUFFIX, ref)


def fill_plans(files: Sequence[Path]) -> list[Plan]:
    """The plans of a model with the weights of its checkpoint.

    Raises:
        CheckpointError: a file cannot be read, or a weight is missing.
        DependencyError: the checkpoint must be downloaded and pip is not installed.
    """
    arrays = read_arrays(find_weights(files[0]), files[0].name)
    return [fill_plan(file, arrays) for file in files]


def fill_plan(file: Path, checkpoint: Mapping[str, NDArray[Any]]) -> Plan:
    """A plan with the weights of a checkpoint.

    Raises:
        CheckpointError: the file is no plan, or a weight is missing.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        told = json.loads(metadata[SOURCES_KEY])
        vector = gather_sources(told["sources"], checkpoint)
        for name, array in told["arrays"].items():
            stored[name] = array["factor"] * vector[unpack_places(stored[name])].reshape(array["shape"])
        return parse_plan(metadata, {name: np.ascontiguousarray(array, np.float32) for name, array in stored.items()})
    except (OSError, ValueError, TypeError, KeyError, IndexError, SafetensorError, zlib.error) as error:
        raise CheckpointError(f"{file}: the plan cannot be used: {error}") from None


def pack_places(places: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Places in the vector as compressed differences."""
    differences = np.diff(places.ravel(), prepend=0).astype(np.int32)
    return np.frombuffer(zlib.compress(differences.tobytes(), 9), np.uint8)


def unpack_places(packed: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The reverse of :func:`pack_places`, in one dimension."""
    return np.frombuffer(zlib.decompress(packed.tobytes()), np.int32).cumsum(dtype=np.int64)


def gather_sources(sources: Sequence[Mapping[str, Any]], checkpoint: Mapping[str, NDArray[Any]]) -> Floats:
    """The vector of all sources, after a first number 0.

    Args:
        sources: each has its "kind", a key of :data:`SOURCES`; "keys": for each tensor that it needs, the keys under
            which a checkpoint may have it; and further arguments.
        checkpoint: arrays by key.
    """
    parts = [np.zeros(1, np.float32)]
    for source in sources:
        arrays = [find_weight(checkpoint, keys) for keys in source["keys"]]
        rest = {name: value for name, value in source.items() if name not in ("kind", "keys")}
        parts.extend(SOURCES[source["kind"]](*arrays, **rest))
    return np.concatenate([part.ravel() for part in parts])


def _folded(weight: Floats, factor: Floats, shift: Floats, mean: Floats, variance: Floats, eps: float) -> list[Floats]:
    """Weight and bias of a convolution without bias, with the batch norm after it folded in."""
    scale = factor.astype(np.float64) / np.sqrt(variance.astype(np.float64) + eps)
    bias = shift.astype(np.float64) - mean.astype(np.float64) * scale
    return [(weight.astype(np.float64) * scale[:, None, None, None]).astype(np.float32), bias.astype(np.float32)]


def _positions(frequencies: Floats) -> list[Floats]:
    """SAM's positional encoding of an image embedding, ``(GRID, GRID, channels)``."""
    centres = (np.arange(GRID) + 0.5) / GRID
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return [encode_positions(np.stack([x, y], -1), frequencies).astype(np.float32)]


def encode_positions(xy: NDArray[np.float64], frequencies: NDArray[Any]) -> NDArray[np.float64]:
    """Sines and cosines of positions: x and y of 0..1, ``(..., 2)``, ``-> (..., channels)``."""
    angles = 2 * math.pi * ((2 * xy - 1) @ frequencies.astype(np.float64))
    return np.concatenate([np.sin(angles), np.cos(angles)], -1)


#: What a source gives, by its kind: (arrays, further arguments) -> the parts of the vector.
SOURCES: dict[str, Callable[..., list[Floats]]] = {
    "tensor": lambda array: [array],
    "convolution and norm": _folded,
    "positions": _positions,
}
