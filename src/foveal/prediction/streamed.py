"""Predict for images larger than memory, equal to the whole image in one pass of the network within rounding."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from ..streaming.regions import Region
from .load import load
from .predictor import Predictor
from .results import class_names
from .streamed_outputs import FINISHES, Files, Finish, write_map
from .torch_runner import TorchRunner

if TYPE_CHECKING:
    from torch import Tensor

    from ..streaming.passes import Plan
    from ..streaming.run import Outputs

_ON_GPU = 1 << 30  # bytes for the maps of a piece
KEEPS = ("float32", "float16")  #: types of the maps that are kept on disk
RUNTIMES = ("torch", "native")  #: what computes the pieces


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
    runtime: str = "torch",
    progress: Report | None = None,
) -> StreamResult:
    """Predict for one image of any size, piece by piece, with the result of the whole image within rounding.

    TIFF, NPY and Zarr files, slides, and large PNG and JPEG files are read in windows, so that memory does not grow
    with the image; the maps between the passes are kept in a folder next to ``out``. The image is seen at its full
    size.

    Args:
        model: a predictor of the torch runtime, or a reference for :func:`foveal.load`. It segments, upscales,
            classifies, or is a backbone.
        source: path, array, or anything else that predictors read.
        out: file of the result: .tif, .zarr, .png or .npy for masks and images. Default: the result is returned, and
            everything is kept in memory.
        tile: side of the pieces in pixels; default: what fits into 50 MB. It does not change the result.
        keep: type of the maps on disk; "float16" halves them, and the result is then not exact.
        polygons: a .geojson or .gpkg file with a polygon for each area of a mask, written before ``out``. Coordinates
            are those of the image's georeference, or columns and rows.
        level: of a file with smaller versions of an image (slides, pyramidal TIFF, OME-Zarr); 0 is the largest.
        resume: continue an interrupted computation of the same result.
        runtime: "torch", or "native": the native engine computes the convolutions, with float32 weights on the CPU.
        progress: called with the share of the work that is done and a text.

    Raises:
        ConfigError: a model that cannot be computed in pieces: the message names the layer and the reason; an option
            that cannot be used.
        InputError: an image that cannot be read, or too little disk.
        DependencyError: a library that the image, the polygons or the runtime need is not installed.
    """
    from ..streaming.run import run

    predictor = model if isinstance(model, Predictor) else load(model, runtime="torch")
    runner = _runner(predictor)
    native = _is_native(runtime, runner)
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
        seen = _Input(raster, predictor, runner)
        plan = _plan(runner, seen, finish, tile)

        def described() -> dict[str, Any]:
            further = {"level": level} if level else {}
            return _describe(runner, raster, source, plan, keep) | further | ({"runtime": runtime} if native else {})

        compute = partial(run, plan, seen, dtype=keep, report=progress, native=native)
        return _run(predictor, seen, plan, finish, files, compute, plan.disk_bytes(keep), described, resume)


def _is_native(runtime: str, runner: TorchRunner) -> bool:
    """Whether the native engine is asked for, which is then compiled if it is not yet."""
    import torch

    from ..engine.library import load_library

    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime={runtime!r}: give {' or '.join(RUNTIMES)}")
    if runtime == "torch":
        return False
    if runner.device.type != "cpu" or runner.dtype != torch.float32:
        raise ConfigError(
            f"runtime='native' computes in float32 on the CPU, and the model is {runner.dtype} on {runner.device}"
        )
    load_library()
    return True


def _runner(predictor: Predictor) -> TorchRunner:
    if not isinstance(predictor.runner, TorchRunner):
        raise ConfigError(
            f"exact streaming needs the torch runtime: {predictor.info.ref} runs with {predictor.runtime.split()[0]}; "
            "load a checkpoint with runtime='torch'"
        )
    return predictor.runner


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

    def __init__(self, raster: Raster, predictor: Predictor, runner: TorchRunner) -> None:
        self.raster, self.bands, self.device = raster, predictor.bands, runner.device
        before = predictor.info.preprocess
        self.preprocess = Preprocess(before.mean, before.std, dtype=before.dtype)  # at full size
        self.has_gaps = raster.nodata is not None

    def _window(self, region: Region) -> NDArray[Any]:
        return self.raster.read(slice(region.top, region.bottom), slice(region.left, region.right))

    def read(self, region: Region) -> Tensor:
        import torch

        window = self._window(region)
        valid = valid_pixels(window, self.raster.nodata) if self.has_gaps else None
        if valid is not None:  # their value may be NaN
            window = np.where(valid[..., None], window, window.dtype.type(0))
        prepared = prepare(as_bands(window, self.raster, self.bands), self.preprocess)
        if valid is not None:
            prepared *= valid
        return torch.from_numpy(prepared).to(self.device)

    def valid(self, region: Region) -> NDArray[np.bool_]:
        return valid_pixels(self._window(region), self.raster.nodata)


def _plan(runner: TorchRunner, seen: _Input, finish: Finish, tile: int | None) -> Plan:
    """The passes, checked for the side of the pieces."""
    from ..streaming.passes import PIECE_BYTES, coarsest_stride, plan
    from ..streaming.trace import derive

    height, width, _ = seen.raster.shape
    program = derive(runner.model, height, width, channels=len(seen.preprocess.mean), **runner.options)
    if finish.operation is not None:
        program = program.followed_by(
            finish.operation(height, width), channels=finish.channels, dtype=finish.dtype, blank=finish.blank
        )
    coarsest = coarsest_stride(program)
    if tile is not None and (tile < coarsest or tile % coarsest):
        nearest = max(coarsest, round(tile / coarsest) * coarsest)
        raise InputError(f"tile={tile}: pieces of this model have multiples of {coarsest} pixels: give {nearest}")
    memory = PIECE_BYTES if runner.device.type == "cpu" else _ON_GPU  # what fits into caches is too little for a GPU
    return plan(program, side=tile, memory=memory)


def _describe(runner: TorchRunner, raster: Raster, source: ImageLike, plan: Plan, keep: str) -> dict[str, Any]:
    """What a computation depends on, to be resumed only with the same."""
    from importlib import metadata

    digest = hashlib.sha256()
    for name, tensor in runner.model.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).tobytes())
    image: dict[str, Any] = {"shape": list(raster.shape), "type": str(raster.dtype)}
    if isinstance(source, str | os.PathLike):
        status = os.stat(source)
        image |= {"path": os.path.abspath(source), "bytes": status.st_size, "changed": status.st_mtime_ns}
    else:
        rows = raster.read(slice(0, raster.shape[0]), slice(0, raster.shape[1]))
        image["sha256"] = hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
    return {
        "version": metadata.version("foveal"),
        "weights": digest.hexdigest(),
        "image": image,
        "keep": keep,
        "tile": [part.grid.side for part in plan.passes],
        "maps": [list(part.keeps) for part in plan.passes],
        "device": f"{runner.device}, {runner.dtype}",
    }


def _run(
    predictor: Predictor,
    seen: _Input,
    plan: Plan,
    finish: Finish,
    files: Files,
    compute: Callable[..., Outputs],
    disk: int,
    described: Callable[[], dict[str, Any]],
    resume: bool,
) -> StreamResult:
    """Run the passes, and write the result or return it."""
    from ..streaming.team import find_team

    size, passes = (seen.raster.shape[0], seen.raster.shape[1]), len(plan.passes)
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
        return StreamResult(size, None, [finish.shape(array) for array in arrays], _shares(predictor, counts), passes)
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
    return StreamResult(size, path, [], _shares(predictor, counts), passes, disk)


def _shares(predictor: Predictor, counts: NDArray[np.integer]) -> list[tuple[str, float]]:
    names = class_names(predictor.info.labels, max(predictor.info.num_classes, len(counts)))
    order = [index for index in np.argsort(-counts, kind="stable") if counts[index]]
    return [(names[index], float(counts[index] / counts.sum())) for index in order]
