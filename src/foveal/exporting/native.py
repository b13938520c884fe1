"""The format of the native CPU engine: a plan of fused operations with the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engine.engine import Engine
from ..engine.lowering import make_plan
from ..engine.plan import load_plan
from ..errors import ExportError
from .graph import Feed, Graph, RunFile
from .image import ImageNetwork


def write_native(graph: Graph, path: Path) -> None:
    """Write a network as a plan file.

    Raises:
        NotCoveredError: the engine does not compute a layer of the model.
        ExportError: the network has more parts than a plan holds.
    """
    if not isinstance(graph.reference, ImageNetwork):
        raise ExportError(f"{graph.info.model}: the native engine holds networks of one image, not of prompts")
    if graph.reference.upsample:
        raise ExportError("upsample: the native engine gives logits at the model's stride, which Foveal upsamples")
    make_plan(graph.reference.model).save(path)


def open_native(path: Path) -> RunFile:
    """Open a plan file, to compare it with the model."""
    engine = Engine(load_plan(path))

    def run_file(feed: Feed) -> list[NDArray[np.float32]]:
        return [engine(feed["image"])]

    return run_file
