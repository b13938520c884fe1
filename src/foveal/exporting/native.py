"""The format of the native CPU engine: a plan of fused operations with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engine.engine import Engine
from ..engine.lowering import make_plan
from ..engine.plan import load_plan
from ..errors import ExportError
from ..prediction.native_runner import encode_points
from .graph import Feed, Graph, Options, RunFile, Written
from .image import ImageNetwork


def write_native(graph: Graph, files: Sequence[Path], options: Options) -> Written:
    """Write a network as a plan file.

    Raises:
        NotCoveredError: the engine does not compute a layer of the model.
        ExportError: the network upsamples its logits.
    """
    model = graph.model
    if isinstance(graph.network, ImageNetwork):
        if graph.network.upsample:
            raise ExportError("upsample: the native engine gives logits at the model's stride, which Foveal upsamples")
        model = graph.network.model
    assert model is not None
    replace(make_plan(model, graph.part), info=graph.info).save(files[0], options.half)
    return Written(notes=("weights in float16, computed in float32",) if options.half else ())


def open_native(files: Sequence[Path]) -> RunFile:
    """Open a plan file, to compare it with the model."""
    engine = Engine(load_plan(files[0]))

    def run_file(feed: Feed) -> list[NDArray[np.float32]]:
        if "point_coords" not in feed:
            return [engine(*feed.values())]
        tokens = encode_points(engine.plan, feed["point_coords"], feed["point_labels"].astype(np.int64))
        iou, masks = engine.run(feed["image_embeddings"], tokens)[0]
        return [masks, iou]

    return run_file
