"""Data for quantisation: images to calibrate on, and other images of the same data set to measure the loss on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.labelled import open_labelled
from ..data.labels import class_difference
from ..data.layout import ALL, SAME_SPLITS, UnknownLayoutError
from ..data.recognition import explain_wrong_layout, split_names
from ..errors import ConfigError, DataError, InputError
from ..evaluation.evaluators import EVALUATORS, Evaluator
from ..evaluation.report import Part, Samples, score_parts
from ..info import ModelInfo
from ..prediction.input_limits import InputLimits, fitted
from ..prediction.predictor import Predictor
from ..progress import Progress
from ..task import TASKS
from .graph import Feed

_SEED = 0
_TRAINING, _HELD_OUT = SAME_SPLITS[0], (*SAME_SPLITS[1], *SAME_SPLITS[2])  # names of splits, the first is preferred


@dataclass(frozen=True)
class Measure:
    """The figure of an evaluation that a quantised file must keep.

    Attributes:
        name: of the figure.
        unit: that losses are given in.
        max_loss: how much it may lose by default, in this unit.
        share: the part of ``max_loss`` that may be lost on the images that are measured. It is below 1 where layers are
            chosen by these images, since the loss on other images is then larger.
        images: how many it is measured on at most. Of 100 images, one is a whole point of a classifier's figure.
        of: the figure of a report, in this unit.
        options: of the evaluator.
    """

    name: str
    unit: str
    max_loss: float
    share: float
    images: int
    of: Callable[[Any], float]
    options: dict[str, Any]


_BOXES = {"prompts": "boxes"}
#: By task; a task without a line cannot be quantised.
MEASURES = {
    "segment": Measure("mIoU", "points", 0.5, 0.4, 100, lambda report: 100 * report.miou, {}),
    "classify": Measure("top-1", "points", 0.5, 1.0, 400, lambda report: 100 * report.top1, {}),
    "upscale": Measure("PSNR", "dB", 0.1, 1.0, 100, lambda report: report.sets[0].scores.psnr, {}),
    "regress": Measure("similarity", "points", 0.5, 0.4, 100, lambda report: 100 * report.scores.similarity, {}),
    "prompt": Measure("box mIoU", "points", 1.0, 1.0, 100, lambda report: 100 * report.miou("box"), _BOXES),
}


class QuantisationData:
    """Samples of a data set for calibration, and others for measuring; no image is among both.

    Calibration takes images of "train", or of the first split; measuring takes "val", or "test", or another split. Of a
    data set with a single split, each gets half of the images. The same images are drawn each time.

    Args:
        data: in any layout that :func:`foveal.evaluate` reads for the model's task.
        predictor: of the model in float32, with the preprocessing that all images get.
        calibration_images: how many to calibrate on at most.
        measured_images: how many to measure on at most; ``None``: as many as the task's :class:`Measure` has.

    Attributes:
        measure: the figure that is measured.
        calibration: the images to calibrate on.
        held_out: the images to measure on.
        calibrated: how many images gave inputs the last time that all of them were read.
        measured: how many images the last score is of.

    Raises:
        DataError: the data cannot be used, or has too few images.
        ConfigError: as :func:`foveal.evaluate`.
    """

    def __init__(
        self, data: str | Path, predictor: Predictor, calibration_images: int, measured_images: int | None = None
    ) -> None:
        self.data, self.predictor, self.measure = data, predictor, MEASURES[predictor.info.task]
        first, second = _two_splits(data, predictor.info.task)
        train, rest = self._open(predictor, first).samples, self._open(predictor, second).samples
        most = len(train) // 2 if first == second else len(train)
        self.calibration = _Some(train, _draw(len(train))[: min(calibration_images, most)], first)
        used = {train.name(index) for index in self.calibration.indices}
        held_out = [index for index in _draw(len(rest)) if rest.name(index) not in used]
        self.held_out = _Some(rest, held_out[: measured_images or self.measure.images], second)
        if not (self.calibration and self.held_out):
            raise DataError(f"{data}: quantisation needs an image to calibrate on and another one to measure on")
        self.calibrated, self.measured = len(self.calibration), len(self.held_out)

    def inputs(self) -> Iterator[Feed]:
        """Inputs of the network for the images of calibration, prepared as the predictor prepares them.

        Damaged images are left out.

        Raises:
            DataError: no image can be used.
        """
        info = self.predictor.info  # images are fitted to the limits of the file; of larger ones the first tile counts
        part = self._open(Predictor(fitted(_Recorder(), InputLimits.of(info), info), info, ""), self.calibration.split)
        count, reason = 0, ""
        for index in self.calibration.indices:
            try:
                part.score(index, "")
            except _Recorded as recorded:
                count += 1
                yield {"image": recorded.batch}
            except (DataError, InputError) as error:
                reason = reason or f"; the first: {error}"
        self.calibrated = count
        if not count:
            raise DataError(f"{self.data}: no image to calibrate on can be used{reason}")

    def score(self, predictor: Predictor, progress: Progress) -> float:
        """The figure of a predictor on the images to measure on.

        Raises:
            DataError: none of them can be scored.
        """
        evaluator = self._evaluator(predictor, self.held_out.split)
        score, indices = evaluator.parts[0].score, self.held_out.indices
        part = Part(self.held_out.split, self.held_out, lambda place, image: score(indices[place], image))
        scores, skipped = score_parts([part], Path(self.data), progress)
        self.measured = len(scores[0])
        return float(self.measure.of(evaluator.summarise(scores, skipped)))

    def notes(self) -> tuple[str, ...]:
        """How many images were left out, if any, for the report."""
        counts = {
            "calibrate": len(self.calibration) - self.calibrated,
            "measure": len(self.held_out) - self.measured,
        }
        return tuple(f"{count} of the images to {what} on could not be used" for what, count in counts.items() if count)

    def _open(self, predictor: Predictor, split: str) -> Part[Any]:
        return self._evaluator(predictor, split).parts[0]

    def _evaluator(self, predictor: Predictor, split: str) -> Evaluator:
        task = predictor.info.task
        evaluator = EVALUATORS[task]
        with explain_wrong_layout(self.data, task):
            return evaluator(predictor, self.data, split, **{**evaluator.options, **self.measure.options})


class _Some:
    """Some samples of a split, by their places among the chosen ones."""

    def __init__(self, samples: Samples, indices: list[int], split: str) -> None:
        self.samples, self.indices, self.split = samples, indices, split

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> Path:
        return self.samples.name(self.indices[index])


class _Recorded(Exception):  # noqa: N818 - it carries a result
    """The first input of a network, which ends the prediction."""

    def __init__(self, batch: NDArray[np.float32]) -> None:
        self.batch = batch


class _Recorder:
    """A runner that raises what it is to run on: images are read and prepared, but nothing is predicted."""

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        raise _Recorded(batch)


def _draw(count: int) -> list[int]:
    return np.random.default_rng(_SEED).permutation(count).tolist()


def check_data(data: str | Path, info: ModelInfo) -> None:
    """Refuse data that a model cannot be quantised with, before the work.

    Raises:
        DataError, ConfigError: as :func:`foveal.evaluate`.
    """
    task = info.task
    with explain_wrong_layout(data, task):
        if not split_names(data, task):
            raise UnknownLayoutError(f"{data}: no layout of data for the task {task!r} fits; docs/data.md shows them")
    if TASKS[task].labels_pixels:
        names = open_labelled(data, [_two_splits(data, task)[0]], "segment").labels.names
        difference = class_difference(info.labels.names, names) if info.labels.names else ""
        if info.num_classes != len(names):
            difference = f"{len(names)} instead of {info.num_classes}" + f" ({difference})" * bool(difference)
        if difference:
            raise ConfigError(
                f"int8: {data} has other classes than the model: {difference}; give data with the model's classes"
            )


def _two_splits(data: str | Path, task: str) -> tuple[str, str]:
    """Names of the splits to calibrate and to measure on: the same one if there are no others."""
    with explain_wrong_layout(data, task):
        names = split_names(data, task)
    first = next((name for name in (*_TRAINING, *names) if name in names), _TRAINING[0])
    others = [name for name in (*_HELD_OUT, *names) if name in names and name not in (first, ALL)]
    return first, next(iter(others), first)
