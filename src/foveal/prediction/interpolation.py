"""Bicubic and Lanczos interpolation as predictors, ``bicubic.x2`` or ``lanczos.x4``: the baseline for upscaling."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..images.resampling import interpolated
from ..info import ModelInfo, Preprocess
from .predictor import Predictor

KERNELS = ("bicubic", "lanczos")  #: names without a scale
SCALES = range(1, 9)  #: factors that there are
_NAME = re.compile(rf"({'|'.join(KERNELS)})\.x([{SCALES[0]}-{SCALES[-1]}])")


def interpolation(ref: str) -> Predictor | None:
    """The predictor that ``ref`` names; ``None``: it names something else."""
    match = _NAME.fullmatch(ref)
    if match is None:
        return None
    kernel, scale = match[1], int(match[2])
    info = ModelInfo(
        kernel, "upscale", options={"scale": scale}, preprocess=Preprocess((0.0,) * 3, (1.0,) * 3), tag=f"x{scale}"
    )
    return Predictor(partial(_interpolate, scale, kernel), info, "numpy on cpu: interpolation needs no network")


def _interpolate(scale: int, kernel: str, batch: NDArray[np.float32], /) -> NDArray[np.float32]:
    images = [interpolated(image.transpose(1, 2, 0), scale, kernel).transpose(2, 0, 1) for image in batch]
    return np.stack(images).astype(np.float32)
