"""The settings of super-resolution and restoration runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..data.degradation_ranges import LIMITS_TEXT, DegradationName, within_limits
from .common_settings import CommonSettings
from .settings import Range, setting


@dataclass(frozen=True)
class UpscaleSettings(CommonSettings):
    """The common settings and those of super-resolution and restoration."""

    late_crop: tuple[int, int] = setting(
        (0, 0),
        "Height and width of the crops of the large image in the last quarter of the run. 0, 0: those of crop.",
        Range("0 and 0, or two sides of 32 or more", lambda value: value == (0, 0) or min(value) >= 32),
    )
    degradation: dict[DegradationName, tuple[float, float]] = setting(  # noqa: RUF009 (a field)
        {},
        "Ranges of what degrades the small image: blur (deviation in pixels of the large image), noise (deviation in "
        "levels of 0 to 255), jpeg (quality). Empty: bicubic small images, or those of the data set.",
        Range(LIMITS_TEXT, within_limits),
    )
    pixel_loss: Literal["l1", "charbonnier", "mse"] = setting(
        "l1",
        "Loss between the predicted and the true pixels; mse is what PSNR measures, for a last phase.",
        phased=True,
    )
