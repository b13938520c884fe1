"""The verb ``predict``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from . import classify, prompt, regress, segment, upscale
from .console import ANY_ENGINE, NO_TILES, BatchSize, Engines, Images, Json, Tiling
from .outputs import FOLDER, Request, require_images
from .tables import Csv

if TYPE_CHECKING:
    from ..prediction.predictor import Predictor

#: What predicts with a model, by the model's task.
_RUNS: dict[str, Callable[[Predictor, Request], int]] = {
    "segment": segment.run,
    "classify": classify.run,
    "upscale": upscale.run,
    "regress": regress.run,
    "prompt": prompt.run,
}


def predict(
    images: Images,
    /,
    *,
    model: str,
    out: Path = FOLDER,
    overlay: bool | None = None,
    tiles: Tiling = NO_TILES,
    resume: bool = False,
    batch_size: BatchSize = None,
    csv: Csv = None,
    engine: Engines = ANY_ENGINE,
    json: Json = False,
) -> int:
    """Predict with any model. The model's task decides what is printed and written.

    Parameters
    ----------
    model
        Bundled name, checkpoint, exported file or training run.
    out
        Folder for results that are files, or the file of a single result.
    overlay
        Also write the image with the result over it (segmentation, masks of objects), or a picture of the values
        (regression); default: for a single image, and always for masks of objects.
    resume
        Skip images whose result exists.
    """
    require_images(images)
    predictor = engine.load(model)
    if predictor.info.task not in _RUNS:
        raise ConfigError(
            f"{model} is for {predictor.info.task!r}, which gives no result for an image: give a model for "
            f"{', '.join(_RUNS)}"
        )
    request = Request(images, out, overlay, tiles, resume, json, batch_size, csv=csv)
    return _RUNS[predictor.info.task](predictor, request)
