"""The verb ``prompt``: cut out what is pointed at, or everything."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import assets
from ..errors import ConfigError, InputError
from .console import Json, print_json, print_table
from .outputs import jobs_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..prediction.mask_results import EverythingResult
    from ..prediction.predictor import Predictor

_FOLDER = Path("foveal-out")
_RUNS: dict[str, Any] = {"output_mode": "uncompressed_rle"}  # masks would take memory, and the file needs no library
_SHOWN = 10  # masks of everything in the table
_EXAMPLE = ("420", "310", "560", "480")


def prompt(
    image: Path,
    /,
    *,
    point: Annotated[list[str] | None, Parameter(negative="", allow_leading_hyphen=True)] = None,
    background: Annotated[list[str] | None, Parameter(negative="", allow_leading_hyphen=True)] = None,
    box: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    single: Annotated[bool, Parameter(negative="")] = False,
    everything: Annotated[bool, Parameter(negative="")] = False,
    fast: Annotated[bool, Parameter(negative="")] = False,
    points_per_side: int | None = None,
    pred_iou_thresh: float | None = None,
    stability_score_thresh: float | None = None,
    model: str = assets.DEFAULTS["prompt"],
    out: Path | None = None,
    overlay: Path | None = None,
    json: Json = False,
) -> int:
    """Cut out what is pointed at: points and box are one prompt for one object. Or find everything.

    Parameters
    ----------
    image
        The photograph.
    point
        x,y in pixels of a point on the object; give the option again for more points.
    background
        x,y of a point that is not on it; --point x,y:0 says the same.
    box
        x1,y1,x2,y2 in pixels: left, top, right, bottom.
    single
        Ask for one mask; default: for three, of which the surest is written. For several points, or a box.
    everything
        Find all objects: COCO's JSON and an overlay.
    fast
        With --everything: a coarse grid first, finer points only where nothing was found.
    points_per_side
        Of the grid of prompts, with --everything; default: 32.
    pred_iou_thresh
        With --everything: masks that promise no more than this are dropped; default: what the weights say, or 0.88.
    stability_score_thresh
        With --everything: masks that change more than this with the threshold of their logits are dropped; default:
        what the weights say, or 0.95.
    model
        Name, checkpoint or training run of a promptable model; default: ours, in the package.
    out
        PNG of the mask, 255 inside; with --everything the JSON. Default: in foveal-out.
    overlay
        Write the image with the masks over it, their outlines and scores, too.
    """
    from ..images.reading import read_image
    from ..prediction.everything import EverythingOptions
    from ..prediction.load import load

    points = [_point("--point", text, 1) for text in point or ()]
    points += [_point("--background", text, 0) for text in background or ()]
    corners = None if box is None else _numbers("--box", box, "x1,y1,x2,y2")
    if everything and (points or corners or single):
        raise ConfigError("--everything needs no prompt: leave out --point, --background, --box and --single")
    options: dict[str, Any] = {
        "fast": fast or None,
        "points_per_side": points_per_side,
        "pred_iou_thresh": pred_iou_thresh,
        "stability_score_thresh": stability_score_thresh,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if options and not everything:
        raise ConfigError(f"--{next(iter(options)).replace('_', '-')} goes with --everything")
    if not everything and not points and corners is None:
        raise ConfigError("no prompt: give --point x,y, --box x1,y1,x2,y2, or --everything")
    EverythingOptions.of(options)
    suffix = ".json" if everything else ".png"
    if out is None:
        out = _FOLDER / f"{image.resolve().stem}{suffix}"
    if everything and overlay is None:
        overlay = _overlay_beside(out)
    _check_files(image, out, suffix, overlay)
    pixels = read_image(image)  # a mistake here should not wait for a download
    predictor = load(model)
    if predictor.info.task != "prompt":
        raise ConfigError(f"{model} is for {predictor.info.task!r}; use foveal {predictor.info.task}")
    if everything:
        return _everything(predictor, image, pixels, out, overlay, options | _RUNS, json)
    return _prompt(predictor, image, pixels, points, corners, single, out, overlay, json)


def run(
    predictor: Predictor,
    images: list[Path],
    out: Path,
    overlay: bool | None = None,
    resume: bool = False,
    as_json: bool = False,
) -> int:
    """Find everything in images, with a predictor at hand; the exit code is 1 where some of several images failed."""
    from ..images.reading import read_image
    from ..progress import Progress

    jobs, many = jobs_of(images, out, ".json")
    if not many:
        source, target = jobs[0]
        beside = None if overlay is False else _overlay_beside(target)
        _check_files(source, target, ".json", beside)
        return _everything(predictor, source, read_image(source), target, beside, _RUNS, as_json)
    if resume:
        jobs = [(source, target) for source, target in jobs if not target.exists()]
    progress = Progress()
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    with progress.bar("everything", len(jobs)) as bar:
        for source, target in jobs:
            try:
                found = predictor.everything(source, **_RUNS)
                files = _write(found, source, target, None if overlay is False else _overlay_beside(target))
                done.append({"image": str(source), "masks": len(found), "files": [str(file) for file in files]})
            except InputError as error:
                failed.append({"image": str(source), "error": str(error)})
                progress.note(str(error))
            bar.advance()
    if as_json:
        print_json({"images": done, "failed": failed, "out": str(out)})
        return 1 if failed else 0
    print(f"{len(done)} of {len(jobs)} images, masks in {out}")
    for failure in failed:
        print(f"failed: {failure['error']}")
    return 1 if failed else 0


def _everything(
    predictor: Predictor,
    image: Path,
    pixels: NDArray[np.uint8],
    out: Path,
    overlay: Path | None,
    options: dict[str, Any],
    as_json: bool,
) -> int:
    from ..prediction.everything import EverythingOptions
    from ..progress import Progress

    started = time.perf_counter()
    with Progress().bar("everything", EverythingOptions.of(options).points) as bar:

        def advance(points: int) -> None:
            for _ in range(points):
                bar.advance()

        found = predictor.everything(pixels, progress=advance, **options)
    seconds = {"everything": time.perf_counter() - started}
    files = _write(found, image, out, overlay)
    report = _report(predictor, image, found.size, seconds, files)
    if as_json:
        masks = [{key: value for key, value in record.items() if key != "segmentation"} for record in found]
        print_json({**report, "prompts": found.prompts, "masks": masks})
        return 0
    rows = []
    for number, record in enumerate(found[:_SHOWN], 1):
        x, y, width, height = record["bbox"]
        corners = [x, y, x + width + 1, y + height + 1]
        rows.append((str(number), record["predicted_iou"], record["area"], corners))
    _print_table(image, report, rows)
    more = f", the {_SHOWN} surest above" if len(found) > _SHOWN else ""
    if not rows:
        thresholds = EverythingOptions.of(options).thresholds(predictor.info.mask_thresholds)
        print(
            "no mask promises more than {} and is as stable as {}: give lower --pred-iou-thresh and "
            "--stability-score-thresh".format(*thresholds)
        )
    print(f"\n{len(found)} masks{more}; {found.prompts} prompts in {seconds['everything']:.1f} s on ", end="")
    _print_end(files)
    return 0


def _overlay_beside(out: Path) -> Path:
    return out.with_name(f"{out.stem}.overlay.jpg")


def _write(found: EverythingResult, image: Path, out: Path, overlay: Path | None) -> list[Path]:
    from ..images.writing import save_picture

    found.save(out, image.name)
    if overlay is None:
        return [out]
    save_picture(found.overlay(), overlay)
    return [out, overlay]


def _prompt(
    predictor: Predictor,
    image: Path,
    pixels: NDArray[np.uint8],
    points: list[tuple[float, float, int]],
    box: list[float] | None,
    single: bool,
    out: Path,
    overlay: Path | None,
    as_json: bool,
) -> int:
    from ..images import regions
    from ..images.writing import save_picture

    started = time.perf_counter()
    embedding = predictor.encode(pixels)
    encoded = time.perf_counter()
    found = embedding.prompt(
        [point[:2] for point in points] or None, [point[2] for point in points] or None, box, multimask=not single
    )
    masks, best = found.masks, int(found.iou.argmax())
    seconds = {"encoder": encoded - started, "prompt": time.perf_counter() - encoded}
    files = [found.save(out)]
    if overlay is not None:
        save_picture(found.overlay(), overlay)
        files.append(overlay)
    rows: list[dict[str, Any]] = []
    for mask, iou in zip(masks, found.iou, strict=True):
        x1, y1, x2, y2 = regions.boxes_of(mask[None])[0].tolist() if mask.any() else (0, 0, -1, -1)
        rows.append(
            {
                "predicted_iou": round(float(iou), 6),
                "area": int(mask.sum()),
                "box": [x1, y1, x2 + 1, y2 + 1],
                "written": len(rows) == best,
            }
        )
    report = _report(predictor, image, found.size, seconds, files)
    if as_json:
        print_json({**report, "masks": rows})
        return 0
    table = [
        (f"{number}{' (written)' * row['written']}", row["predicted_iou"], row["area"], row["box"])
        for number, row in enumerate(rows, 1)
    ]
    _print_table(image, report, table)
    print(f"\nencoder {seconds['encoder']:.2f} s, prompt {seconds['prompt']:.2f} s on ", end="")
    _print_end(files)
    return 0


def _report(
    predictor: Predictor, image: Path, size: tuple[int, int], seconds: dict[str, float], files: list[Path]
) -> dict[str, Any]:
    from ..measuring import machine

    return {
        "image": str(image),
        "size": list(size),
        "model": predictor.info.ref,
        "runtime": predictor.runtime,
        "machine": machine.describe(),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "files": [str(file) for file in files],
    }


def _print_table(image: Path, report: dict[str, Any], rows: list[tuple[str, float, int, list[int]]]) -> None:
    height, width = report["size"]
    print(f"{image}  {width}x{height}  {report['model']}, {report['runtime']}\n")
    texts = [(name, f"{iou:.3f}", str(area), ",".join(map(str, box))) for name, iou, area, box in rows]
    print_table(("mask", "predicted IoU", "area", "box"), texts)


def _print_end(files: list[Path]) -> None:
    from ..measuring import machine

    print(machine.one_line())
    for file in files:
        print(file)


def _check_files(image: Path, out: Path, suffix: str, overlay: Path | None) -> None:
    """Before work begins: results have the right suffix, overwrite no image nor each other, and can be written."""
    from ..files import ensure_folder
    from ..images.writing import check_picture_name

    if out.suffix.lower() != suffix:
        raise ConfigError(f"--out {out}: the result is a {suffix} file")
    files = [out] if overlay is None else [out, overlay]
    if overlay is not None:
        check_picture_name(overlay)
    if image.resolve() in (file.resolve() for file in files):
        raise ConfigError(f"a result would overwrite the image {image}: choose another name")
    if overlay is not None and overlay.resolve() == out.resolve():
        raise ConfigError(f"--out and --overlay are both {out}: choose another name")
    for file in files:
        ensure_folder(file.parent)


def _point(option: str, text: str, label: int) -> tuple[float, float, int]:
    place, colon, told = text.partition(":") if label else (text, "", "")
    if colon and told not in ("0", "1"):
        raise InputError(f"{option} {text}: write x,y:0 for a point on the background, x,y:1 for one on the object")
    x, y = _numbers(option, place, "x,y")
    return x, y, int(told) if colon else label


def _numbers(option: str, text: str, form: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    count = form.count(",") + 1
    if len(found) != count:
        example = ",".join(_EXAMPLE[:count])
        raise InputError(f"{option} {text}: write {form} in pixels, such as {option} {example}")
    return found
