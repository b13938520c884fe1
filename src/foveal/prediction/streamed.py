"""Predict for images larger than memory, equal to the whole image in one pass of the network within rounding."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..files import check_overwrites
from ..images.bands import Bands
from ..images.preparing import prepare
from ..images.rasters import Raster, as_bands, open_raster, valid_pixels
from ..images.sources import ImageLike
from ..info import ModelInfo, Preprocess
from ..progress import Report
from ..streaming.maps import DiskMap, MemoryState, check_disk, open_state, remove_state
from ..streaming.passes import Plan
from ..streaming.regions import Region
from ..streaming.run import Outputs, run
from ..streaming.team import find_team
from .load import load
from .predictor import Predictor
from .results import class_names
from .streamed_networks import StreamedNetwork, network_of, plan_pieces, runtime_of
from .streamed_outputs import FINISHES, Files, Finish, write_map

KEEPS = ("float32", "float16")  #: types of the maps that are kept on disk


@dataclass(frozen=True)
class StreamResult:
    """The result of :func:`stream`.

    Attributes:
        size: (H, W) of the image.
        path: of the file that was written; ``None``: the result is ``outputs``.
        outputs: without a file: the mask ``(H, W)``, the upscaled image ``(H, W, 3)``, the class scores ``(C,)``, or
            the feature maps ``(C, h, w)``.
        shares: when segmenting, (class name, share of the pixels) of every class that occurs, largest share first.
        passes: number of passes over the image and its maps.
        disk_bytes: of the maps that were kept at the same time.
    """

    size: tuple[int, int]
    path: Path | None
    outputs: list[NDArray[Any]] = field(repr=False)
    shares: list[tuple[str, float]] = field(default_factory=list)
    passes: int = 1
    disk_bytes: int = 0


def stream(
    model: Predictor | str | os.PathLike[str],
    source: ImageLike,
    out: str | Path | None = None,
    *,
    tile: int | None = None,
    keep: str = "float32",
    level: int = 0,
    polygons: str | Path | None = None,
    resume: bool = False,
    runtime: str = "auto",
    progress: Report | None = None,
) -> StreamResult:
    """Predict for one image of any size, piece by piece, with the result of the whole image within rounding.

    TIFF, NPY and Zarr files, slides, and large PNG and JPEG files are read in windows, so that memory does not grow
    with the image; the maps between the passes are kept in a folder next to ``out``. The image is seen at its full
    size.

    Args:
        model: a predictor of the torch runtime, or a reference for :func:`foveal.load`. It segments, upscales,
            classifies, or is a backbone. Without torch: weights of the package, which segment and upscale.
        source: path, array, or anything else that predictors read.
        out: file of the result: .tif, .zarr, .png or .npy for masks and images. Default: the result is returned, and
            everything is kept in memory.
        tile: side of the pieces in pixels; default: what fits into 50 MB. It does not change the result.
        keep: type of the maps on disk; "float16" halves them, and the result is then not exact.
        polygons: a .geojson or .gpkg file with a polygon for each area of a mask, written before ``out``. Coordinates
            are those of the image's georeference, or columns and rows.
        level: of a file with smaller versions of an image (slides, pyramidal TIFF, OME-Zarr); 0 is the largest.
        resume: continue an interrupted computation of the same result.
        runtime: "torch"; "native": the native engine computes the convolutions, with float32 weights on the CPU;
            "onnxruntime": weights of the package without torch; or "auto": torch where it is installed, otherwise
            ONNX Runtime, and for a predictor its own runtime.
        progress: called with the share of the work that is done and a text.

    Raises:
        ConfigError: a model that cannot be computed in pieces: the message names the layer and the reason; an option
            that cannot be used.
        InputError: an image that cannot be read, or too little disk.
        DependencyError: a library that the image, the polygons or the runtime need is not installed.
    """
    if not isinstance(model, Predictor):
        model = load(model, runtime=runtime_of(os.fspath(model), runtime))
    predictor = model
    network = network_of(predictor, runtime)
    if keep not in KEEPS:
        raise ConfigError(f"keep={keep!r}: give {' or '.join(KEEPS)}")
    finish = _finish(predictor.info)
    files = Files(None if out is None else Path(out), None if polygons is None else Path(polygons))
    files.check(finish)
    outputs = [path for path in (files.result, files.polygons) if path is not None]
    check_overwrites(outputs, [Path(source)] if isinstance(source, str | os.PathLike) else [], "image")
    if len(set(outputs)) < len(outputs):
        raise ConfigError(f"{out}: the mask and its polygons need two files")
    if files.result is None and resume:
        raise ConfigError("resume needs out: without a file nothing is kept")
    with open_raster(source, predictor.bands, level) as raster:
        if finish.plain and (raster.shape[2], raster.dtype) != (3, np.uint8):
            raise InputError(
                f"{raster.name}: {Bands(raster.shape[2], str(raster.dtype))}; images are streamed to larger ones from "
                "RGB of 8 bits alone: predictor.upscale(image, exact=True) keeps alpha, grey and 16 bits"
            )
        files = files.located(raster)
        seen = _Input(raster, predictor)
        passes = _plan(network, seen, finish, tile)

        def described() -> dict[str, Any]:
            further: dict[str, Any] = {"level": level} if level else {}
            further |= {"runtime": runtime} if runtime == "native" else {}
            return _describe(network, seen.preprocess, raster, source, passes, keep) | further

        compute = partial(run, passes, seen, dtype=keep, report=progress, executor=network.executor(passes))
        return _run(predictor, seen, passes, finish, files, compute, passes.disk_bytes(keep), described, resume)


def _finish(info: ModelInfo) -> Finish:
    if info.task not in FINISHES:
        raise ConfigError(f"{info.ref} is for {info.task!r}, which cannot be streamed: its result is not of one pass")
    if info.preprocess.size is not None and not FINISHES[info.task].any_size:
        raise ConfigError(f"{info.ref} resizes every image to a fixed size, so the image needs no streaming")
    finish = FINISHES[info.task]
    if finish.counts and info.num_classes > finish.blank:
        raise ConfigError(f"{info.ref} has {info.num_classes} classes: masks of streaming hold {finish.blank}")
    return finish


class _Input:
    """What the network sees of an image; see :class:`foveal.streaming.run.Image`."""

    def __init__(self, raster: Raster, predictor: Predictor) -> None:
        self.raster, self.bands = raster, predictor.bands
        before = predictor.info.preprocess
        self.preprocess = Preprocess(before.mean, before.std, dtype=before.dtype)  # at full size
        self.has_gaps = raster.nodata is not None

    def _window(self, region: Region) -> NDArray[Any]:
        return self.raster.read(slice(region.top, region.bottom), slice(region.left, region.right))

    def read(self, region: Region) -> NDArray[np.float32]:
        window = self._window(region)
        valid = valid_pixels(window, self.raster.nodata) if self.has_gaps else None
        if valid is not None:  # their value may be NaN
            window = np.where(valid[..., None], window, window.dtype.type(0))
        prepared = prepare(as_bands(window, self.raster, self.bands), self.preprocess)
        if valid is not None:
            prepared *= valid
        return prepared

    def valid(self, region: Region) -> NDArray[np.bool_]:
        return valid_pixels(self._window(region), self.raster.nodata)


def _plan(network: StreamedNetwork, seen: _Input, finish: Finish, tile: int | None) -> Plan:
    """The passes, checked for the side of the pieces."""
    height, width, _ = seen.raster.shape
    program = network.program(height, width, len(seen.preprocess.mean))
    if finish.operation is not None:
        program = program.followed_by(
            finish.operation(height, width), channels=finish.channels, dtype=finish.dtype, blank=finish.blank
        )
    return plan_pieces(program, tile, network)


def _describe(
    network: StreamedNetwork, preprocess: Preprocess, raster: Raster, source: ImageLike, passes: Plan, keep: str
) -> dict[str, Any]:
    """What a computation depends on, to be resumed only with the same."""
    from importlib import metadata

    image: dict[str, Any] = {"shape": list(raster.shape), "type": str(raster.dtype)}
    if isinstance(source, str | os.PathLike):
        status = os.stat(source)
        image |= {"path": os.path.abspath(source), "bytes": status.st_size, "changed": status.st_mtime_ns}
        if os.path.isdir(source):  # of Zarr: a chunk that changes does not change its folder
            image["files"] = _digest_of_files(Path(source))
    else:
        rows = raster.read(slice(0, raster.shape[0]), slice(0, raster.shape[1]))
        image["sha256"] = hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
    return {
        "version": metadata.version("foveal"),
        "weights": network.digest(),
        "preprocess": [list(preprocess.mean), list(preprocess.std), preprocess.dtype],
        "image": image,
        "keep": keep,
        "tile": [part.grid.side for part in passes.passes],
        "maps": [list(part.keeps) for part in passes.passes],
        "device": network.place,
    }


def _digest_of_files(folder: Path) -> str:
    """Of the names, sizes and times of all files below a folder."""
    facts = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        status = file.stat()
        facts.update(repr((file.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns)).encode())
    return facts.hexdigest()


def _run(
    predictor: Predictor,
    seen: _Input,
    passes: Plan,
    finish: Finish,
    files: Files,
    compute: Callable[..., Outputs],
    disk: int,
    described: Callable[[], dict[str, Any]],
    resume: bool,
) -> StreamResult:
    """Run the passes, and write the result or return it."""
    size, count = (seen.raster.shape[0], seen.raster.shape[1]), len(passes.passes)
    info, path = predictor.info, files.result
    if path is None:
        outputs = compute(MemoryState())
        if files.polygons is not None:
            files.write_polygons(outputs.kept()[0], info, seen.raster)
        arrays = outputs.arrays()
        counts = np.zeros(0, np.int64)
        if finish.counts:
            counts = np.bincount(arrays[0].ravel(), minlength=256)
            counts[finish.blank] *= seen.raster.nodata is None
        return StreamResult(size, None, [finish.shape(array) for array in arrays], _shares(predictor, counts), count)
    folder = path.with_name(f".{path.name}.streaming")
    if not folder.exists():
        check_disk(folder, disk)
    team = find_team()
    description = described() | ({"processes": team.size} if team.size > 1 else {})
    with open_state(folder, description, resume=resume, rank=team.rank, wait=team.wait) as state:
        (kept,) = compute(state, team=team).kept()
        assert isinstance(kept, DiskMap)
        counts = np.zeros(0, np.int64)
        if team.rank == 0:
            files.write_polygons(kept, info, seen.raster)
            counts = write_map(path, kept, finish, info, seen.raster)
        team.wait()
    if team.rank == 0:
        remove_state(folder)
    return StreamResult(size, path, [], _shares(predictor, counts), count, disk)


def _shares(predictor: Predictor, counts: NDArray[np.integer]) -> list[tuple[str, float]]:
    names = class_names(predictor.info.labels, max(predictor.info.num_classes, len(counts)))
    order = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    return [(names[index], float(counts[index] / counts.sum())) for index in order]
