"""Train classifiers: augmentation, cross entropy, top-1 accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.bands import described_by, read_preprocess
from ..data.transforms import ClassifyAugment
from ..evaluation.metrics import ClassifyScores
from ..images.preparing import prepare
from ..prediction.predictor import Predictor
from ..progress import Progress
from .cache import Cached
from .classify_settings import ClassifySettings
from .job import note_colours, open_data


class ClassifyJob:
    """Image classification: random resized crops, cross entropy with label smoothing, top-1 accuracy."""

    def __init__(self, root: str | Path, config: ClassifySettings, progress: Progress) -> None:
        self.data, self.held_out = open_data(root, config, "classify")
        self.labels, self.validation = self.data.labels, len(self.held_out or ())
        self.read = Cached(self.data, config.cache_gib, config.max_bad, progress)
        self.augment = ClassifyAugment(config.crop, config.area, config.flip, config.jitter, config.tint)
        self.normalise = read_preprocess(self.data, described_by(root), progress)
        note_colours(self.data, config, progress)
        self.preprocess = dataclasses.replace(self.normalise, size=config.crop, crop_ratio=config.crop_ratio)
        self.smoothing = config.label_smoothing

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        image, label = self.read[index]
        network_input = prepare(self.augment(image, rng=rng), self.normalise)
        return torch.from_numpy(network_input[0]), torch.tensor(label)

    def trainee(self, model: nn.Module) -> nn.Module:
        return model

    def image_network(self, model: nn.Module) -> nn.Module:
        return model

    def weight(self, target: Tensor) -> Tensor:
        return torch.tensor(float(len(target)), device=target.device)

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        outputs = trainee(image)
        # The second of two classifiers is meant to learn from a teacher. Without a teacher both learn the labels.
        losses = [
            F.cross_entropy(
                logits.to(torch.promote_types(logits.dtype, torch.float32)), target, label_smoothing=self.smoothing
            )
            for logits in (outputs if isinstance(outputs, tuple) else (outputs,))
        ]
        return torch.stack(losses).mean()

    def score(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        """Number of images, and of those with the right class as first guess and among the first five guesses."""
        assert self.held_out is not None
        counts = np.zeros(3, np.int64)
        for index in indices:
            image, label = self.held_out[index]
            ranked = np.argsort(-predictor.classify(image).scores, kind="stable")[:5]
            counts += (1, ranked[0] == label, label in ranked)
        return counts

    def scores(self, counts: NDArray[np.int64]) -> ClassifyScores:
        return ClassifyScores(*map(int, counts))
