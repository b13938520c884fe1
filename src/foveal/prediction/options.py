"""How a predictor treats one image, and which of these options a model has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ConfigError, nearest
from ..info import ModelInfo
from ..progress import Report
from ..task import find_task

_SCALES = (0.1, 4.0)  # least and largest side of a copy, relative to the image
_MOST_SCALES = 16


@dataclass(frozen=True)
class Options:
    """How a predictor treats one image.

    Attributes:
        tile: side of the tiles; ``None``: the whole image at once, or the default of upscaling.
        overlap: pixels that neighbouring tiles share; ``None``: the default of the task.
        exact: upscaling: whether tiles give the result of the whole image.
        flip: segmentation: whether the result is the mean over the image and its mirror image.
        scales: segmentation: sides of the copies whose mean is the result, relative to the network's usual input.
        report: told the share of the image that is done.
    """

    tile: int | None = None
    overlap: int | None = None
    exact: bool = False
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    report: Report | None = None

    @classmethod
    def of(cls, options: dict[str, Any]) -> Options:
        """Options by name; ``None`` stands for the default.

        Raises:
            ConfigError: scales that cannot be used.
            TypeError: an option that does not exist.
        """
        names = [each.name for each in fields(cls)]
        if unknown := next((name for name in options if name not in names), None):
            raise TypeError(f"unknown option {unknown!r}{nearest(unknown, names)}")
        given = {name: value for name, value in options.items() if value is not None}
        if "scales" in given:
            given["scales"] = check_scales(given["scales"])
        return cls(**given)

    def check(self, info: ModelInfo, batch_size: int | None = None) -> None:
        """Refuse options that a model does not have.

        Args:
            info: of the model.
            batch_size: how many images may run at once; ``None``: not given.

        Raises:
            ConfigError: one line about the option.
        """
        task = find_task(info.task)
        if self.exact and "scale" not in info.options:
            other = f": foveal.stream({info.ref!r}, image, out) computes images in pieces" if task.labels_pixels else ""
            raise ConfigError(f"exact tiles are for upscaling; {info.ref} is for {info.task!r}{other}")
        if self.augmented and not task.labels_pixels:
            raise ConfigError(
                f"flip, scales: the mean over copies is for segmentation; {info.ref} is for {info.task!r}"
            )
        parts = "tiles" if self.tile is not None else "copies of images" if self.augmented else ""
        if batch_size is not None and batch_size > 1 and (parts or task.takes_prompts):
            what = parts or "images of promptable models"
            raise ConfigError(f"batch_size={batch_size}: {what} run one by one; leave it out")

    @property
    def augmented(self) -> bool:
        """Whether the result is the mean over several copies of the image, or one of another size."""
        return self.flip or self.scales != (1.0,)


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales of test-time augmentation.

    Raises:
        ConfigError: none, too many, or one out of range.
    """
    try:
        numbers = tuple(float(scale) for scale in scales)
    except (TypeError, ValueError):
        numbers = ()
    least, most = _SCALES
    if not 1 <= len(numbers) <= _MOST_SCALES or not all(least <= scale <= most for scale in numbers):
        raise ConfigError(
            f"scales={scales}: give 1 to {_MOST_SCALES} numbers of {least} to {most}, such as 0.75,1,1.25"
        )
    return numbers
