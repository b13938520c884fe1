"""Train super-resolution and restoration: pairs of crops, pixel losses, PSNR."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.degradation import degraded
from ..data.super_resolution import SuperResolutionData
from ..data.transforms import UpscaleAugment
from ..errors import ConfigError
from ..evaluation.fidelity import UpscaleScores, fidelity
from ..images.preparing import prepare
from ..info import Labels, Preprocess
from ..prediction.predictor import Predictor
from ..progress import Progress
from ..tasks import upscale
from .cache import Cached
from .common_settings import DEFAULT_CROP
from .upscale_settings import UpscaleSettings

_LARGEST_PSNR = 100.0  # dB, credited to an identical image, whose PSNR is infinite
_CHARBONNIER = 1e-3  # epsilon of the Charbonnier loss, on the 0..1 scale of images
_LATE = 0.75  # share of a run after which the crops have their late size

#: The losses by name, of the differences between predicted and true pixels, ``(B, C, H, W)``.
PIXEL_LOSSES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda error: error.abs().mean(),
    "charbonnier": lambda error: (error.square() + _CHARBONNIER**2).sqrt().mean(),
    "mse": lambda error: error.square().mean(),
}


class UpscaleJob:
    """Super-resolution or, at scale 1, restoration: pairs of crops, a loss of pixels, PSNR of the luma."""

    def __init__(self, root: str | Path, config: UpscaleSettings, progress: Progress) -> None:
        self.labels, self.preprocess = Labels(), Preprocess(upscale.MEAN, upscale.STD)
        self.scale = _scale(config)
        crop = config.crop or DEFAULT_CROP
        _check_divisible("crop", crop, self.scale)
        _check_divisible("late_crop", config.late_crop, self.scale)
        open_split = partial(SuperResolutionData.open, root, scale=self.scale, small=not config.degradation)
        self.data = open_split(config.splits)
        self.held_out = open_split([config.val_split]) if config.val_split else None
        if self.scale == 1 and not config.degradation and any(small is None for small, _ in self.data.pairs):
            raise ConfigError(
                "at scale 1 a model repairs images: say how to degrade them, for example degradation: {noise: [5, 50]}"
            )
        self.degradation = config.degradation
        self.validation = len(self.held_out or ())
        self.read = Cached(self.data, config.cache_gib, config.max_bad, progress)
        self.augment = UpscaleAugment(crop, self.scale, config.flip, {**config.degradation})
        late_crop = config.late_crop if any(config.late_crop) else crop
        self.late_augment = dataclasses.replace(self.augment, crop=late_crop)
        self.pixel_loss = config.pixel_loss

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        augment = self.augment if done < _LATE else self.late_augment
        small, large = augment(*self.read[index], rng=rng)
        image, target = (torch.from_numpy(prepare(part, self.preprocess)[0]) for part in (small, large))
        return image, target

    def trainee(self, model: nn.Module) -> nn.Module:
        return model

    def image_network(self, model: nn.Module) -> nn.Module:
        return model

    def weight(self, target: Tensor) -> Tensor:
        return torch.tensor(float(target.numel()), device=target.device)

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        error = trainee(image) - target
        error = error.to(torch.promote_types(error.dtype, torch.float32))
        return PIXEL_LOSSES[self.pixel_loss](error)

    def count(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        """Number of images, and the sums of their PSNR and SSIM in millionths."""
        assert self.held_out is not None
        counts = np.zeros(3, np.int64)
        for index in indices:
            small, large = self.held_out[index]
            if self.degradation:
                small = degraded(large, self.scale, {**self.degradation}, np.random.default_rng(index))
            psnr, ssim = fidelity(predictor.upscale(small).image, large, self.scale)
            counts += (1, round(1e6 * min(psnr, _LARGEST_PSNR)), round(1e6 * ssim))
        return counts

    def scores(self, counts: NDArray[np.int64]) -> UpscaleScores:
        images, *sums = map(int, counts)
        return UpscaleScores(images, *(total / 1e6 / images for total in sums))

    def only_class(self, counts: NDArray[np.int64]) -> str:
        return ""


def _scale(config: UpscaleSettings) -> int:
    """The model's scale factor, from the options of ``create_model``."""
    scale = config.options.get("scale", upscale.DEFAULT_SCALE)
    if scale not in upscale.SCALES:
        raise ConfigError(f"scale={scale!r}: give one of {', '.join(map(str, upscale.SCALES))}")
    return scale


def _check_divisible(name: str, crop: tuple[int, int], scale: int) -> None:
    if any(side % scale for side in crop):
        raise ConfigError(f"{name}={list(crop)}: give two sides of the large image, divisible by the scale {scale}")
