"""What the presets share: networks as they are deployed, and their times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from ...errors import ConfigError
from ...factory.create import create_model
from ...layers.optimize import optimize
from ...progress import Progress
from .. import machine
from ..benchmark import K, interleaved

OF_TIMM = ("resnet50",)  #: networks that are not ours


def built(name: str) -> nn.Module:
    """A classifier with random weights, ours or timm's, in evaluation mode."""
    if name in OF_TIMM:
        import timm

        return timm.create_model(name).eval()
    return create_model(name, "classify").eval()


def deployed(name: str) -> nn.Module:
    """A network with random weights as it would be deployed: norms folded, kernels channels last."""
    if name not in OF_TIMM:
        return optimize(built(name))
    from torch.fx.experimental.optimization import fuse  # for networks that are not built of our layers

    return fuse(built(name)).requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What is timed."""
    return model(x)


def prepared(threads: int | None, *positive: int) -> int:
    """Check numbers, set torch's threads and seed; the number of threads."""
    threads = int(machine.describe()["cores"]) if threads is None else threads
    if min(threads, *positive) < 1:
        raise ConfigError("bench needs positive threads, rounds and sizes")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return threads


def timed(
    runs: Mapping[K, Callable[[], object]], rounds: int, warmup: int, progress: Progress | None
) -> dict[K, list[float]]:
    """Seconds of each round of each candidate, which take turns."""
    with (progress or Progress(enabled=False)).bar("time", len(runs) * (rounds + warmup)) as bar:
        return interleaved(runs, rounds=rounds, warmup=warmup, after=bar.advance)


def p50_ms(seconds: Sequence[float]) -> float:
    """The median, in milliseconds."""
    return round(1e3 * float(np.median(seconds)), 3)


def settings(threads: int, rounds: int) -> str:
    """What times depend on, in a line."""
    counts = f"{threads} thread{'s' if threads > 1 else ''}, {rounds} round{'s' if rounds > 1 else ''}"
    return f"float32, {counts}, torch {torch.__version__}, {machine.one_line()}"


_LOG = {"xscale": "log", "yscale": "log"}
