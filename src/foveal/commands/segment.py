"""The verb ``segment``."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import assets
from ..errors import ConfigError, InputError
from .console import (
    ANY_ENGINE,
    NO_TILES,
    ONE_VIEW,
    BatchSize,
    Engines,
    Images,
    Json,
    Tiling,
    Views,
    open_model,
    print_json,
    print_table,
    say,
)
from .exact import Exact, Keep, Level, check_options, exact_mask, open_exact, run_exact
from .outputs import FOLDER, OVERLAY, Job, Plan, Request, print_failed, require_images, run_stream
from .tables import NO_AREAS, AreaOptions, Csv, MaskTable, check_table, open_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..prediction.predictor import Predictor
    from ..prediction.results import SegmentResult

_MOST_CLASSES = 256  # of a PNG with a palette
_ROWS = 512  # of two masks that are compared at once


def segment(
    images: Images,
    /,
    *,
    model: str = assets.DEFAULTS["segment"],
    out: Path = FOLDER,
    overlay: bool | None = None,
    legend: Annotated[bool, Parameter(negative="")] = False,
    distinct: Annotated[bool, Parameter(negative="")] = False,
    label: Path | None = None,
    tiles: Tiling = NO_TILES,
    exact: Exact = False,
    keep: Keep = None,
    level: Level = None,
    polygons: Path | None = None,
    check_tiles: Annotated[bool, Parameter(negative="")] = False,
    resume: bool = False,
    batch_size: BatchSize = None,
    csv: Csv = None,
    areas: Annotated[AreaOptions, Parameter(name="*")] = NO_AREAS,
    views: Annotated[Views, Parameter(name="*")] = ONE_VIEW,
    engine: Engines = ANY_ENGINE,
    json: Json = False,
) -> int:
    """Segment images. For a single image a table of its classes is printed; for a folder, each image gets a mask.

    Parameters
    ----------
    model
        Bundled name, checkpoint, exported file or training run.
    out
        Folder for masks (PNG of class indices with a palette) and overlays, or the PNG file of a single image's mask.
        With --exact, masks are TIFF (tiled, with overviews) unless the name ends in .png, .npy or .zarr.
    overlay
        Also write the image with the colours of the classes over it; default: for a single image.
    legend
        Draw contours into the overlay, and a legend with the names of the classes below it.
    distinct
        Draw the overlay in clearly different colours, in place of the model's palette.
    label
        Mask of class indices to compare a single image's mask with; pixels of 255 are ignored
        (65535 with more than 255 classes).
    polygons
        Also write the areas of a single image's mask as polygons, a .geojson or .gpkg file, with its georeference.
    check_tiles
        Also compute the exact result of a single image, as --exact does, and print on how many pixels --tile agrees.
    resume
        Skip images whose mask, and overlay if one is asked for, exist.
    """
    request = Request(images, out, overlay, tiles, resume, json, batch_size, polygons, csv)
    drawing, asked = {"contours": legend, "legend": legend, "distinct": distinct}, views.options()
    require_images(images)
    if areas.coco is None and areas != NO_AREAS:
        raise ConfigError("--encoding and --min-area go with --coco")
    if exact:
        unusable = {
            "overlay": overlay,
            "legend": legend,
            "label": label,
            "overlap": tiles.overlap,
            "batch_size": batch_size,
        }
        unusable |= {"csv": csv, "coco": areas.coco, "distinct": distinct, **asked}
        engine = check_options(engine, **unusable, check_tiles=check_tiles)
        return run_exact(model, engine, "segment", request, keep, level)
    for name, value in (("keep", keep), ("level", level)):
        if value is not None:
            raise ConfigError(f"--{name} {value} goes with --exact")
    if check_tiles and (tiles.tile is None or request.many):
        raise ConfigError("--check-tiles is for a single image and goes with --tile")
    if resume and (label is not None or check_tiles):
        raise ConfigError("--label and --check-tiles compare what is computed: leave out --resume")
    if label is not None and not label.exists():
        raise InputError(f"{label}: no such file")
    exact_engine = check_options(engine, "--check-tiles") if check_tiles else None
    predictor = open_model(model, engine, "segment")
    if (legend or distinct) and overlay is False:
        raise ConfigError(f"--{'legend' if legend else 'distinct'} goes with --overlay: leave out --no-overlay")
    if legend or distinct:
        request = dataclasses.replace(request, overlay=True)
    checker = None if exact_engine is None else open_exact(model, exact_engine, "segment")
    return run(predictor, request, label, Extras(drawing, asked, areas), checker)


@dataclass(frozen=True)
class Extras:
    """What is asked of a segmentation besides the mask.

    Attributes:
        drawing: options of the overlay, see :meth:`~foveal.prediction.results.SegmentResult.overlay`.
        views: options of :meth:`foveal.Predictor.segment`.
        areas: the COCO file.
    """

    drawing: dict[str, bool] = dataclasses.field(default_factory=dict)
    views: dict[str, Any] = dataclasses.field(default_factory=dict)
    areas: AreaOptions = NO_AREAS


PLAIN = Extras()


def run(
    predictor: Predictor,
    request: Request,
    label: Path | None = None,
    extras: Extras = PLAIN,
    checker: Predictor | None = None,
) -> int:
    """Segment the requested images; the exit code is 1 if some of many failed.

    Args:
        predictor: the model.
        request: images and options.
        label: mask to compare a single image's mask with.
        extras: what else is asked for.
        checker: the model for the exact result, if the tiles of a single image are to be compared with it.
    """
    from ..images.colours import palette_of
    from ..images.polygons import check_polygons

    many = request.many
    tiles = {**request.tiles.options(), **extras.views}
    if label is not None and many:
        raise ConfigError("--label is for a single image: give one, or leave out --label")
    if request.polygons is not None:
        check_polygons(request.polygons)
    check_table(request.csv, ".csv", "--csv", request)
    check_table(extras.areas.coco, ".json", "--coco", request)
    predictor.check_tiles(**request.tiles.options())
    if predictor.info.num_classes > _MOST_CLASSES:
        raise ConfigError(
            f"{predictor.info.ref} has {predictor.info.num_classes} classes, and the PNG files of masks hold "
            f"{_MOST_CLASSES}: foveal batch --result rle writes masks of any number"
        )
    overlay = not many if request.overlay is None else request.overlay
    palette = palette_of(predictor.info.labels, predictor.info.num_classes)
    plan = request.plan(picture=OVERLAY if overlay else "", also_read=[label] if label else [], palette=palette)
    with open_table(predictor.names, extras.areas) as table:
        if many or not plan.jobs:
            code = _run_many(predictor, request, plan, tiles, extras, table)
        else:
            report, code = segment_file(predictor, plan.jobs[0], extras.drawing, label, tiles, checker, table), 0
            if request.as_json:
                print_json(report)
            else:
                print_report(report)
        if request.csv is not None:
            table.write(request.csv, [*plan.finished, *plan.jobs])
    return code


def segment_file(
    predictor: Predictor,
    job: Job,
    drawing: dict[str, bool],
    label: Path | None = None,
    tiles: dict[str, Any] | None = None,
    checker: Predictor | None = None,
    table: MaskTable | None = None,
) -> dict[str, Any]:
    """Segment one image, write mask and overlay, and return the report that ``--json`` prints."""
    from ..measuring import machine

    started = time.perf_counter()
    result = _segment(predictor, job.source, tiles or {})
    mask = result.mask
    seconds = time.perf_counter() - started
    _write(result, job, drawing)
    if table is not None:
        table.add(job, mask)
    height, width = mask.shape
    report: dict[str, Any] = {
        "image": str(job.source),
        "size": [height, width],
        "model": predictor.info.ref,
        "runtime": predictor.runtime,
        "seconds": round(seconds, 4),
        "machine": machine.describe(),
        "classes": [
            {"name": name, "share": round(share, 6), "confidence": round(confidence, 6)}
            for name, share, confidence in result.shares()
        ],
        "files": [str(path) for path in job.files],
    }
    if label is not None:
        report["agreement"] = round(_agreement(result, label), 6)
    if checker is not None:
        with exact_mask(checker, job) as exact:
            report["tiles_agreement"] = round(_tiles_agreement(mask, exact), 6)
    return report


def _segment(predictor: Predictor, source: Path, tiles: dict[str, Any]) -> SegmentResult:
    """Segment one image; of several tiles or copies, the progress is shown."""
    from ..progress import Progress

    if not any(value is not None for value in tiles.values()):
        return predictor.segment(source)
    with Progress().bar("segment", 1) as bar:
        return predictor.segment(source, **tiles, progress=bar.part)


def print_report(report: dict[str, Any]) -> None:
    """Print a report of :func:`segment_file` as text."""
    from ..measuring import machine

    height, width = report["size"]
    say(f"{report['image']}  {width}x{height}  {report['model']}, {report['runtime']}")
    say()
    rows = [(c["name"], f"{c['share']:7.2%}", f"{c['confidence']:.2f}") for c in report["classes"]]
    print_table(("class", "pixels", "mean confidence"), rows)
    if "agreement" in report:
        say()
        say(f"agrees with the label on {report['agreement']:.1%} of its pixels")
    if "tiles_agreement" in report:
        say()
        say(f"tiles agree with the exact result on {report['tiles_agreement']:.2%} of the pixels")
    say()
    say(f"{report['seconds']:.2f} s for reading, network and mask on {machine.one_line()}")
    for file in report["files"]:
        say(file)


def _run_many(
    predictor: Predictor, request: Request, plan: Plan, tiles: dict[str, Any], extras: Extras, table: MaskTable
) -> int:
    def write(result: SegmentResult, job: Job) -> None:
        _write(result, job, extras.drawing)
        if tabled:
            table.add(job, result.mask)

    started = time.perf_counter()
    tabled = request.as_json or request.csv is not None or table.coco is not None
    if tabled:
        table.add_written(plan.finished)
    done, failed = run_stream("segment", plan, predictor, {**tiles, "batch_size": request.batch_size}, write)
    seconds = time.perf_counter() - started
    if request.as_json:
        counts = {"done": done, "done_before": plan.before, "failed": failed}
        images = list(table.rows.values())
        print_json({**counts, "out": str(request.out), "seconds": round(seconds, 3), "images": images})
        return 1 if failed else 0
    say(f"{plan.tally(done)} in {seconds:.1f} s, masks in {request.out}")
    for file in (request.csv, extras.areas.coco):
        if file is not None:
            say(file)
    return print_failed(failed)


def _write(result: SegmentResult, job: Job, drawing: dict[str, bool]) -> None:
    from ..images.polygons import read_georeference, write_polygons
    from ..images.writing import save_picture

    if job.polygons is not None:
        write_polygons(job.polygons, [result.mask], result.names, georeference=read_georeference(job.source))
    if job.picture is not None:
        save_picture(result.overlay(**drawing), job.picture)
    result.save(job.target)  # last: other programs take an image with a mask for a complete result


def _agreement(result: SegmentResult, label: Path) -> float:
    """Share of the labelled pixels whose class is that of the label."""
    from ..images.reading import read_mask
    from ..info import ignore_id

    expected, classes = read_mask(label), len(result.names)
    ignored = ignore_id(classes)
    if expected.shape != result.mask.shape:
        raise InputError(f"{label}: size {expected.shape} (H, W) is not the image's {result.mask.shape}")
    labelled = expected != ignored
    if not labelled.any():
        raise InputError(f"{label}: every pixel is {ignored}, which is ignored: there is nothing to compare with")
    if (wrong := labelled & (expected >= classes)).any():
        value = int(expected[wrong][0])
        raise InputError(
            f"{label}: {int(wrong.sum())} pixels have no class of the model, the first of them {value}: its classes "
            f"are 0 to {classes - 1}, and {ignored} is ignored"
        )
    return float((result.mask[labelled] == expected[labelled]).mean())


def _tiles_agreement(mask: NDArray[Any], exact: NDArray[Any]) -> float:
    """Share of the pixels with data that have the class of the exact result; 1 if none has data."""
    from ..info import IGNORE

    same = counted = 0
    for top in range(0, len(mask), _ROWS):
        expected = exact[top : top + _ROWS]
        valid = expected != IGNORE
        same += int((mask[top : top + _ROWS] == expected)[valid].sum())
        counted += int(valid.sum())
    return same / counted if counted else 1.0
