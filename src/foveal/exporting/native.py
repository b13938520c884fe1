"""The format of the native CPU engine: a plan of fused operations with the weights."""

from __future__ import annotations

import copy
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
from ..tasks.prompt import ImageEncoder, PromptModel
from .graph import Feed, Graph, Options, RunFile, Written
from .image import ImageNetwork


def write_native(graph: Graph, files: Sequence[Path], options: Options) -> Written:
    """Write a network as a plan file.

    Raises:
        NotCoveredError: the engine does not compute a layer of the model.
        ExportError: the network upsamples its logits.
    """
    if isinstance(graph.network, ImageNetwork):
        if graph.network.upsample:
            raise ExportError("upsample: the native engine gives logits at the model's stride, which Foveal upsamples")
        model = graph.network.model
    else:
        model = _with_part(graph)
    replace(make_plan(model, graph.part), info=graph.info).save(files[0], options.half)
    return Written(notes=("weights in float16, computed in float32",) if options.half else ())


def _with_part(graph: Graph) -> PromptModel:
    """The promptable model that has the network of a file as its part."""
    assert isinstance(graph.model, PromptModel)
    model, network = copy.deepcopy(graph.model), graph.network
    if isinstance(network, ImageEncoder):
        model.image_encoder = network
    for name in ("prompt_encoder", "mask_decoder"):
        if hasattr(network, name):
            setattr(model, name, getattr(network, name))
    return model


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
