"""Classical interpolation as a predictor, ``bicubic.x2`` or ``lanczos.x4``: what every network is compared with."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from ..images.resampling import interpolated
from ..info import ModelInfo, Preprocess
from .predictor import Predictor

_NAME = re.compile(r"(bicubic|lanczos)\.x([1-8])")


def interpolation(ref: str) -> Predictor | None:
    """The predictor that ``ref`` names, ``None`` where it names something else."""
    found = _NAME.fullmatch(ref)
    if found is None:
        return None
    kernel, scale = found[1], int(found[2])

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        images = [interpolated(image.transpose(1, 2, 0), scale, kernel).transpose(2, 0, 1) for image in batch]
        return np.stack(images).astype(np.float32)

    info = ModelInfo(
        kernel, "upscale", options={"scale": scale}, preprocess=Preprocess((0.0,) * 3, (1.0,) * 3), tag=f"x{scale}"
    )
    return Predictor(run, info, "numpy")
