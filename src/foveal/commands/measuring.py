"""Verbs that measure: ``evaluate``, ``compare``, ``bench``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..errors import ConfigError
from .console import Json, Size, parse_lengths, parse_size, print_json, print_table

if TYPE_CHECKING:
    from ..run.evaluate_classes import ClassifyEvaluation
    from ..run.evaluate_prompting import PromptEvaluation
    from ..run.evaluate_upscaling import UpscaleEvaluation


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
    from ..run.evaluate_classes import ClassifyEvaluation
    from ..run.evaluate_prompting import PromptEvaluation
    from ..run.evaluate_upscaling import UpscaleEvaluation
    from ..run.progress import Progress

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


def compare(a: Path, b: Path, /, *, resamples: int = 10_000, seed: int = 0, json: Json = False) -> int:
    """Tell which of two evaluated models is better, and how sure that is: a paired bootstrap over the images.

    Parameters
    ----------
    a
        Folder that foveal evaluate --out wrote.
    b
        The same for the other model, on the same images.
    resamples
        How often the images are drawn.
    seed
        Of the draws.
    """
    from .. import compare as compare_reports

    found = compare_reports(a, b, resamples=resamples, seed=seed)
    if json:
        print_json({"a": str(a), "b": str(b), **found.to_dict()})
        return 0
    print_table(("report", "mIoU"), [(str(a), f"{found.miou_a:.2%}"), (str(b), f"{found.miou_b:.2%}")])
    print(f"\ndifference {100 * found.difference:+.2f} points, 95 % interval ", end="")
    print(f"{100 * found.low:+.2f} to {100 * found.high:+.2f}, p = {found.p:.2g}  ", end="")
    print(f"({found.images} images, {found.resamples} resamples, seed {found.seed})")
    return 0


def bench(
    refs: list[str] | None = None,
    /,
    *,
    preset: str | None = None,
    size: str | None = None,
    batch: int | None = None,
    threads: int | None = None,
    rounds: int | None = None,
    runtime: Literal["auto", "onnxruntime", "torch"] | None = None,
    tokens: str | None = None,
    plot: Path | None = None,
    json: Json = False,
) -> int:
    """Measure models against each other: interleaved rounds, median of ratios, outputs compared first.

    Or make one of the textbook's comparisons on this machine: --preset architectures, attention or scaling.

    Parameters
    ----------
    refs
        Bundled names, checkpoints, exported files, architectures.
    preset
        architectures: classifiers, ResNet-50 of timm among them; attention: kinds of it against the number of tokens;
        scaling: EfficientNet B0 to B7.
    size
        Input as HEIGHTxWIDTH; default: 512x1024, of the architectures 224x224.
    batch
        Images per run; default: 1.
    threads
        Threads of the runtime; default: all cores.
    rounds
        Timed runs of each; default: 20, of attention 10, of scaling 3.
    runtime
        auto (the default), onnxruntime or torch.
    tokens
        Of attention: lengths, such as 256,1024,4096.
    plot
        PNG file for a preset's figure.
    """
    options: dict[str, Any] = {"batch": batch, "threads": threads, "rounds": rounds, "runtime": runtime}
    options |= {"size": parse_size(size) if size else None, "tokens": parse_lengths(tokens) if tokens else None}
    options = {key: value for key, value in options.items() if value is not None}
    if (preset is None) == (not refs):
        raise ConfigError("bench: give models, or --preset architectures, attention or scaling; not both")
    if preset is not None:
        return _bench_preset(preset, options, plot, json)
    if tokens or plot:
        raise ConfigError("bench: --tokens and --plot are for --preset")
    from .. import bench as run_bench

    report = run_bench(refs or [], **{"size": (512, 1024), **options})
    if json:
        print_json(report.to_dict())
        return 0
    header, *rows = report.table()
    print_table(header, rows)
    return 0


def _bench_preset(name: str, options: dict[str, Any], plot: Path | None, json: bool) -> int:
    from .. import bench_preset
    from ..run.progress import Progress

    if plot:
        _check_plot(plot)
    report = bench_preset(name, **options, progress=Progress())
    if plot:
        report.draw(plot)
    if json:
        print_json({"preset": name, **report.to_dict()})
        return 0
    header, *rows = report.table()
    print_table(header, rows)
    print("\n".join(report.notes()))
    return 0


def _check_plot(path: Path) -> None:
    """Refuse a figure that could not be written before minutes go into measuring."""
    from ..files import made_folder
    from ..plots import new_figure

    if path.suffix.lower() != ".png":
        raise ConfigError(f"--plot {path}: figures are written as .png")
    made_folder(path.parent)
    new_figure(1, 1)
