"""``--exact`` of the verbs: results of the whole image for images of any size, computed piece by piece."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..errors import ConfigError
from ..progress import Report
from .console import Engine, open_model, print_table, say
from .outputs import Job, Request, print_images, run_jobs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..prediction.predictor import Predictor

Exact = Annotated[
    bool,
    Parameter(
        negative="",
        help="The result of the whole image at its full size, computed in pieces with maps kept on disk. --tile is "
        "then the side of the pieces, and --resume also continues an interrupted image.",
    ),
]
Keep = Annotated[
    Literal["float32", "float16"] | None,
    Parameter(help="With --exact: type of the maps on disk; default: float32. float16 halves them, and is not exact."),
]
Level = Annotated[
    int | None,
    Parameter(help="With --exact: level of a slide, a pyramidal TIFF or an OME-Zarr; default: 0, the largest."),
]


def check_options(engine: Engine, option: str = "--exact", **unusable: object) -> Engine:
    """The engine for ``--exact``: torch, perhaps with the native engine for the convolutions, or ONNX Runtime.

    Args:
        engine: as requested.
        option: that needs it.
        **unusable: other options, which must not be given.

    Raises:
        ConfigError: another runtime, or an option that does not go with ``--exact``.
    """
    from ..prediction.streamed_networks import RUNTIMES

    if engine.runtime not in ("auto", *RUNTIMES):
        listed = f"{', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}"
        raise ConfigError(f"{option} runs with {listed}, not with {engine.runtime}: leave out --runtime")
    for name, value in unusable.items():
        if value is not None and value is not False:  # 0 counts
            raise ConfigError(f"--{name.replace('_', '-')} does not go with {option}: leave one of them out")
    return engine


def open_exact(model: str, engine: Engine, task: str) -> Predictor:
    """Load a model to compute images in pieces: with torch, or weights of the package with ONNX Runtime.

    Raises:
        DependencyError: torch is needed and not installed.
        FovealError: as :func:`~.console.open_model`.
    """
    from ..prediction.streamed_networks import runtime_of

    return open_model(model, dataclasses.replace(engine, runtime=runtime_of(model, engine.runtime)), task)


def run_exact(
    model: str,
    engine: Engine,
    task: str,
    request: Request,
    keep: str | None = None,
    level: int | None = None,
    scale: int | None = None,
) -> int:
    """Predict for the requested images; the exit code is 1 if some of many failed.

    Args:
        model: reference of the model.
        engine: as requested, and checked by :func:`check_options`.
        task: of the model.
        request: images and files.
        keep: type of the maps on disk; ``None``: float32.
        level: of the images; ``None``: the largest.
        scale: times that the model must enlarge; ``None``: as it does.
    """
    from ..images.colours import palette_of
    from ..prediction.streamed_outputs import SUFFIXES
    from ..streaming.team import is_first

    predictor = open_exact(model, engine, task)
    if scale is not None and scale != (own := predictor.info.options["scale"]):
        raise ConfigError(f"--scale {scale}: {model} enlarges {own} times; leave out --scale, or give another --model")
    runtime = predictor.runtime + (", convolutions in the native engine" if engine.runtime == "native" else "")
    options = {"keep": keep or "float32", "level": level or 0, "runtime": engine.runtime}
    suffix = request.out.suffix.lower()
    palette = palette_of(predictor.info.labels, predictor.info.num_classes)  # no colours where there are no classes
    plan = request.plan(suffix if suffix in SUFFIXES else ".tif", palette=palette)

    def work(job: Job, progress: Report) -> dict[str, Any]:
        return stream_file(predictor, job, request, options, progress)

    done, failed = [], []
    if request.many or not plan.jobs:
        # Several processes compute one image together: none of them can leave one out alone.
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        done, failed = run_jobs(task, plan, work, request.many and alone)
    else:
        with percent_bar(task) as progress:
            done.append(work(plan.jobs[0], progress))
    if not is_first():
        return 1 if failed else 0
    about = {"model": predictor.info.ref, "runtime": runtime}
    return print_images(request, plan, done, failed, about, print_report)


@contextmanager
def percent_bar(name: str) -> Iterator[Report]:
    """Show the share of a single work that is done, and the time left, on standard error."""
    from ..progress import Progress
    from ..streaming.team import is_first

    shown = 0
    with Progress(is_first()).bar(name, 100) as bar:

        def progress(share: float, text: str) -> None:
            nonlocal shown
            while shown < int(100 * share):
                shown += 1
                bar.advance(text)

        yield progress


def stream_file(
    predictor: Predictor,
    job: Job,
    request: Request,
    options: dict[str, Any],
    progress: Report,
) -> dict[str, Any]:
    """Predict for one image, and return the report that ``--json`` prints."""
    from ..prediction.streamed import stream

    started = time.perf_counter()
    files = {"polygons": job.polygons, "resume": request.resume}
    result = stream(predictor, job.source, job.target, tile=request.tiles.tile, progress=progress, **files, **options)
    return {
        "image": str(job.source),
        "size": list(result.size),
        "seconds": round(time.perf_counter() - started, 3),
        "passes": result.passes,
        "disk_bytes": result.disk_bytes,
        "classes": [{"name": name, "share": round(share, 6)} for name, share in result.shares],
        "files": [str(file) for file in job.files],
    }


@contextmanager
def exact_mask(predictor: Predictor, job: Job) -> Iterator[NDArray[Any]]:
    """The exact mask of an image, ``(H, W)``, in a file that is removed at the end of the context."""
    import numpy as np

    from ..files import ensure_folder
    from ..prediction.streamed import stream

    folder = ensure_folder(job.target.parent)
    with tempfile.TemporaryDirectory(prefix=".check-tiles-", dir=folder) as name, percent_bar("exact") as progress:
        path = Path(name) / "mask.npy"
        stream(predictor, job.source, path, progress=progress)
        yield np.load(path, mmap_mode="r")


def print_report(report: dict[str, Any]) -> None:
    """Print a report of :func:`stream_file` as text."""
    height, width = report["size"]
    say(f"{report['image']}  {width}x{height}")
    if report["classes"]:
        print_table(("class", "pixels"), [(each["name"], f"{each['share']:7.2%}") for each in report["classes"]])
    disk = report["disk_bytes"] / 1e6
    say(f"{report['seconds']:.2f} s in {report['passes']} passes, with {disk:.0f} MB of maps on disk")
    for file in report["files"]:
        say(file)
