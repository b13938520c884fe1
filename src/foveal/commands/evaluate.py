"""Verbs that measure: ``evaluate``, ``compare``, ``bench``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from .console import Json, Size, parse_size, print_json, print_table

if TYPE_CHECKING:
    from ..evaluation.classify import ClassifyEvaluation
    from ..evaluation.prompt import PromptEvaluation
    from ..evaluation.upscale import UpscaleEvaluation


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
    prompts: Literal["all", "boxes", "clicks"] = "all",
    out: Path | None = None,
    json: Json = False,
) -> int:
    """Score a model on a labelled data set, one that upscales on large images, a promptable one on objects' masks.

    Images that cannot be scored are named, and the exit code is 1.

    Parameters
    ----------
    ref
        Bundled name, checkpoint, exported file or training run.
    data
        Folder of the data set.
    split
        Part of it; default: test, or val for a published protocol; classifiers and promptable models: test, else val,
        else all; upscaling: every set that was not trained on.
    class_map
        YAML file "model class: data class", for a model with other classes.
    protocol
        Sizes and interpolation of the figures published on a data set; plain: the model's own.
    boundary
        Score the contours too: boundary F-score and boundary IoU.
    prompts
        What a promptable model is asked with: the boxes of the objects, clicks on them, or both.
    out
        Folder for report.json, per_image.csv (prompting: per_object.csv) and, segmenting, samples.png (the best, median
        and worst image).
    """
    from .. import evaluate as evaluate_model
    from ..evaluation.classify import ClassifyEvaluation
    from ..evaluation.prompt import PromptEvaluation
    from ..evaluation.upscale import UpscaleEvaluation
    from ..progress import Progress

    found = evaluate_model(
        ref,
        data,
        split=split,
        size=parse_size(size) if size else None,
        class_map=class_map,
        protocol=protocol,
        boundary=boundary,
        prompts=prompts,
        out=out,
        progress=Progress(),
    )
    report = {"ref": ref, "data": str(data), **found.to_dict()}
    if json:
        print_json(report)
        return 1 if found.skipped else 0
    if isinstance(found, ClassifyEvaluation):
        return _print_classes(found)
    if isinstance(found, UpscaleEvaluation):
        return _print_upscaling(found)
    if isinstance(found, PromptEvaluation):
        return _print_prompting(found)
    columns = {"IoU": report["iou"], "accuracy": report["accuracy"]}
    if boundary:
        columns |= {"boundary F": report["boundary"]["f_score"], "boundary IoU": report["boundary"]["boundary_iou"]}
    print_table(
        ("class", *columns),
        [(name, *("-" if c[name] is None else f"{c[name]:.2%}" for c in columns.values())) for name in report["iou"]],
    )
    where = f"{found.images} images of {found.split}" + (f" at {size}" if size else "")
    where += f", protocol {protocol}" if protocol != "plain" else ""
    scores = found.scores
    print(f"\nmIoU {scores.miou:.2%}  pixel accuracy {scores.pixel_accuracy:.2%}  ", end="")
    print(f"mean accuracy {scores.mean_accuracy:.2%}  ({where})")
    if found.boundary:
        print(f"mean boundary F {found.boundary.mean_f_score:.2%}  mean boundary IoU {found.boundary.miou:.2%}")
    if scores.absent:
        print(f"absent from the data, left out of the means: {', '.join(scores.absent)}")
    for image, error in found.skipped.items():
        print(f"skipped {image}: {error}")
    if out:
        print(f"report.json, per_image.csv and samples.png are in {out}")
    return 1 if found.skipped else 0


def _print_classes(found: ClassifyEvaluation) -> int:
    print(f"top-1 {found.top1:.2%}  top-5 {found.top5:.2%}  ({found.images} images of {found.split})")
    for image, error in found.skipped.items():
        print(f"skipped {image}: {error}")
    return 1 if found.skipped else 0


def _print_upscaling(found: UpscaleEvaluation) -> int:
    rows = [
        (
            part.name,
            str(part.scores.images),
            f"x{found.scale}",
            f"{part.scores.psnr:.2f}",
            f"{part.scores.ssim:.4f}",
            part.small,
            f"{part.border} px",
        )
        for part in found.sets
    ]
    print_table(("set", "images", "scale", "PSNR (Y), dB", "SSIM (Y)", "small images", "border left out"), rows)
    for image, error in found.skipped.items():
        print(f"skipped {image}: {error}")
    return 1 if found.skipped else 0


def _print_prompting(found: PromptEvaluation) -> int:
    def percent(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.2%}"

    sizes: tuple[Literal["all", "small", "medium", "large"], ...] = ("all", "small", "medium", "large")
    print_table(
        ("prompt", "mIoU", "small", "medium", "large", "by image", "boundary IoU"),
        [
            (
                prompt,
                *(percent(found.miou(prompt, size)) for size in sizes),
                percent(found.miou_by_image(prompt)),
                percent(found.boundary_iou(prompt)),
            )
            for prompt in found.prompts
        ],
    )
    small, medium, large = (found.count(size) for size in sizes[1:])
    print(f"\n{found.images} images of {found.split}, {found.count()} objects ", end="")
    print(
        f"({small} small, {medium} medium, {large} large); encoding takes {found.encode_seconds * 1000:.0f} ms (median)"
    )
    if found.average_precision:
        print("masks from boxes: " + "  ".join(f"{k} {percent(v)}" for k, v in found.average_precision.items()))
    elif "box" in found.prompts:
        print("no average precision: it needs pycocotools (pip install 'foveal[coco]')")
    for image, error in found.skipped.items():
        print(f"skipped {image}: {error}")
    return 1 if found.skipped else 0
