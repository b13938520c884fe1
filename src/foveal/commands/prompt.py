"""The verb ``prompt``: masks of the objects at points or in a box, or of all objects."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import Parameter

from .. import assets
from ..errors import ConfigError, InputError
from ..files import beside, check_overwrites, ensure_folder
from ..progress import Report
from .console import ANY_ENGINE, Engines, Json, open_model, print_json, print_table, say
from .outputs import FOLDER, OVERLAY, Job, Request, print_failed, run_jobs, without_case

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..prediction.mask_results import EverythingResult
    from ..prediction.predictor import Predictor

_RUNS: dict[str, Any] = {"output_mode": "uncompressed_rle"}  # needs little memory, and no library for the file
_SHOWN = 10  # number of masks of everything in the table
_TRANSPARENT = (".png", ".webp", ".tif")  # of pictures with an alpha channel
_EXAMPLE = ("420", "310", "560", "480")


def prompt(
    image: Path,
    /,
    *,
    point: Annotated[list[str] | None, Parameter(negative="", allow_leading_hyphen=True)] = None,
    background: Annotated[list[str] | None, Parameter(negative="", allow_leading_hyphen=True)] = None,
    box: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    single: Annotated[bool, Parameter(negative="")] = False,
    mask: int | None = None,
    everything: Annotated[bool, Parameter(negative="")] = False,
    fast: Annotated[bool, Parameter(negative="")] = False,
    points_per_side: int | None = None,
    pred_iou_thresh: float | None = None,
    stability_score_thresh: float | None = None,
    model: str = assets.DEFAULTS["prompt"],
    out: Path | None = None,
    overlay: Path | None = None,
    cutout: Path | None = None,
    whole: Annotated[bool, Parameter(negative="")] = False,
    engine: Engines = ANY_ENGINE,
    json: Json = False,
) -> int:
    """Cut out the object at points or in a box (all of them are one prompt for one object), or find all objects.

    Parameters
    ----------
    image
        The image file.
    point
        x,y in pixels of a point on the object; repeat the option for more points.
    background
        x,y of a point that is not on the object; the same as --point x,y:0.
    box
        x1,y1,x2,y2 in pixels: left, top, right, bottom.
    single
        Predict one mask, for an unambiguous prompt (several points, or a box); default: three masks, of which the one
        with the highest predicted IoU is written.
    mask
        Number of the mask to write, as in the first column of the printed table, which lists the largest mask first:
        usually the whole object. Default: the mask with the highest predicted IoU.
    everything
        Find all objects and write COCO's JSON and an overlay.
    fast
        With --everything: use a coarse grid of points first, finer points only where no mask was found.
    points_per_side
        With --everything: points along each side of the grid of prompts; default: 32.
    pred_iou_thresh
        With --everything: keep only masks with a higher predicted IoU, 0 to 1; default: the weights' own, or 0.88.
    stability_score_thresh
        With --everything: drop masks with a lower stability score, 0 to 1 (how little the mask changes with the
        threshold of its logits); default: the weights' own, or 0.95.
    model
        Name, checkpoint, exported file or training run of a promptable model; default: Foveal's, in the package.
    out
        PNG file of the mask, 255 inside; with --everything the JSON file. Default: a file in foveal-out.
    overlay
        Also write the image with the masks over it, their outlines and scores, to this file.
    cutout
        Also write the object alone, on a transparent background, to this .png, .webp or .tif file; with --everything,
        each object to a file of its own in this folder.
    whole
        With --cutout: keep the size of the image; default: the box of the object.
    """
    from ..images.reading import read_image
    from ..prediction.everything_options import EverythingOptions

    points = [_read_point("--point", text, 1) for text in point or ()]
    points += [_read_point("--background", text, 0) for text in background or ()]
    corners = None if box is None else _read_numbers("--box", box, "x1,y1,x2,y2")
    options: dict[str, Any] = {
        "fast": fast or None,
        "points_per_side": points_per_side,
        "pred_iou_thresh": pred_iou_thresh,
        "stability_score_thresh": stability_score_thresh,
    }
    options = {name: value for name, value in options.items() if value is not None}
    _check_combination(everything, bool(points or corners), single or mask is not None, options)
    last = 1 if single else 3
    if mask is not None and not 1 <= mask <= last:
        raise ConfigError(f"--mask {mask}: give a number of 1 to {last}")
    EverythingOptions.of(options)
    if whole and cutout is None:
        raise ConfigError("--whole goes with --cutout")
    if cutout is not None and not everything and cutout.suffix.lower() not in _TRANSPARENT:
        raise ConfigError(f"--cutout {cutout}: a transparent picture is a {', '.join(_TRANSPARENT)} file")
    job = _name_files(image, out, overlay, everything)
    cut = None if cutout is None else _check_cutout(cutout, job, everything, whole)
    pixels = read_image(image)  # before the model, which may have to be downloaded
    predictor = open_model(model, engine, "prompt")
    if everything:
        return _run_everything(predictor, job, pixels, options | _RUNS, json, cut)
    return _run_prompt(predictor, job, pixels, points, corners, single, mask, json, cut)


def run(predictor: Predictor, request: Request) -> int:
    """Find everything in the requested images; the exit code is 1 if some of many failed."""
    from ..images.reading import read_image
    from ..prediction.everything_options import EverythingOptions

    request.refuse_tiles(f"{predictor.info.ref} is promptable and encodes the whole image")
    request.refuse_batches("images of promptable models run")
    request.refuse_table("masks of objects have")
    plan = request.plan(".json", "" if request.overlay is False else OVERLAY)
    if plan.jobs and not request.many:
        job = plan.jobs[0]
        return _run_everything(predictor, job, read_image(job.source), _RUNS, request.as_json)

    def work(job: Job, progress: Report) -> dict[str, Any]:
        done = 0

        def count(points: int) -> None:
            nonlocal done
            done += points
            progress(done / EverythingOptions.of(_RUNS).points, "points")

        result = predictor.everything(job.source, progress=count, **_RUNS)
        _write(result, job)
        return {"image": str(job.source), "masks": len(result), "files": [str(file) for file in job.files]}

    done, failed = run_jobs("everything", plan, work, many=True)
    if request.as_json:
        print_json({"images": done, "done_before": plan.before, "failed": failed, "out": str(request.out)})
        return 1 if failed else 0
    say(f"{plan.tally(len(done))}, masks in {request.out}")
    return print_failed(failed)


def _check_combination(everything: bool, prompted: bool, single: bool, options: dict[str, Any]) -> None:
    if everything and (prompted or single):
        raise ConfigError("--everything needs no prompt: leave out --point, --background, --box, --single and --mask")
    if options and not everything:
        raise ConfigError(f"--{next(iter(options)).replace('_', '-')} goes with --everything")
    if not everything and not prompted:
        raise ConfigError("no prompt: give --point x,y, --box x1,y1,x2,y2, or --everything")


def _name_files(image: Path, out: Path | None, overlay: Path | None, everything: bool) -> Job:
    """Files of the result and of its overlay, checked before any work is done."""
    suffix = ".json" if everything else ".png"
    out = FOLDER / f"{image.stem}{suffix}" if out is None else out
    if everything and overlay is None:
        overlay = beside(out, OVERLAY)
    job = Job(image, out, overlay)
    _check_files(job, suffix)
    return job


def _run_everything(
    predictor: Predictor,
    job: Job,
    pixels: NDArray[np.uint8],
    options: dict[str, Any],
    as_json: bool,
    cut: Cutout | None = None,
) -> int:
    from ..prediction.everything_options import EverythingOptions
    from ..progress import Progress

    checked = EverythingOptions.of(options)
    started = time.perf_counter()
    with Progress().bar("everything", checked.points) as bar:

        def advance(points: int) -> None:
            bar.advance(count=points)

        result = predictor.everything(pixels, progress=advance, **options)
    seconds = {"everything": time.perf_counter() - started}
    _write(result, job)
    cutouts = [] if cut is None else save_cutouts(result, job, cut)
    report = _report(predictor, job, result.size, seconds)
    if as_json:
        report["files"] += map(str, cutouts)
        masks = [{key: value for key, value in record.items() if key != "segmentation"} for record in result]
        print_json({**report, "prompts": result.prompts, "masks": masks})
        return 0
    _print_masks(report, _everything_rows(result))
    if not result.records:
        iou, stability = checked.thresholds(predictor.info.mask_thresholds)
        say(
            f"no mask has a predicted IoU above {iou} and a stability score of {stability}: give lower "
            "--pred-iou-thresh and --stability-score-thresh"
        )
    more = f", the {_SHOWN} with the highest predicted IoU above" if len(result) > _SHOWN else ""
    _print_end(f"{len(result)} masks{more}; {result.prompts} prompts in {seconds['everything']:.1f} s", report)
    return 0


def _everything_rows(result: EverythingResult) -> list[tuple[str, float, int, list[int]]]:
    """Name, predicted IoU, area and box of the first masks."""
    rows = []
    for number, record in enumerate(result[:_SHOWN], 1):
        x, y, width, height = record["bbox"]
        corners = [x, y, x + width + 1, y + height + 1]
        rows.append((str(number), record["predicted_iou"], record["area"], corners))
    return rows


class Cutout(NamedTuple):
    """Where objects alone are written, and whether they are cut to their boxes."""

    path: Path
    crop: bool


def _check_cutout(path: Path, job: Job, everything: bool, whole: bool) -> Cutout:
    """Check where cut-outs go, before any work is done."""
    if everything:
        name = re.compile(rf"{re.escape(job.target.stem)}\.\d{{3,}}\.png", re.IGNORECASE)  # as save_cutouts writes
        for file in (job.source, *job.files):
            if file.resolve().parent == path.resolve() and name.fullmatch(file.name):
                raise ConfigError(f"--cutout {path}: the objects' files would overwrite {file}: choose another folder")
        ensure_folder(path)
        return Cutout(path, not whole)
    check_overwrites([path], [job.source], "image")
    if without_case(path.resolve()) in {without_case(file.resolve()) for file in job.files}:
        raise ConfigError(f"--cutout {path}: the mask or the overlay has this name: choose another one")
    ensure_folder(path.parent)
    return Cutout(path, not whole)


def save_cutouts(result: EverythingResult, job: Job, cut: Cutout) -> list[Path]:
    """Write each object to ``NAME.001.png`` and so on, in the order of the masks; return the paths."""
    from ..images.writing import save_picture

    paths: list[Path] = []
    for number, picture in enumerate(result.cutouts(crop=cut.crop), 1):
        paths.append(cut.path / f"{job.target.stem}.{number:03}.png")
        save_picture(picture, paths[-1])
    return paths


def _write(result: EverythingResult, job: Job) -> None:
    from ..images.writing import save_picture

    if job.picture is not None:
        save_picture(result.overlay(), job.picture)
    result.save(job.target, job.source.name)


def _run_prompt(
    predictor: Predictor,
    job: Job,
    pixels: NDArray[np.uint8],
    points: list[tuple[float, float, int]],
    box: list[float] | None,
    single: bool,
    mask: int | None,
    as_json: bool,
    cut: Cutout | None = None,
) -> int:
    from ..images.writing import save_picture

    started = time.perf_counter()
    embedding = predictor.encode(pixels)
    encoded = time.perf_counter()
    result = embedding.prompt(
        [point[:2] for point in points] or None, [point[2] for point in points] or None, box, multimask=not single
    )
    chosen = int(result.iou.argmax()) if mask is None else mask - 1
    written = replace(result, low_res=result.low_res[:, chosen, None], iou=result.iou[chosen, None])
    seconds = {"encoder": encoded - started, "prompt": time.perf_counter() - encoded}
    if job.picture is not None:
        save_picture(written.overlay(), job.picture)
    if cut is not None:
        save_picture(written.cutout(crop=cut.crop), cut.path)
    written.save(job.target)
    rows = _prompt_rows(result.masks, result.iou, chosen)
    report = _report(predictor, job, result.size, seconds)
    report["files"] += [str(cut.path)] if cut else []
    if as_json:
        print_json({**report, "masks": rows})
        return 0
    table = [
        (f"{index + 1}{' (written)' * row['written']}", row["predicted_iou"], row["area"], row["box"])
        for index in result.by_area
        for row in (rows[index],)
    ]
    _print_masks(report, table)
    _print_end(f"encoder {seconds['encoder']:.2f} s, prompt {seconds['prompt']:.2f} s", report)
    return 0


def _prompt_rows(masks: NDArray[np.bool_], scores: NDArray[np.floating], written: int) -> list[dict[str, Any]]:
    """What ``--json`` prints about each mask, in the order of the result; ``written``: index of the written one."""
    from ..images import regions

    rows: list[dict[str, Any]] = []
    for mask, iou in zip(masks, scores, strict=True):
        x1, y1, x2, y2 = regions.boxes_of(mask[None])[0].tolist() if mask.any() else (0, 0, -1, -1)
        rows.append(
            {
                "predicted_iou": round(float(iou), 6),
                "area": int(mask.sum()),
                "box": [x1, y1, x2 + 1, y2 + 1],
                "written": len(rows) == written,
            }
        )
    return rows


def _report(predictor: Predictor, job: Job, size: tuple[int, int], seconds: dict[str, float]) -> dict[str, Any]:
    from ..measuring import machine

    return {
        "image": str(job.source),
        "size": list(size),
        "model": predictor.info.ref,
        "runtime": predictor.runtime,
        "machine": machine.describe(),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "files": [str(file) for file in job.files],
    }


def _print_masks(report: dict[str, Any], rows: list[tuple[str, float, int, list[int]]]) -> None:
    height, width = report["size"]
    say(f"{report['image']}  {width}x{height}  {report['model']}, {report['runtime']}")
    say()
    texts = [(name, f"{iou:.3f}", str(area), ",".join(map(str, box))) for name, iou, area, box in rows]
    print_table(("mask", "predicted IoU", "area", "box"), texts)


def _print_end(text: str, report: dict[str, Any]) -> None:
    from ..measuring import machine

    say()
    say(f"{text} on {machine.one_line()}")
    for file in report["files"]:
        say(file)


def _check_files(job: Job, suffix: str) -> None:
    """Check that the results have the right suffix, overwrite neither the image nor each other, and can be written."""
    from ..images.writing import check_picture_name

    out, overlay = job.target, job.picture
    if out.suffix.lower() != suffix:
        raise ConfigError(f"--out {out}: the result is a {suffix} file")
    if overlay is not None:
        check_picture_name(overlay)
    check_overwrites(job.files, [job.source], "image")
    if overlay is not None and without_case(overlay.resolve()) == without_case(out.resolve()):
        raise ConfigError(f"--out and --overlay are both {out}: choose another name")
    for file in job.files:
        ensure_folder(file.parent)


def _read_point(option: str, text: str, label: int) -> tuple[float, float, int]:
    """x, y and label of a point; ``--point`` accepts a label behind a colon."""
    place, colon, suffix = text.partition(":") if label else (text, "", "")
    if colon and suffix not in ("0", "1"):
        raise InputError(f"{option} {text}: write x,y:0 for a point on the background, x,y:1 for one on the object")
    x, y = _read_numbers(option, place, "x,y")
    return x, y, int(suffix) if colon else label


def _read_numbers(option: str, text: str, form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    count = form.count(",") + 1
    if len(values) != count:
        example = ",".join(_EXAMPLE[:count])
        raise InputError(f"{option} {text}: write {form} in pixels, for example {option} {example}")
    return values
