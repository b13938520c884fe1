"""Scoring a model, live or exported, on a labelled data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.labelled import open_labelled
from ..errors import ConfigError
from ..files import ensure_folder
from ..images.writing import save_picture
from ..prediction.load import load
from ..prediction.predictor import Predictor
from ..progress import Progress
from .classify import evaluate_classes
from .prompt import Prompts, evaluate_prompting
from .protocols import PLAIN, find_protocol
from .segment import _lookup, _sample, _scored
from .sheet import sample_sheet
from .upscale import evaluate_upscaling


def evaluate(
    ref: str | Path | Predictor,
    data: str | Path,
    *,
    split: str | None = None,
    size: tuple[int, int] | None = None,
    class_map: str | Path | None = None,
    protocol: str = PLAIN,
    boundary: bool = False,
    prompts: Prompts = "all",
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Any:
    """Score a model on a data set.

    Segmentation gives an :class:`Evaluation`: whole images, one scale, no flip, one confusion matrix. To the others
    only ``split``, ``out`` and ``progress`` apply: a classifier gives a
    :class:`~foveal.evaluation.classify.ClassifyEvaluation`, a model that upscales an
    :class:`~foveal.evaluation.upscale.UpscaleEvaluation`, a promptable one, to which ``prompts`` applies too, a
    :class:`~foveal.evaluation.prompt.PromptEvaluation`.

    Images that cannot be scored (damaged, or with ids that are no classes) are left out and named in ``skipped``.

    Args:
        ref: whatever :func:`foveal.load` takes, or a predictor.
        data: folder of the data set (see :mod:`foveal.data.segmentation`), or a pattern of tar files.
        split: part of it; default: "test", or what the protocol's figures are published for; classifiers: "test", else
            "val", else all there is.
        size: (H, W) to resize images to before the network; its logits are resized straight to the label's size.
        class_map: YAML file ``model class: data class`` for a model with other classes; the argmax comes first.
        protocol: "plain", or "cityscapes", "ade20k": sizes and interpolation of the published figures.
        boundary: score the contours too (see :mod:`foveal.evaluation.boundary`); takes longer.
        prompts: what a promptable model is asked with: "boxes", "clicks", or both.
        out: folder for ``report.json``, ``per_image.csv`` and ``samples.png``: the best, median and worst image.
        progress: where to show progress; default: nowhere.

    Raises:
        ConfigError: the model's classes are not the data's and no map is given, or the map does not fit; an unknown
            protocol, or one that is not for this data.
        DataError: the data cannot be used, or none of its images can.
        InputError: ``out`` cannot be written.
    """
    published = find_protocol(protocol)
    if published and size:
        raise ConfigError(f"protocol {protocol!r} sets the network's input size itself: leave size out")
    predictor = ref if isinstance(ref, Predictor) else load(ref)
    if predictor.info.task == "prompt":
        if size or class_map or published or boundary:
            raise ConfigError(f"{ref} is promptable: size, class_map, protocol and boundary are for segmentation")
        return evaluate_prompting(predictor, data, split=split, prompts=prompts, out=out, progress=progress)
    if prompts != "all":
        raise ConfigError(f"prompts={prompts!r}: {ref} is for {predictor.info.task!r} and takes none")
    if predictor.info.task == "classify":
        if size or class_map or published or boundary:
            raise ConfigError(f"{ref} classifies: size, class_map, protocol and boundary are for segmentation")
        return evaluate_classes(predictor, data, split=split, out=out, progress=progress)
    if predictor.info.task == "upscale":
        if size or class_map or published or boundary:
            raise ConfigError(f"{ref} makes images: size, class_map, protocol and boundary are for segmentation")
        return evaluate_upscaling(predictor, data, split=split, out=out, progress=progress)
    if predictor.info.task != "segment":
        raise ConfigError(f"{ref}: evaluation is for images, this model is for {predictor.info.task!r}")
    split = split or (published.split if published else "test")
    if size is not None:
        preprocess = predictor.info.preprocess
        changed = dataclasses.replace(preprocess, size=size, crop_ratio=0.0)
        predictor = Predictor(predictor.runner, predictor.info.replace(preprocess=changed), predictor.runtime)
    samples = open_labelled(data, [split], "segment")
    if published:
        published.check(samples.labels)
        predictor = published.prepared(predictor)
    lookup = _lookup(predictor, samples.labels, class_map)
    if out is not None:
        ensure_folder(out)  # now, not after hours

    def predicted(image: NDArray[np.uint8]) -> NDArray[np.int64]:
        return lookup[published.mask(predictor, image) if published else predictor.segment(image).mask]

    found, kept = _scored(samples, Path(data), predicted, split, boundary, progress or Progress(enabled=False))
    found = dataclasses.replace(found, size=size, protocol=protocol)
    if out is not None:
        about = {"model": predictor.info.ref, "data": str(data)}
        found.save(out, ref=str(ref) if not isinstance(ref, Predictor) else "", **about)
        ranked = found.ranked()
        if ranked:
            chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
            rows = [_sample(title, found.per_image[i], samples, kept[i], predicted) for title, i in chosen.items()]
            save_picture(sample_sheet(rows, samples.labels), Path(out) / "samples.png")
    return found
