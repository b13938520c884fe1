"""The verb ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ..files import check_overwrites
from .console import (
    ANY_ENGINE,
    NO_TILES,
    ONE_VIEW,
    Engines,
    Json,
    Size,
    Tiling,
    Views,
    parse_size,
    print_json,
    print_table,
    say,
)

if TYPE_CHECKING:
    from ..evaluation.report import Report


def evaluate(
    ref: str,
    data: Path,
    /,
    *,
    split: str | None = None,
    size: Size = None,
    class_map: Path | None = None,
    protocol: Literal["plain", "cityscapes", "ade20k"] = "plain",
    boundary: Annotated[bool, Parameter(negative="")] = False,
    prompts: str = "all",
    tiles: Tiling = NO_TILES,
    views: Annotated[Views, Parameter(name="*")] = ONE_VIEW,
    engine: Engines = ANY_ENGINE,
    out: Path | None = None,
    json: Json = False,
) -> int:
    """Score a model on a data set: segmentation, classification, super-resolution, regression or promptable models.

    Images that cannot be scored are listed, and the exit code is then 1.

    Parameters
    ----------
    ref
        Name of bundled weights, checkpoint, exported file or training run.
    data
        Folder of the data set, or a pattern of tar files.
    split
        Split to score. Default: the split of the protocol, or else test, else val, else all; for super-resolution:
        every set that the model was not trained on.
    class_map
        Segmentation: YAML file "model class: data class", for a model with other classes than the data.
    protocol
        Segmentation: input size and interpolation of the figures published for a data set; plain: the model's own.
    boundary
        Segmentation: score contours, too, by boundary F-score and boundary IoU.
    prompts
        Promptable models: prompt with the "boxes" of the objects, with "clicks" on them, or with "all"; or with the
        boxes of a detector, a .json file in COCO's result format, for COCO's average precision of the masks.
    out
        Folder for report.json, per_image.csv (promptable models: per_object.csv, or masks.json) and, for segmentation,
        samples.png with the best, the median and the worst image.
    """
    from .. import evaluate as evaluate_model
    from ..evaluation.report import REPORT
    from ..progress import Progress

    if out is not None and not (out / REPORT).exists():  # else these are the files of an earlier report
        check_overwrites([out / name for name in ("per_image.csv", "per_object.csv", "samples.png")], [data])
    report: Report = evaluate_model(
        ref,
        data,
        split=split,
        size=parse_size(size) if size else None,
        class_map=class_map,
        protocol=protocol,
        boundary=boundary,
        prompts=prompts,
        **tiles.options(),
        **views.options(),
        **engine.options(),
        out=out,
        progress=Progress(),
    )
    if json:
        print_json({"ref": ref, "data": str(data), **report.to_dict()})
    else:
        _print_report(report, out)
    return 1 if report.skipped else 0


def _print_report(report: Report, out: Path | None) -> None:
    table, summary = report.table(), report.summary()
    if table:
        print_table(*table)
        if summary:
            say()
    for line in summary:
        say(line)
    for image, reason in report.skipped.items():
        say(f"skipped {image}: {reason}")
    if out:
        say(f"{', '.join(report.files[:-1])} and {report.files[-1]} are in {out}")
