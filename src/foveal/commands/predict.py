"""The verb ``predict``."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from .classify import _classify
from .console import Images, Json, Overlap, Tile
from .segment import _predict


def predict(
    images: Images,
    /,
    *,
    model: str,
    out: Path = Path("foveal-out"),
    overlay: bool | None = None,
    tile: Tile = None,
    overlap: Overlap = None,
    resume: bool = False,
    json: Json = False,
) -> int:
    """Predict with any model; what comes out is its task's.

    Parameters
    ----------
    model
        Bundled name, checkpoint, exported file or training run.
    out
        Folder for the results of models that make images, or the file of a single one.
    overlay
        Write the image with the classes' colours over it too; default: for a single image.
    resume
        Leave out images whose result exists.
    """
    from ..prediction.load import load

    predictor = load(model)
    if predictor.info.task == "classify":
        return _classify(predictor, images, 5, json)
    if predictor.info.task == "upscale":
        from . import upscale as upscaling

        return upscaling.run(predictor, images, out, tile=tile, overlap=overlap, resume=resume, as_json=json)
    if predictor.info.task == "prompt":
        from . import prompt as prompting

        if tile is not None or overlap is not None:
            raise ConfigError(f"--tile, --overlap: {model} is promptable and sees the whole image; leave them out")
        return prompting.run(predictor, images, out, overlay, resume, json)
    return _predict(predictor, images, out, overlay, None, tile, overlap, resume, json)
