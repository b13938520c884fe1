"""The settings of regression runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .common_settings import CommonSettings
from .settings import Range, setting

#: The losses of :mod:`foveal.training.regression_losses`.
RegressionLossName = Literal["l1", "huber", "silog", "cosine", "gradient"]


@dataclass(frozen=True)
class RegressSettings(CommonSettings):
    """The common settings and those of dense regression."""

    regression_loss: dict[RegressionLossName, float] = setting(  # noqa: RUF009 (a field)
        {},
        "Factor of each loss by name (docs/regression.md); the losses are added. Empty: by the kind of the target, "
        "silog and l1 for depth, cosine for normals, l1 for others.",
        Range("factors above 0", lambda value: not value or min(value.values()) > 0),
    )
