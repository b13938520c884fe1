"""What a training run learns, per task: samples, loss and score. The loop in :mod:`foveal.run.train` knows no task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.class_map import read_class_map
from ..data.degradation import degraded
from ..data.labelled import Labelled, Task, open_labelled
from ..data.segmentation import class_counts, median_frequency_weights
from ..data.super_resolution import SuperResolutionData
from ..data.transforms import ClassifyAugment, SegmentAugment, UpscaleAugment
from ..errors import ConfigError, DataError
from ..info import IGNORE, Labels, Preprocess, info_of
from ..layers.resample import ceil_div
from ..losses import SegmentationLoss
from ..preparing import prepare
from ..tasks import upscale
from ..tasks.segment import SegmentationModel
from .cached import Cached
from .fidelity import UpscaleScores, fidelity
from .load import load_model
from .metrics import ClassifyScores, SegmentScores, confusion_matrix
from .predict import Predictor
from .progress import Progress
from .prompt_job import prompt_job

_EQUAL = 100.0  # dB that an image counts which is met to the pixel
_CHARBONNIER = 1e-3  # where its square root bends, on the 0..1 scale of images


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


class SegmentJob:
    """Semantic segmentation: paired augmentation, :class:`~foveal.losses.SegmentationLoss`, mIoU.

    The data set is decoded once and stays in memory, four bytes per pixel, up to ``config.cache_gib``.
    """

    def __init__(self, root: str | Path, config: TrainConfig, progress: Progress) -> None:
        self.config = config
        self.data, self.held_out = _opened(root, config, "segment")
        self.labels, self.validation = self.data.labels, len(self.held_out or ())
        self.read = Cached(self.data, config.cache_gib, config.max_bad, progress)
        pixels, present = class_counts([mask for _, mask in self.read.readable()], len(self.labels.names))
        balanced = median_frequency_weights(pixels, present)
        if len(self.read.sampled) < len(self.data) and not balanced.all():
            # The others may well hold these classes, and what weighs nothing is never learnt.
            rare = [name for name, weight in zip(self.labels.names, balanced, strict=True) if not weight]
            progress.note(f"not in the {len(self.read.sampled)} masks looked at, taken for rare: {', '.join(rare)}")
            balanced = np.where(balanced > 0, balanced, balanced.max())
        self.augment = SegmentAugment(
            config.crop,
            config.scale,
            config.flip,
            config.jitter,
            config.tint,
            config.rare_crop,
            tuple(np.sqrt(balanced)),
        )
        weights = {"none": np.ones(len(balanced)), "sqrt_median": np.sqrt(balanced), "median": balanced}
        self.class_weights = torch.tensor(weights[config.class_weights], dtype=torch.float32)
        self.preprocess = Preprocess()
        self.deep_supervision = config.deep_supervision
        self.criterion = SegmentationLoss({**config.loss}, self.class_weights)

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        image, mask = self.augment(*self.read[index], rng=rng)
        return torch.from_numpy(prepare(image, self.preprocess)[0]), torch.from_numpy(mask.astype(np.int64))

    def trainee(self, model: nn.Module) -> nn.Module:
        if self.config.class_map:
            self._start_classifier(model)
        return DeeplySupervised(model, len(self.labels.names)) if self.deep_supervision else model

    def _start_classifier(self, model: nn.Module) -> None:
        """Give each class the mean weights of those classes of ``config.weights`` that count as it."""
        config = self.config
        source = load_model(config.weights, config.model)
        assert isinstance(model, SegmentationModel)
        if not isinstance(source, SegmentationModel):
            raise ConfigError(f"class_map: {config.weights} has no classifier of pixels to start from")
        old, new = source.head.classifier, model.head.classifier
        assert old.bias is not None
        assert new.bias is not None
        targets = read_class_map(config.class_map, info_of(source).labels.names, self.labels.names)
        with torch.no_grad():
            for index in np.unique(targets):
                of_it = torch.from_numpy(targets == index)
                new.weight[index] = old.weight[of_it].mean(0)
                new.bias[index] = old.bias[of_it].mean(0)

    def weight(self, target: Tensor) -> Tensor:
        exact = torch.float32 if target.device.type == "mps" else torch.float64
        per_id = F.pad(self.class_weights, (0, IGNORE + 1 - len(self.class_weights))).to(target.device, exact)
        return per_id[target].sum()

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        if not self.deep_supervision:
            return self.criterion(trainee(image, upsample=False), target)
        main, *auxiliary = trainee(image)
        extra = torch.stack([self.criterion(logits, target) for logits in auxiliary]).mean()
        return self.criterion(main, target) + self.deep_supervision * extra

    def score(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        assert self.held_out is not None
        classes = len(self.labels.names)
        matrix = np.zeros((classes, classes), np.int64)
        for index in indices:
            image, target = self.held_out[index]
            matrix += confusion_matrix(target, predictor.segment(image).mask, classes)
        return matrix

    def scores(self, counts: NDArray[np.int64]) -> SegmentScores:
        return SegmentScores(counts, self.labels.names)


class DeeplySupervised(nn.Module):
    """A segmentation model with a classifier on each of the backbone's two coarsest maps, while it trains.

    ``(B, in_chans, H, W)`` -> logits of the head, then of the auxiliary classifiers, each at its own stride (deep
    supervision: arXiv 1409.5185; as auxiliary loss for segmentation, PSPNet, arXiv 1612.01105, section 3.3).
    """

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        assert isinstance(model, SegmentationModel)
        self.model = model
        self.used = model.backbone.feature_info[-2:]
        self.classifiers = nn.ModuleList(nn.Conv2d(info.channels, num_classes, 1) for info in self.used)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.model.maps(x)
        outputs = [(self.model.head(maps), self.model.stride)]
        for classifier, info, features in zip(self.classifiers, self.used, maps[-2:], strict=True):
            outputs.append((classifier(features), info.stride))
        h, w = x.shape[-2:]
        return [logits[..., : ceil_div(h, stride), : ceil_div(w, stride)] for logits, stride in outputs]


class ClassifyJob:
    """Image classification: random resized crops, cross entropy with label smoothing, top-1 accuracy."""

    def __init__(self, root: str | Path, config: TrainConfig, progress: Progress) -> None:
        self.data, self.held_out = _opened(root, config, "classify")
        self.labels, self.validation = self.data.labels, len(self.held_out or ())
        self.read = Cached(self.data, config.cache_gib, config.max_bad, progress)
        self.augment = ClassifyAugment(config.crop, config.area, config.flip, config.jitter, config.tint)
        self.preprocess = Preprocess(size=config.crop, crop_ratio=config.crop_ratio)
        self.smoothing = config.label_smoothing

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        image, label = self.read[index]
        augmented = self.augment(image, rng=rng)
        network_input = prepare(augmented, Preprocess(self.preprocess.mean, self.preprocess.std))
        return torch.from_numpy(network_input[0]), torch.tensor(label)

    def trainee(self, model: nn.Module) -> nn.Module:
        return model

    def weight(self, target: Tensor) -> Tensor:
        return torch.tensor(float(len(target)), device=target.device)

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        outputs = trainee(image)
        # Of a pair of classifiers, the second is for a teacher: without one, both learn the labels.
        losses = [
            F.cross_entropy(
                logits.to(torch.promote_types(logits.dtype, torch.float32)), target, label_smoothing=self.smoothing
            )
            for logits in (outputs if isinstance(outputs, tuple) else (outputs,))
        ]
        return torch.stack(losses).mean()

    def score(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        assert self.held_out is not None
        counts = np.zeros(3, np.int64)
        for index in indices:
            image, label = self.held_out[index]
            ranked = np.argsort(-predictor.classify(image).scores, kind="stable")[:5]
            counts += (1, ranked[0] == label, label in ranked)
        return counts

    def scores(self, counts: NDArray[np.int64]) -> ClassifyScores:
        return ClassifyScores(*map(int, counts))


_LATE = 0.75  # share of a run after which crops for upscaling have their late size


class UpscaleJob:
    """Super-resolution or, at scale 1, restoration: pairs of crops, an L1 or Charbonnier loss, PSNR of the luma."""

    def __init__(self, root: str | Path, config: TrainConfig, progress: Progress) -> None:
        self.labels, self.preprocess = Labels(), Preprocess(upscale.MEAN, upscale.STD)
        self.scale: int = config.options.get("scale", upscale.DEFAULT_SCALE)
        if self.scale not in upscale.SCALES:
            raise ConfigError(f"scale={self.scale!r}: give one of {', '.join(map(str, upscale.SCALES))}")
        late = config.late_crop if any(config.late_crop) else config.crop
        for crop in (config.crop, late):
            if any(side % self.scale for side in crop):
                raise ConfigError(f"crop={list(crop)}: sides of the large image, divisible by the scale {self.scale}")
        opened = partial(SuperResolutionData.open, root, scale=self.scale, small=not config.degradation)
        self.data = opened(config.splits)
        self.held_out = opened([config.val_split]) if config.val_split else None
        if self.scale == 1 and not config.degradation and any(small is None for small, _ in self.data.pairs):
            raise ConfigError("scale 1 repairs images: say what from, such as degradation: {noise: [5, 50]}")
        self.degradation = config.degradation
        self.validation = len(self.held_out or ())
        self.read = Cached(self.data, config.cache_gib, config.max_bad, progress)
        self.augment = UpscaleAugment(config.crop, self.scale, config.flip, {**config.degradation})
        self.late_augment = dataclasses.replace(self.augment, crop=late)
        self.criterion = config.pixel_loss

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        augment = self.augment if done < _LATE else self.late_augment
        small, large = augment(*self.read[index], rng=rng)
        image, target = (torch.from_numpy(prepare(part, self.preprocess)[0]) for part in (small, large))
        return image, target

    def trainee(self, model: nn.Module) -> nn.Module:
        return model

    def weight(self, target: Tensor) -> Tensor:
        return torch.tensor(float(target.numel()), device=target.device)

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        error = trainee(image) - target
        error = error.to(torch.promote_types(error.dtype, torch.float32))
        return error.abs().mean() if self.criterion == "l1" else (error.square() + _CHARBONNIER**2).sqrt().mean()

    def score(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        """Images, and sums of PSNR and SSIM in millionths."""
        assert self.held_out is not None
        counts = np.zeros(3, np.int64)
        for index in indices:
            small, large = self.held_out[index]
            if self.degradation:
                small = degraded(large, self.scale, {**self.degradation}, np.random.default_rng(index))
            psnr, ssim = fidelity(predictor.upscale(small).image, large, self.scale)
            counts += (1, round(1e6 * min(psnr, _EQUAL)), round(1e6 * ssim))
        return counts

    def scores(self, counts: NDArray[np.int64]) -> UpscaleScores:
        images, *sums = map(int, counts)
        return UpscaleScores(images, *(total / 1e6 / images for total in sums))


JOBS: Mapping[str, Callable[[str | Path, TrainConfig, Progress], Job]] = {
    "segment": SegmentJob,
    "classify": ClassifyJob,
    "upscale": UpscaleJob,
    "prompt": prompt_job,
}


def _opened(root: str | Path, config: TrainConfig, task: Task) -> tuple[Labelled, Labelled | None]:
    """Training and validation samples."""
    data = open_labelled(root, config.splits, task)
    held_out = open_labelled(root, [config.val_split], task) if config.val_split else None
    if held_out and held_out.labels != data.labels:
        raise DataError(f"{root}: training and validation splits have different classes")
    return data, held_out
