"""The verb ``segment``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import assets
from ..errors import ConfigError, InputError
from .console import Device, DType, Images, Json, Overlap, Tile, open_model, print_json, print_table
from .outputs import Request, print_failed, run_jobs

if TYPE_CHECKING:
    from ..prediction.predictor import Predictor
    from ..prediction.results import SegmentResult


def segment(
    images: Images,
    /,
    *,
    model: str = assets.DEFAULTS["segment"],
    out: Path = Path("foveal-out"),
    overlay: bool | None = None,
    legend: Annotated[bool, Parameter(negative="")] = False,
    label: Path | None = None,
    tile: Tile = None,
    overlap: Overlap = None,
    resume: bool = False,
    device: Device = "auto",
    dtype: DType = "auto",
    json: Json = False,
) -> int:
    """Segment images. For a single image a table of its classes is printed; for a folder, each image gets a mask.

    Parameters
    ----------
    model
        Bundled name, checkpoint, exported file or training run.
    out
        Folder for masks (PNG of class indices with a palette) and overlays, or the PNG file of a single image's mask.
    overlay
        Also write the image with the colours of the classes over it; default: for a single image.
    legend
        Draw contours into the overlay, and a legend with the names of the classes below it.
    label
        Mask of class indices to compare a single image's mask with; pixels of 255 are ignored.
    resume
        Skip images whose mask exists.
    """
    predictor = open_model(model, device, dtype, "segment")
    if legend and overlay is False:
        raise ConfigError("--legend goes with --overlay: leave out --no-overlay")
    overlay = True if legend else overlay
    return run(predictor, Request(images, out, overlay, tile, overlap, resume, json), label, legend)


def run(predictor: Predictor, request: Request, label: Path | None = None, legend: bool = False) -> int:
    """Segment the requested images; the exit code is 1 if some of many failed."""
    jobs, many = request.jobs()
    tiles = {"tile": request.tile, "overlap": request.overlap}
    if label is not None and many:
        raise ConfigError("--label is for a single image: give one, or leave out --label")
    if request.tile is not None:
        predictor.check_tiles(request.tile, request.overlap)
    elif request.overlap is not None:
        raise ConfigError(f"--overlap {request.overlap} goes with --tile")
    overlay = not many if request.overlay is None else request.overlay
    if many:
        return _run_many(predictor, request, request.remaining(jobs), overlay, legend, tiles)
    report = segment_file(predictor, *jobs[0], overlay, legend, label, tiles)
    if request.as_json:
        print_json(report)
    else:
        print_report(report)
    return 0


def segment_file(
    predictor: Predictor,
    source: Path,
    target: Path,
    overlay: bool,
    legend: bool,
    label: Path | None = None,
    tiles: dict[str, int | None] | None = None,
) -> dict[str, Any]:
    """Segment one image, write mask and overlay, and return the report that ``--json`` prints."""
    from ..measuring import machine

    started = time.perf_counter()
    result = predictor.segment(source, **(tiles or {}))
    mask = result.mask
    seconds = time.perf_counter() - started
    files = _write(result, target, overlay, legend)
    height, width = mask.shape
    report: dict[str, Any] = {
        "image": str(source),
        "size": [height, width],
        "model": predictor.info.ref,
        "runtime": predictor.runtime,
        "seconds": round(seconds, 4),
        "machine": machine.describe(),
        "classes": [
            {"name": name, "share": round(share, 6), "confidence": round(confidence, 6)}
            for name, share, confidence in result.shares()
        ],
        "files": [str(path) for path in files],
    }
    if label is not None:
        report["agreement"] = round(_agreement(result, label), 6)
    return report


def print_report(report: dict[str, Any]) -> None:
    """Print a report of :func:`segment_file` as text."""
    from ..measuring import machine

    height, width = report["size"]
    print(f"{report['image']}  {width}x{height}  {report['model']}, {report['runtime']}\n")
    rows = [(c["name"], f"{c['share']:7.2%}", f"{c['confidence']:.2f}") for c in report["classes"]]
    print_table(("class", "pixels", "mean confidence"), rows)
    if "agreement" in report:
        print(f"\nagrees with the hand-made label on {report['agreement']:.1%} of its pixels")
    print(f"\n{report['seconds']:.2f} s for reading, network and mask on {machine.one_line()}")
    print(*report["files"], sep="\n")


def _run_many(
    predictor: Predictor,
    request: Request,
    jobs: list[tuple[Path, Path]],
    overlay: bool,
    legend: bool,
    tiles: dict[str, int | None],
) -> int:
    def work(source: Path, target: Path) -> None:
        _write(predictor.segment(source, **tiles), target, overlay, legend)

    started = time.perf_counter()
    done, failed = run_jobs("segment", jobs, work, many=True)
    seconds = time.perf_counter() - started
    if request.as_json:
        print_json({"done": len(done), "failed": failed, "out": str(request.out), "seconds": round(seconds, 3)})
        return 1 if failed else 0
    print(f"{len(done)} of {len(jobs)} images in {seconds:.1f} s, masks in {request.out}")
    return print_failed(failed)


def _write(result: SegmentResult, target: Path, overlay: bool, legend: bool) -> list[Path]:
    from ..images.writing import save_picture

    files = [result.save(target)]
    if overlay:
        files.append(target.with_name(f"{target.stem}.overlay.jpg"))
        save_picture(result.overlay(contours=legend, legend=legend), files[-1])
    return files


def _agreement(result: SegmentResult, label: Path) -> float:
    """Share of the labelled pixels whose class is that of the label."""
    from ..images.reading import read_mask
    from ..info import IGNORE

    expected = read_mask(label)
    if expected.shape != result.mask.shape:
        raise InputError(f"{label}: size {expected.shape} (H, W) is not the image's {result.mask.shape}")
    labelled = expected != IGNORE
    return float((result.mask[labelled] == expected[labelled]).mean())
