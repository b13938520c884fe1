"""Train dense regression: images with maps of values, losses over valid pixels, the errors of the target's kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.bands import described_by, read_preprocess
from ..data.map_augment import MapAugment
from ..data.regression import RegressionData
from ..errors import ConfigError, DataError
from ..evaluation.regression import RegressionScores, regression_sums
from ..images.bands import RGB
from ..images.preparing import prepare
from ..info import info_of
from ..prediction.predictor import Predictor
from ..progress import Progress
from ..tasks.regress import RegressionModel
from .cache import Cached
from .common_settings import DEFAULT_CROP
from .job import note_colours, open_data
from .regress_settings import RegressionLossName, RegressSettings
from .regression_losses import MapLoss

#: What the network's output is limited to, and the losses, by the kind of the target.
_OUTPUTS = {"depth": "softplus", "normals": "unit", "alpha": "sigmoid"}
_LOSSES: Mapping[str, dict[RegressionLossName, float]] = {
    "depth": {"silog": 1.0, "l1": 1.0},
    "normals": {"cosine": 1.0},
}
_OTHERS: dict[RegressionLossName, float] = {"l1": 1.0}
_POSITIVE = ("softplus", "sigmoid")  # outputs that are above 0


class RegressJob:
    """Dense regression: paired augmentation, :class:`~foveal.training.regression_losses.MapLoss`, errors by kind.

    The data set is decoded once and stays in memory, up to ``config.cache_gib``.

    Attributes:
        target: what the maps hold.
        options: options of ``create_model`` that follow from the data, unless ``config.options`` has them.
    """

    def __init__(self, root: str | Path, config: RegressSettings, progress: Progress) -> None:
        self.config, self.progress = config, progress
        data, held_out = open_data(root, config, "regress")
        assert isinstance(data, RegressionData)
        assert held_out is None or isinstance(held_out, RegressionData)
        self.data, self.held_out, self.target = data, held_out, data.target
        if held_out and held_out.target != data.target:
            raise DataError(f"{root}: training and validation splits have maps of different kinds: name one as target")
        self.labels, self.validation = data.labels, len(held_out or ())
        self.read = Cached(data, config.cache_gib, config.max_bad, progress)
        self.mean, self.std = self._statistics(root)
        self.preprocess = read_preprocess(data, described_by(root), progress)
        note_colours(data, config, progress)
        self.options = {"output": config.options.get("output", _OUTPUTS.get(self.target.kind, "none"))}
        losses: Mapping[RegressionLossName, float] = config.regression_loss or _LOSSES.get(self.target.kind, _OTHERS)
        self._check_losses(losses)
        self.criterion = MapLoss(losses, torch.tensor(self.std, dtype=torch.float32))
        fill = tuple(self.preprocess.peak * mean for mean in self.preprocess.mean)
        outside: dict[str, Any] = {} if data.bands == RGB else {"fill": fill}
        self.augment = MapAugment(
            config.crop or DEFAULT_CROP,
            config.scale,
            config.flip,
            config.jitter,
            config.tint,
            kind=self.target.kind,
            **outside,
        )

    def _statistics(self, root: str | Path) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over the valid pixels of the training maps.

        Raises:
            DataError: there is no valid pixel.
        """
        count, total, squares = 0, np.zeros(len(self.labels.names)), np.zeros(len(self.labels.names))
        first: NDArray[np.float64] | None = None
        for _, values in self.read.readable():
            found = values[np.isfinite(values).all(2)].astype(np.float64)
            if not len(found):
                continue
            first = found[0] if first is None else first  # sums of differences from a value lose fewer digits
            count += len(found)
            total, squares = total + (found - first).sum(0), squares + ((found - first) ** 2).sum(0)
        if first is None:
            raise DataError(f"{root}: no valid pixel in the training maps: check them with 'foveal data check'")
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return (first + mean).tolist(), np.where(std > 0, std, 1.0).tolist()

    def _check_losses(self, losses: Mapping[RegressionLossName, float]) -> None:
        """Refuse losses that the target or the output does not have.

        Raises:
            ConfigError: logarithms of values that may be 0 or less, or angles of numbers.
        """
        if "silog" in losses and (self.target.kind != "depth" or self.options["output"] not in _POSITIVE):
            raise ConfigError(
                "regression_loss: silog takes logarithms: it is for 'target: {kind: depth}' in dataset.yaml and the "
                "output softplus"
            )
        if "cosine" in losses and len(self.labels.names) < 2:
            raise ConfigError("regression_loss: cosine is for vectors, the maps have one channel: leave it out")

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        image, values = self.augment(*self.read[index], rng=rng)
        return torch.from_numpy(prepare(image, self.preprocess)[0]), torch.from_numpy(values.transpose(2, 0, 1).copy())

    def trainee(self, model: nn.Module) -> nn.Module:
        """The model itself, with the statistics of the targets; a head whose weights predict the same keeps its own."""
        assert isinstance(model, RegressionModel)
        head = model.head
        fresh = (head.target_std == 1).all() and (head.target_mean == 0).all()
        if fresh or not info_of(model).target.means_what(self.target):
            head.set_statistics(self.mean, self.std)
        return model

    def image_network(self, model: nn.Module) -> nn.Module:
        return model

    def weight(self, target: Tensor) -> Tensor:
        return target.isfinite().all(1).sum().to(torch.float32)

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        return self.criterion(trainee(image), target)

    def count(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[Any]:
        """The sums of :func:`~foveal.evaluation.regression.regression_sums`."""
        assert self.held_out is not None
        sums = np.zeros(RegressionScores.size(self.target.kind, len(self.labels.names)))
        for index in indices:
            image, values = self.held_out[index]
            sums = sums + regression_sums(predictor.regress(image).values, values, self.target.kind)
        return sums

    def scores(self, counts: NDArray[Any]) -> RegressionScores:
        return RegressionScores(counts, self.target, self.labels.names)

    def only_class(self, counts: NDArray[Any]) -> str:
        return ""
