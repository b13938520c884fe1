"""The ranges of degradations for super-resolution and restoration, and their check. It imports no NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..errors import ConfigError, nearest

#: What :mod:`foveal.data.degradation` does to images.
DegradationName = Literal["blur", "noise", "jpeg"]

LIMITS = {"blur": (0, 20), "noise": (0, 255), "jpeg": (1, 100)}
LIMITS_TEXT = "ranges, the smaller number first, within " + ", ".join(
    f"{name} {low} to {high}" for name, (low, high) in LIMITS.items()
)


def within_limits(ranges: Mapping[str, Any]) -> bool:
    """Whether all ranges are pairs of numbers within the limits."""
    return all(LIMITS[name][0] <= low <= high <= LIMITS[name][1] for name, (low, high) in ranges.items())


def checked_ranges(ranges: Any, source: str) -> dict[str, tuple[float, float]]:
    """Ranges that a caller or a file gives, by name.

    Args:
        ranges: what is given.
        source: where it comes from, for the message.

    Raises:
        ConfigError: an unknown name, or other values than ranges within the limits.
    """
    if isinstance(ranges, Mapping):
        for name in ranges:
            if name not in LIMITS:
                raise ConfigError(f"{source}: unknown name {str(name)!r:.80}{nearest(str(name)[:80], LIMITS)}")
        try:
            if within_limits(ranges):
                return {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
        except (TypeError, ValueError):
            pass
    raise ConfigError(f"{source}: {str(ranges)[:80]}: give {LIMITS_TEXT}")
