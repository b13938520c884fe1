"""The verb ``regress``: maps of values, such as depth, surface normals or alpha."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError, InputError
from .console import (
    ANY_ENGINE,
    NO_TILES,
    BatchSize,
    Engines,
    Images,
    Json,
    Tiling,
    open_model,
    print_json,
    print_table,
    say,
)
from .outputs import FOLDER, Job, Plan, Request, print_failed, require_images, run_stream

if TYPE_CHECKING:
    from ..prediction.predictor import Predictor
    from ..prediction.regress import RegressResult

Format = Literal["png", "tif", "npy", "exr"]
PICTURE = ".picture.png"  #: end of the name of the picture of the values


def regress(
    images: Images,
    /,
    *,
    model: str,
    out: Path = FOLDER,
    format: Format | None = None,
    scale: float | None = None,
    picture: bool | None = None,
    tiles: Tiling = NO_TILES,
    resume: bool = False,
    batch_size: BatchSize = None,
    engine: Engines = ANY_ENGINE,
    json: Json = False,
) -> int:
    """Predict a map of values for each image: depth, surface normals, alpha, or whatever the model was trained on.

    Parameters
    ----------
    model
        Checkpoint, exported file or training run of a regression model.
    out
        Folder for the maps, or the file of a single map: a .png, .tif, .npy or .exr.
    format
        Format of the maps: png with 16 bits, value / scale; tif, npy and exr with the values in float32. Default: png
        if the scale is known, else tif.
    scale
        PNG: value of one step; default: that of the training data.
    picture
        Also write a picture: colours for depth and other values, RGB for normals, a cut-out for alpha; default: for a
        single image.
    resume
        Skip images whose map, and picture if one is asked for, exist.
    """
    require_images(images)
    predictor = open_model(model, engine, "regress")
    request = Request(images, out, picture, tiles, resume, json, batch_size)
    return run(predictor, request, format, scale)


def run(predictor: Predictor, request: Request, format: Format | None = None, scale: float | None = None) -> int:
    """Predict the requested maps; the exit code is 1 if some of many images failed.

    Raises:
        ConfigError: a scale that is out of range or for another format, or a table of classes.
        InputError: the format cannot hold the values, or a single image that cannot be used.
    """
    from ..prediction.regress import check_format

    request.refuse_table("maps of values have")
    if scale is not None and not 1e-12 <= scale <= 1e12:
        raise ConfigError(f"--scale {scale}: give a number above 0, such as 0.001")
    suffix = _suffix(predictor, request.out, format, scale)
    check_format(request.out / f"map{suffix}", predictor.info.num_classes, predictor.info.target, scale)
    predictor.check_tiles(**request.tiles.options())
    draws = not request.many if request.overlay is None else request.overlay
    plan = request.plan(suffix, PICTURE if draws else "")
    if request.many or not plan.jobs:
        return _run_many(predictor, request, plan, scale)
    report = regress_file(predictor, plan.jobs[0], scale, request.tiles.options())
    print_json(report) if request.as_json else print_report(report)
    return 0


def _suffix(predictor: Predictor, out: Path, format: Format | None, scale: float | None) -> str:
    """Suffix of the maps: that of the format, of the file that is asked for, or the default."""
    from ..prediction.regress import FORMATS, check_format

    if format is not None:
        return f".{format}"
    if out.suffix.lower() in FORMATS:
        return out.suffix.lower()
    try:
        check_format(Path("map.png"), predictor.info.num_classes, predictor.info.target, scale)
    except InputError:
        if scale is not None:
            raise
        return ".tif"
    return ".png"


def regress_file(
    predictor: Predictor, job: Job, scale: float | None = None, tiles: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Predict one map, write it and its picture, and return the report that ``--json`` prints."""
    import numpy as np

    from ..measuring import machine

    started = time.perf_counter()
    result = predictor.regress(job.source, **(tiles or {}))
    values = result.values
    seconds = time.perf_counter() - started
    clipped = _write(result, job, scale)
    flat = values.reshape(-1, values.shape[2]).astype(np.float64)
    rows = zip(result.names, flat.min(0).tolist(), flat.mean(0).tolist(), flat.max(0).tolist(), strict=True)
    return {
        "image": str(job.source),
        "size": list(values.shape[:2]),
        "model": predictor.info.ref,
        "runtime": predictor.runtime,
        "seconds": round(seconds, 4),
        "machine": machine.describe(),
        "unit": result.target.unit,
        "channels": [{"name": name, "min": low, "mean": mean, "max": high} for name, low, mean, high in rows],
        "clipped": clipped,
        "files": [str(path) for path in job.files],
    }


def _write(result: RegressResult, job: Job, scale: float | None) -> int:
    """Write the map and its picture; return the number of pixels that were clipped."""
    from ..images.rasters import georeference_of
    from ..images.tiff_writing import TIFF_SUFFIXES
    from ..images.writing import save_picture

    if job.picture is not None:
        save_picture(result.picture(), job.picture)
    tags = georeference_of(job.source) if job.target.suffix.lower() in TIFF_SUFFIXES else None
    return result.write(job.target, scale, tags)  # last: other programs take an image with a map for a complete result


def print_report(report: dict[str, Any]) -> None:
    """Print a report of :func:`regress_file` as text."""
    from ..measuring import machine

    height, width = report["size"]
    say(f"{report['image']}  {width}x{height}  {report['model']}, {report['runtime']}")
    say()
    unit = f", {report['unit']}" if report["unit"] else ""
    columns = ("min", "mean", "max")
    rows = [(each["name"], *(f"{each[column]:.4g}" for column in columns)) for each in report["channels"]]
    print_table((f"channel{unit}", *columns), rows)
    say()
    if report["clipped"]:
        say(f"{report['clipped']} pixels clipped to the range of 16 bits: --format tif keeps them")
    say(f"{report['seconds']:.2f} s for reading, network and map on {machine.one_line()}")
    for file in report["files"]:
        say(file)


def _run_many(predictor: Predictor, request: Request, plan: Plan, scale: float | None) -> int:
    clipped = 0

    def write(result: RegressResult, job: Job) -> None:
        nonlocal clipped
        clipped += _write(result, job, scale)

    started = time.perf_counter()
    options = {**request.tiles.options(), "batch_size": request.batch_size}
    done, failed = run_stream("regress", plan, predictor, options, write)
    seconds = time.perf_counter() - started
    if request.as_json:
        counts = {"done": done, "done_before": plan.before, "failed": failed, "clipped": clipped}
        print_json({**counts, "out": str(request.out), "seconds": round(seconds, 3)})
        return 1 if failed else 0
    say(f"{plan.tally(done)} in {seconds:.1f} s, maps in {request.out}")
    if clipped:
        say(f"{clipped} pixels clipped to the range of 16 bits: --format tif keeps them")
    return print_failed(failed)
