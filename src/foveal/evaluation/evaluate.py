"""Score a model, from a checkpoint or an exported file, on a labelled data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.recognition import explain_wrong_layout
from ..errors import ConfigError
from ..files import ensure_folder
from ..prediction.load import load
from ..prediction.predictor import Predictor
from ..progress import Progress
from .evaluators import EVALUATORS, Evaluator
from .prompt import Prompts
from .protocols import PLAIN
from .report import score_parts


def evaluate(
    ref: str | Path | Predictor,
    data: str | Path,
    *,
    split: str | None = None,
    size: tuple[int, int] | None = None,
    class_map: str | Path | None = None,
    protocol: str = PLAIN,
    boundary: bool = False,
    degradation: Mapping[str, tuple[float, float]] | None = None,
    prompts: Prompts | str | Path = "all",
    tile: int | None = None,
    overlap: int | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    device: str = "auto",
    dtype: str = "auto",
    runtime: str = "auto",
    threads: int | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Any:
    """Score a model on a data set.

    Images that cannot be scored, because they are damaged or their masks hold ids without a class, are skipped and
    listed in ``skipped`` of the report.

    Args:
        ref: anything that :func:`foveal.load` accepts, or a predictor.
        data: folder of the data set in the layout of the model's task (:mod:`foveal.data.segmentation`,
            ``classification``, ``super_resolution``, ``regression`` or ``instances``). Segmentation and
            classification also take a pattern of tar files.
        split: split to score. Default: the split of the protocol, or else "test", else "val", else all images; for
            upscaling: every set that the model was not trained on.
        size: segmentation: (H, W) to resize images to before the network. The logits are resized from there to the
            label's size in one step.
        class_map: segmentation: YAML file ``model class: data class``, for a model with other classes than the data.
            It is applied after the argmax.
        protocol: segmentation: "plain", or "cityscapes" or "ade20k" for the input size and interpolation of the
            published figures.
        boundary: segmentation: score contours, too (:mod:`foveal.evaluation.boundary`). This takes longer.
        degradation: upscaling: how small images are degraded (:mod:`foveal.data.degradation`), with the same random
            numbers in each evaluation; default: as in the model's training.
        prompts: promptable models: prompt with "boxes", "clicks", or "all" for both; or with the boxes of a detector, a
            .json file in COCO's result format (:mod:`foveal.evaluation.detections`).
        tile: segmentation and regression: side of the tiles in which images are seen at their full size (a sliding
            window), whose outputs are blended; default: whole images.
        overlap: segmentation and regression: pixels that neighbouring tiles share; default: a third of ``tile``.
        flip: segmentation: the mean over each image and its mirror image.
        scales: segmentation: the mean over copies of each image at these scales of the network's usual input.
        device: torch device, as in :func:`foveal.load`; only with a reference.
        dtype: number type, as in :func:`foveal.load`; only with a reference.
        runtime: what runs the model, as in :func:`foveal.load`; only with a reference.
        threads: number of threads, as in :func:`foveal.load`; only with a reference.
        out: folder for ``report.json``, a CSV file with a line per image or object and, for segmentation,
            ``samples.png`` with the best, median and worst image.
        progress: where to show progress; default: nowhere.

    Returns:
        A :class:`~foveal.evaluation.report.Report`; the model's task determines which:
        :class:`~foveal.evaluation.segment.Evaluation`, :class:`~foveal.evaluation.classify.ClassifyEvaluation`,
        :class:`~foveal.evaluation.upscale.UpscaleEvaluation`,
        :class:`~foveal.evaluation.regress.RegressionEvaluation` or
        :class:`~foveal.evaluation.prompt.PromptEvaluation`, with a detector's boxes
        :class:`~foveal.evaluation.detections.DetectionEvaluation`.

    Raises:
        ConfigError: an option that does not apply to the model's task, or has an impossible value; the model's classes
            are not those of the data and there is no class map, or the map does not fit; a protocol for other data; a
            task without an evaluation.
        DataError: the data cannot be used, or none of its images can be scored.
        DependencyError: objects as polygons or run lengths need pycocotools, which is not installed.
        InputError: tiles that the model cannot use, an overlap without tiles, or ``out`` cannot be written.
    """
    predictor = _open_predictor(ref, device=device, dtype=dtype, runtime=runtime, threads=threads)
    options = {
        "size": size,
        "class_map": class_map,
        "protocol": protocol,
        "boundary": boundary,
        "degradation": degradation,
        "prompts": prompts,
        "tile": tile,
        "overlap": overlap,
        "flip": flip,
        "scales": tuple(scales),
    }
    evaluator = _create_evaluator(predictor, data, split, options)
    if out is not None:
        ensure_folder(out)  # an unwritable folder fails now, not after hours
    scores, skipped = score_parts(evaluator.parts, Path(data), progress or Progress(enabled=False))
    report = evaluator.summarise(scores, skipped)
    if out is not None:
        origin = "" if isinstance(ref, Predictor) else str(ref)
        evaluator.save(report, out, ref=origin, model=predictor.info.ref, data=str(data))
    return report


def _open_predictor(ref: str | Path | Predictor, **options: Any) -> Predictor:
    if not isinstance(ref, Predictor):
        return load(ref, **options)
    for name, value in options.items():
        if value not in ("auto", None):
            raise ConfigError(f"{name}={value!r}: this predictor is loaded already; give {name} to foveal.load instead")
    return ref


def _create_evaluator(
    predictor: Predictor, data: str | Path, split: str | None, options: Mapping[str, Any]
) -> Evaluator:
    """Create the evaluator of the model's task with the options that apply to it, and refuse the others."""
    task = predictor.info.task
    if task not in EVALUATORS:
        raise ConfigError(f"models for {task!r} have no evaluation; it exists for {', '.join(EVALUATORS)}")
    evaluator = EVALUATORS[task]
    for name, value in options.items():
        others = {other: EVALUATORS[other].options[name] for other in EVALUATORS if name in EVALUATORS[other].options}
        if task not in others and value not in others.values():
            names = " and ".join(map(repr, others))
            raise ConfigError(f"{name}={value!r} is for models of the task {names}, this one is for {task!r}: omit it")
    with explain_wrong_layout(data, task):
        return evaluator(predictor, data, split, **{name: options[name] for name in evaluator.options})
