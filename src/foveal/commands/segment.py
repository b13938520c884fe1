"""Verbs that predict: ``segment``, ``classify``, ``predict``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import assets
from ..errors import ConfigError, InputError
from .console import Images, Json, Overlap, Tile, print_json, print_table
from .outputs import jobs_of

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
    label: Path | None = None,
    tile: Tile = None,
    overlap: Overlap = None,
    resume: bool = False,
    json: Json = False,
) -> int:
    """Segment photographs. A single image also prints its classes; a folder gives one mask per image.

    Parameters
    ----------
    model
        Bundled name, checkpoint, exported file or training run.
    out
        Folder for masks (PNG of class indices with a palette) and overlays, or the PNG of a single image's mask.
    overlay
        Write the image with the classes' colours over it too; default: for a single image.
    label
        Index mask to compare a single image's result with (255 is left out).
    resume
        Leave out images whose mask exists.
    """
    from ..prediction.load import load

    predictor = load(model)
    if predictor.info.task != "segment":
        raise ConfigError(f"{model} is for {predictor.info.task!r}; use foveal {predictor.info.task}")
    return _predict(predictor, images, out, overlay, label, tile, overlap, resume, json)


def _predict(
    predictor: Predictor,
    images: list[Path],
    out: Path,
    overlay: bool | None,
    label: Path | None,
    tile: int | None,
    overlap: int | None,
    resume: bool,
    as_json: bool,
) -> int:
    jobs, many = jobs_of(images, out)
    if label is not None and many:
        raise ConfigError("--label compares a single image")
    if tile is not None:
        predictor.check_tiles(tile, overlap)
    elif overlap is not None:
        raise ConfigError(f"--overlap {overlap} goes with --tile")
    overlays = not many if overlay is None else overlay
    if not many:
        report = segmented(predictor, *jobs[0], overlays, label, tile, overlap)
        if as_json:
            print_json(report)
        else:
            say_segmented(report)
        return 0
    if resume:
        jobs = [(source, target) for source, target in jobs if not target.exists()]
    return _segment_many(predictor, jobs, overlays, tile, overlap, out, as_json)


def segmented(
    predictor: Predictor,
    source: Path,
    target: Path,
    overlay: bool,
    label: Path | None = None,
    tile: int | None = None,
    overlap: int | None = None,
) -> dict[str, Any]:
    """Segment one image, write what is to be written, and tell what was found."""
    from ..measuring import machine

    started = time.perf_counter()
    result = predictor.segment(source, tile=tile, overlap=overlap)
    mask = result.mask
    seconds = time.perf_counter() - started
    written = _write(result, target, overlay)
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
        "files": [str(path) for path in written],
    }
    if label is not None:
        report["agreement"] = round(_agreement(result, label), 6)
    return report


def say_segmented(report: dict[str, Any]) -> None:
    """Print what :func:`segmented` tells."""
    from ..measuring import machine

    height, width = report["size"]
    print(f"{report['image']}  {width}x{height}  {report['model']}, {report['runtime']}\n")
    rows = [(c["name"], f"{c['share']:7.2%}", f"{c['confidence']:.2f}") for c in report["classes"]]
    print_table(("class", "pixels", "mean confidence"), rows)
    if "agreement" in report:
        print(f"\nagrees with the hand-made label on {report['agreement']:.1%} of its pixels")
    print(f"\n{report['seconds']:.2f} s for reading, network and mask on {machine.one_line()}")
    print(*report["files"], sep="\n")


def _segment_many(
    predictor: Predictor,
    jobs: list[tuple[Path, Path]],
    overlay: bool,
    tile: int | None,
    overlap: int | None,
    out: Path,
    as_json: bool,
) -> int:
    from ..progress import Progress

    progress = Progress()
    failed: list[dict[str, str]] = []
    started = time.perf_counter()
    with progress.bar("segment", len(jobs)) as bar:
        for source, target in jobs:
            try:
                _write(predictor.segment(source, tile=tile, overlap=overlap), target, overlay)
            except InputError as error:
                failed.append({"image": str(source), "error": str(error)})
                progress.note(str(error))
            bar.advance()
    seconds = time.perf_counter() - started
    done = len(jobs) - len(failed)
    if as_json:
        print_json({"done": done, "failed": failed, "out": str(out), "seconds": round(seconds, 3)})
    else:
        print(f"{done} of {len(jobs)} images in {seconds:.1f} s, masks in {out}")
        for failure in failed:
            print(f"failed: {failure['error']}")
    return 1 if failed else 0


def _write(result: SegmentResult, target: Path, overlay: bool) -> list[Path]:
    from ..images.writing import save_picture

    written = [result.save(target)]
    if overlay:
        written.append(target.with_name(f"{target.stem}.overlay.jpg"))
        save_picture(result.overlay(), written[-1])
    return written


def _agreement(result: SegmentResult, label: Path) -> float:
    from ..images.reading import read_mask
    from ..info import IGNORE

    expected = read_mask(label)
    if expected.shape != result.mask.shape:
        raise InputError(f"{label}: size {expected.shape} (H, W) is not the image's {result.mask.shape}")
    labelled = expected != IGNORE
    return float((result.mask[labelled] == expected[labelled]).mean())
