"""Train classifiers: augmentation, cross entropy, top-1 accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.bands import described_by, read_preprocess
from ..data.transforms import ClassifyAugment
from ..errors import DataError, InputError
from ..evaluation.metrics import ClassifyScores
from ..images.bands import RGB
from ..images.preparing import prepare
from ..info import Preprocess
from ..models.registry import variants
from ..prediction.predictor import Predictor
from ..progress import Progress
from ..weights.published import published_preprocess
from ..weights.reading import read_checkpoint
from .augment import Augment
from .cache import Cached
from .classify_settings import ClassifySettings
from .common_settings import DEFAULT_CROP
from .job import note_colours, open_data

_CROP_RATIO = 0.875  # of a crop that the settings name without a ratio


class ClassifyJob:
    """Image classification: random resized crops, cross entropy with label smoothing, top-1 accuracy."""

    def __init__(self, root: str | Path, config: ClassifySettings, progress: Progress) -> None:
        self.data, self.held_out = open_data(root, config, "classify")
        self.labels, self.validation = self.data.labels, len(self.held_out or ())
        self.read = Cached(self.data, config.cache_gib, config.max_bad, progress)
        self.preprocess, crop = _preprocess(config)
        described = described_by(root)
        if self.data.bands != RGB or described.mean:
            own = read_preprocess(self.data, described, progress)
            self.preprocess = dataclasses.replace(self.preprocess, mean=own.mean, std=own.std, dtype=own.dtype)
        self.normalise = dataclasses.replace(self.preprocess, size=None, crop_ratio=0.0)
        note_colours(self.data, config, progress)
        self.augment = ClassifyAugment(crop, config.area, config.flip, config.jitter, config.tint)
        peak = self.preprocess.peak
        fill = tuple(peak * mean for mean in self.preprocess.mean)
        self.more = Augment.of(config, fill, len(self.labels.names))
        self.smoothing = config.label_smoothing

    def sample(self, index: int, rng: np.random.Generator, done: float, size: int = 0) -> tuple[Tensor, Tensor]:
        """The target is the class, or the shares of the classes if images may be mixed."""
        augment = dataclasses.replace(self.augment, crop=(size, size)) if size else self.augment
        image, label = self._augmented(index, augment, rng)
        target = torch.tensor(label)
        if self.more.mixes:
            target = F.one_hot(target, len(self.labels.names)).float()
            if (name := self.more.draw_mix(rng)) and (other := self._partner(augment, rng)):
                mixed = self.more.mix(name, image, other[0], rng)
                image = mixed.image
                target *= mixed.share
                target[other[1]] += 1 - mixed.share
        return torch.from_numpy(prepare(image, self.normalise)[0]), target

    def _augmented(self, index: int, augment: ClassifyAugment, rng: np.random.Generator) -> tuple[NDArray[Any], int]:
        image, label = self.read[index]
        return self.more(augment(image, rng=rng), label, rng)

    def _partner(self, augment: ClassifyAugment, rng: np.random.Generator) -> tuple[NDArray[Any], int] | None:
        """Another sample, drawn at random; ``None`` if it cannot be read, which is reported when its turn comes."""
        try:
            return self._augmented(int(rng.integers(len(self.data))), augment, rng)
        except (DataError, InputError):
            return None

    def trainee(self, model: nn.Module) -> nn.Module:
        return model

    def image_network(self, model: nn.Module) -> nn.Module:
        return model

    def weight(self, target: Tensor) -> Tensor:
        return torch.tensor(float(len(target)), device=target.device)

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        outputs = trainee(image)
        # The second of two classifiers learns from a teacher (distillation.py). Without one both learn the labels.
        losses = [
            F.cross_entropy(
                logits.to(torch.promote_types(logits.dtype, torch.float32)), target, label_smoothing=self.smoothing
            )
            for logits in (outputs if isinstance(outputs, tuple) else (outputs,))
        ]
        return torch.stack(losses).mean()

    def count(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        """Number of images, of those with the right class as first guess and among the first five guesses.

        Then follow the numbers of images of each class, ``(C,)``, and of first guesses of each class, ``(C,)``.
        """
        assert self.held_out is not None
        counts, classes = np.zeros(3, np.int64), np.zeros((2, len(self.labels.names)), np.int64)
        for index in indices:
            image, label = self.held_out[index]
            ranked = np.argsort(-predictor.classify(image).scores, kind="stable")[:5]
            counts += (1, ranked[0] == label, label in ranked)
            classes[0, label] += 1
            classes[1, ranked[0]] += 1
        return np.concatenate([counts, classes.ravel()])

    def scores(self, counts: NDArray[np.int64]) -> ClassifyScores:
        return ClassifyScores(*map(int, counts[:3]))

    def only_class(self, counts: NDArray[np.int64]) -> str:
        labelled, predicted = counts[3:].reshape(2, -1)
        one = predicted.argmax()
        alone = predicted[one] == predicted.sum() and labelled[one] < labelled.sum()
        return self.labels.names[one] if alone else ""


def _preprocess(config: ClassifySettings) -> tuple[Preprocess, tuple[int, int]]:
    """How images are evaluated, and the size of the training crops.

    What the settings leave open is as in the evaluation of the weights or else of the architecture.
    """
    name, _, tag = config.model.partition(".")
    weights = config.weights or (config.model if tag else "")
    known = read_checkpoint(weights, name).info if weights else None
    own = known.preprocess if known and known.task == "classify" else Preprocess()
    if own.size is None and name in variants():  # create_model refuses an unknown name
        usual = published_preprocess("classify", variants()[name][1]) or own
        own = dataclasses.replace(own, size=usual.size, crop_ratio=usual.crop_ratio)
    if config.crop is not None:
        own = dataclasses.replace(own, size=config.crop, crop_ratio=config.crop_ratio or _CROP_RATIO)
    elif config.crop_ratio is not None:
        own = dataclasses.replace(own, crop_ratio=config.crop_ratio)
    return own, own.size or DEFAULT_CROP
