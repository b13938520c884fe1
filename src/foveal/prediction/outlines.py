"""Bundled promptable models with ONNX Runtime: graphs in the package that read their weights from its checkpoint.

``foveal.exporting.outline`` writes these graphs. Files of others that refer to further files are refused
(:mod:`foveal.prediction.onnx_file`), so ``foveal.load`` does not open these either.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import assets
from ..info import KEY, ModelInfo
from .exported import NetworkPrompter
from .onnx_runner import session_options
from .predictor import Predictor

PARTS = ("encoder", "prompts")  #: networks that answer points and boxes; there is none for mask inputs


class OutlineNetwork:
    """A network of the package.

    Args:
        path: of the graph, in the folder of its checkpoint.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), session_options(0), providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    @property
    def info(self) -> ModelInfo:
        """Description of the model."""
        return ModelInfo.from_json(self.session.get_modelmeta().custom_metadata_map[KEY])

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(self.outputs, map(np.asarray, self.session.run(self.outputs, dict(feed))), strict=True))


def open_outline(ref: str) -> Predictor:
    """Open a bundled promptable model without torch, for points and boxes."""
    networks = {part: OutlineNetwork(assets.path(ref, f".{part}.onnx")) for part in PARTS}
    info = networks[PARTS[0]].info
    runner = NetworkPrompter(networks, str(info.notes.get("encoder", "")))  # pyright: ignore[reportArgumentType]
    return Predictor(runner, info, "onnxruntime on cpu")
