"""The settings of segmentation runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .common_settings import CommonSettings
from .settings import Range, at_least, between, setting

#: The losses of :mod:`foveal.training.losses`.
LossName = Literal["cross_entropy", "ohem", "focal", "dice", "jaccard", "lovasz", "boundary"]


def _are_weights(value: Any) -> bool:
    numbers = value.values() if isinstance(value, dict) else value
    return isinstance(value, str) or (min(numbers, default=-1) >= 0 and max(numbers) > 0)


@dataclass(frozen=True)
class SegmentSettings(CommonSettings):
    """The common settings and those of segmentation."""

    rare_crop: float = setting(
        0.0,
        "Probability that a crop is placed on a pixel of a class that is drawn by its weight: rare classes more often.",
        between(0, 1),
    )
    loss: dict[LossName, float] = setting(  # noqa: RUF009 (a field)
        {"cross_entropy": 1.0},
        "Factor of each loss by name (foveal.losses). The losses are added; those without a factor are not computed.",
        Range("at least one loss, each with a factor above 0", lambda value: value and min(value.values()) > 0),
    )
    class_weights: tuple[float, ...] | dict[str, float] | Literal["none", "sqrt_median", "median"] = setting(  # noqa: RUF009 (a field)
        "sqrt_median",
        "Weights of the classes in the loss: none; median (median frequency balancing: the rarer, the heavier); "
        "sqrt_median (the square roots of those); a number per class; or numbers by class, 1 for the others.",
        Range("numbers of 0 or more, at least one of them above 0", _are_weights),
        phased=True,
    )
    class_map: str = setting(
        "",
        "YAML file with lines 'class of weights: class of the data'. The classifier starts from that of weights: each "
        "class from the mean of the classes that map to it, and at random if none does. Empty: a classifier for "
        "another number of classes starts at random.",
        needs="weights",
        is_path=True,
    )
    deep_supervision: float = setting(
        0.0, "Weight of the loss of auxiliary classifiers on the two coarsest feature maps. 0: none.", at_least(0)
    )
    teacher_cache: str = setting(
        "",
        "Folder for the teacher's outputs for whole images, computed once; crops, flips and turns are then applied to "
        "the outputs, and changes of colour are not. Empty: the teacher sees each crop as the model does.",
        needs="teacher",
        is_path=True,
    )
