"""The settings of classification runs."""

from __future__ import annotations

from dataclasses import dataclass

from .common_settings import CommonSettings
from .settings import Range, below, setting


@dataclass(frozen=True)
class ClassifySettings(CommonSettings):
    """The common settings and those of classification."""

    area: tuple[float, float] = setting(
        (0.25, 1.0),
        "Range of the share of the image's area that a random crop covers.",
        Range("two numbers above 0 and at most 1, the smaller one first", lambda value: 0 < value[0] <= value[1] <= 1),
    )
    crop_ratio: float | None = setting(
        None,
        "When evaluating: side of the centre crop divided by the short side of the resized image. Default: with "
        "crop, 0.875; without, that of the weights or else of the architecture.",
        Range("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    )
    sizes: tuple[int, ...] = setting(
        (),
        "Sides of square training crops, for example [96, 128, 160]; one is drawn for each batch. Empty: crop, the "
        "size of evaluations in either case.",
        Range("sides of 32 or more", lambda value: all(side >= 32 for side in value)),
        phased=True,
    )
    label_smoothing: float = setting(0.0, "Share of the target that is spread over the other classes.", below(1))
