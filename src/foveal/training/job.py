"""What a task must provide for training: the contract between the training loop and the tasks.

A task has one file that fulfils it (``training/segment.py``, ...), a class with its settings in a file of its own
(``training/segment_settings.py``, ...), and a line in each of two tables: :data:`foveal.training.config.TASK_SETTINGS`
and :data:`foveal.training.jobs.JOBS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.bands import described_by, with_its_bands
from ..data.labelled import Banded, Labelled, LabelledTask, open_labelled
from ..data.labels import class_difference
from ..errors import DataError
from ..images.bands import RGB
from ..info import Labels, ModelInfo, Preprocess, Target, info_of
from ..prediction.predictor import Predictor
from ..progress import Progress
from .common_settings import CommonSettings


class Scores(Protocol):
    """Figures of merit on a validation split."""

    @property
    def headline(self) -> tuple[str, float]:
        """Name and value of the figure that selects the best checkpoint.

        Higher is better, unless the scores have an attribute ``lower_is_better`` that is true.
        """
        ...

    def to_dict(self) -> dict[str, Any]: ...


class Named(Protocol):
    """Images by index that have names."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> Path:
        """The image's file."""
        ...


class Job(Protocol):
    """The part of a training run that depends on the task: samples, loss and scores.

    It is made from the data set, the settings of the task and the progress display.

    Attributes:
        labels: classes of the data.
        preprocess: how images become the network's input, in training and afterwards; its mean has one value per
            channel of the images.
        data: training images.
        held_out: validation images, ``None`` without a validation split.
        validation: number of validation images, 0 without a validation split.

    A job may have ``options``, options of ``create_model`` that follow from the data, and ``target``, a
    :class:`~foveal.info.Target`.
    """

    @property
    def labels(self) -> Labels: ...
    @property
    def preprocess(self) -> Preprocess: ...
    @property
    def data(self) -> Labelled: ...
    @property
    def held_out(self) -> Named | None: ...
    @property
    def validation(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        """Make one augmented training sample: the image ``(C, h, w)`` and its target.

        Args:
            index: number of the image.
            rng: source of all random draws of the augmentation.
            done: share of the run that is over, 0..1.
        """
        ...

    def trainee(self, model: nn.Module) -> nn.Module:
        """Return the module that is trained: ``model`` itself, or a module that has it as attribute ``model``."""
        ...

    def image_network(self, model: nn.Module) -> nn.Module:
        """Return the part of ``model`` that takes a batch of images: batch norm statistics are estimated with it."""
        ...

    def weight(self, target: Tensor) -> Tensor:
        """Return the weight of a batch's targets in the loss, a scalar: the parts of a batch are averaged by it."""
        ...

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        """Compute the mean loss of a batch, a scalar in float32."""
        ...

    def count(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[Any]:
        """Count on these validation images what :meth:`scores` needs; counts add up over images and processes."""
        ...

    def scores(self, counts: NDArray[Any]) -> Scores:
        """Compute the figures of merit from counts that were summed over all images and processes."""
        ...

    def only_class(self, counts: NDArray[Any]) -> str:
        """Return the name of the class that a model predicts although the data has others; empty if there is none."""
        ...


class SizedJob(Protocol):
    """A job whose training samples can have other sizes than ``crop``, one for each batch (the setting ``sizes``)."""

    def sample(self, index: int, rng: np.random.Generator, done: float, size: int = 0) -> tuple[Tensor, Tensor]:
        """Make one training sample as :meth:`Job.sample`; ``size``: side of the crop, 0 for that of the settings."""
        ...


def model_options(job: Job, config: CommonSettings) -> dict[str, Any]:
    """The options of the model to train: those of the settings, and before them those that follow from the data."""
    return {**getattr(job, "options", {}), **config.options}


def describe_model(model: nn.Module, job: Job) -> ModelInfo:
    """The description of the model to train, with the data's classes and preprocessing."""
    return info_of(model).replace(labels=job.labels, preprocess=job.preprocess, target=target_of(job), tag="")


def target_of(job: Job) -> Target:
    """What the maps of a job hold; the default of the class for other tasks than regression."""
    return getattr(job, "target", Target())


def compare_with_best(scores: Scores, metric: str, best: float) -> tuple[bool, bool, float]:
    """Compare a validation figure with the best one before.

    Args:
        scores: the new scores.
        metric: name of the figure in earlier evaluations; empty: this is the first.
        best: the best figure before.

    Returns:
        Whether it is better, whether it is at least as good, and the best figure now. NaN is at least as good, so that
        there always is a best checkpoint.
    """
    value, sign = scores.headline[1], 1
    if getattr(scores, "lower_is_better", False):
        sign, best = -1, best if metric else math.inf
    better = sign * value > sign * best
    return better, not sign * value < sign * best, value if better else best


def note_shared_images(job: Job, config: CommonSettings, progress: Progress) -> None:
    """Say how many of the validation images are also trained on, if any are."""
    if job.held_out is None:
        return
    trained = {job.data.name(index) for index in range(len(job.data))}
    shared = sum(job.held_out.name(index) in trained for index in range(len(job.held_out)))
    if shared:
        progress.note(
            f"{shared} of {len(job.held_out)} images of {config.val_split} are also trained on: its score, which "
            "chooses best.safetensors, says little about other images"
        )


def note_colours(data: Banded, config: CommonSettings, progress: Progress) -> None:
    """Say that colour changes are left out, if there are any and the images are not RGB."""
    if data.bands != RGB and (config.jitter or config.tint):
        progress.note(f"jitter and tint change colours and are left out: the images have {data.bands}")


def open_data(root: str | Path, config: CommonSettings, task: LabelledTask) -> tuple[Banded, Banded | None]:
    """Open the training samples and the validation samples, if there is a validation split; both with their bands.

    Raises:
        ConfigError: ``in_chans`` does not fit ``dataset.yaml``.
        DataError: a split cannot be used, or the two have different classes.
    """
    data = with_its_bands(open_labelled(root, config.splits, task), described_by(root), config.in_chans)
    held_out = open_labelled(root, [config.val_split], task).with_bands(data.bands) if config.val_split else None
    if held_out and held_out.labels != data.labels:
        difference = class_difference(data.labels.names, held_out.labels.names) or "other colours"
        raise DataError(f"{root}: training and validation splits have different classes: {difference} in validation")
    return data, held_out
