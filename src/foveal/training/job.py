"""What the training loop asks of a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.labelled import Labelled, Task, open_labelled
from ..errors import DataError
from ..info import Labels, Preprocess
from ..prediction.predictor import Predictor
from .config import TrainConfig


class Scores(Protocol):
    """Figures of merit on a validation split."""

    @property
    def headline(self) -> tuple[str, float]:
        """Name and value of the figure that selects the best checkpoint: higher is better."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


class Job(Protocol):
    """One task's part of a training run.

    Attributes:
        labels: classes of the data.
        preprocess: how images become the network's input, for training and afterwards.
        data: the training images.
        validation: number of validation images, 0 without such a split.
    """

    @property
    def labels(self) -> Labels: ...
    @property
    def preprocess(self) -> Preprocess: ...
    @property
    def data(self) -> Labelled: ...
    @property
    def validation(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        """One augmented training sample, image ``(3, h, w)`` and target.

        Args:
            index: of the image.
            rng: what the augmentation is drawn from.
            done: share of the run that is over, 0..1, in whole passes over the data.
        """
        ...

    def trainee(self, model: nn.Module) -> nn.Module:
        """The module that is trained: ``model`` itself, or a module that holds it as ``.model``."""
        ...

    def weight(self, target: Tensor) -> Tensor:
        """How much the targets of a batch count in the loss, a scalar: parts of a batch are weighed by it."""
        ...

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar in float32."""
        ...

    def score(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        """Counts on these validation images: they add up over processes."""
        ...

    def scores(self, counts: NDArray[np.int64]) -> Scores:
        """What these counts, summed over processes, amount to."""
        ...


def _opened(root: str | Path, config: TrainConfig, task: Task) -> tuple[Labelled, Labelled | None]:
    """Training and validation samples."""
    data = open_labelled(root, config.splits, task)
    held_out = open_labelled(root, [config.val_split], task) if config.val_split else None
    if held_out and held_out.labels != data.labels:
        raise DataError(f"{root}: training and validation splits have different classes")
    return data, held_out
