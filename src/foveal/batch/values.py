"""Maps of values as files: what a regression model gives for each image."""

from __future__ import annotations

from ..images.tiff_writing import tiff_bytes
from ..prediction.predictor import Predictor
from ..prediction.regress import RegressResult
from ..task import find_task


def gives_values(predictor: Predictor) -> bool:
    """Whether a model gives values of each pixel."""
    task = find_task(predictor.info.task)
    return task.has_maps and not task.has_classes


def values_tiff(result: RegressResult) -> bytes:
    """The values in their unit as TIFF, float32, as ``foveal regress --format tif`` writes them."""
    return tiff_bytes(result.tiff_image(), [result.values])
