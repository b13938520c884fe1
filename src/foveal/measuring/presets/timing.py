"""Helpers of all presets: networks as they are deployed, their times, the settings that the times depend on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ...errors import ConfigError
from ...factory.create import create_model
from ...layers.optimize import optimize
from ...prediction.devices import cpu_count
from ...progress import Progress
from .. import machine
from ..benchmark import K, interleaved

TIMM_NETWORKS = ("resnet50",)  #: networks that come from timm
LOG_AXES = {"xscale": "log", "yscale": "log"}


def build_network(name: str) -> nn.Module:
    """Build a classifier of Foveal or timm with random weights, in evaluation mode."""
    if name in TIMM_NETWORKS:
        import timm

        return timm.create_model(name).eval()
    return create_model(name, "classify").eval()


def build_deployed(name: str) -> nn.Module:
    """Build a network with random weights as it would be deployed: norms folded, kernels channels last."""
    if name not in TIMM_NETWORKS:
        return optimize(build_network(name))
    from torch.fx.experimental.optimization import fuse  # for networks that are not built from our layers

    return fuse(build_network(name)).requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def run_network(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The forward pass, which is what the presets time."""
    return model(x)


def prepare_torch(threads: int | None, *positive: int) -> int:
    """Check the numbers of a request, and set torch's number of threads (default: all cores) and its seed.

    Args:
        threads: number of threads.
        *positive: further numbers of the request, to check.

    Returns:
        The number of threads.

    Raises:
        ConfigError: a number is below 1.
    """
    threads = cpu_count() if threads is None else threads
    if (smallest := min(threads, *positive)) < 1:
        raise ConfigError(f"bench: {smallest}: threads, rounds and sizes must be positive")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return threads


def time_in_turns(
    runs: Mapping[K, Callable[[], object]], rounds: int, warmup: int, progress: Progress | None
) -> dict[K, list[float]]:
    """Time candidates that take turns; seconds per candidate, one entry per round."""
    with (progress or Progress(enabled=False)).bar("time", len(runs) * (rounds + warmup)) as bar:
        return interleaved(runs, rounds=rounds, warmup=warmup, after=bar.advance)


def p50_ms(seconds: Sequence[float]) -> float:
    """Median of times in seconds, in milliseconds."""
    return round(1e3 * float(np.median(seconds)), 3)


def describe_settings(threads: int, rounds: int) -> str:
    """The settings that times depend on, in one line."""
    counts = f"{threads} thread{'s' if threads > 1 else ''}, {rounds} round{'s' if rounds > 1 else ''}"
    return f"float32, {counts}, torch {torch.__version__}, {machine.one_line()}"


#: Student's t for a confidence of 95 %, two-sided, by degrees of freedom from 1; beyond them, that of infinitely many.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Exponent(NamedTuple):
    """A power law, fitted by least squares between logarithms."""

    value: float
    error: float  #: half of the interval that has the exponent with 95 % confidence; NaN with two points
    points: int


def fit_exponent(pixels: Sequence[float], costs: Sequence[float]) -> Exponent | None:
    """The exponent of a cost in the number of pixels; ``None`` with fewer than two points."""
    if len(pixels) < 2:
        return None
    x, y = np.log(pixels), np.log(np.maximum(costs, np.finfo(float).tiny))
    slope, intercept = np.polyfit(x, y, 1)
    freedom = len(x) - 2
    if not freedom:
        return Exponent(float(slope), math.nan, 2)
    residual = float(np.sum((y - slope * x - intercept) ** 2)) / freedom
    quantile = _T[freedom - 1] if freedom <= len(_T) else 1.96
    return Exponent(float(slope), quantile * math.sqrt(residual / float(np.sum((x - x.mean()) ** 2))), len(x))
