"""Compare classifiers: parameters, multiply-accumulates, time, memory, and their published accuracy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...errors import ConfigError, DependencyError
from ...images.figures import new_figure, write_figure
from ...models.registry import variants
from ...progress import Progress
from .. import machine
from ..benchmark import ratio
from ..costs import Costs, count
from ..memory import peak_memory
from .timing import (
    LOG_AXES,
    TIMM_NETWORKS,
    build_deployed,
    build_network,
    describe_settings,
    p50_ms,
    prepare_torch,
    run_network,
    time_in_turns,
)

ARCHITECTURES = (
    "resnet50",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "efficientvit_m0",
    "efficientvit_m5",
    "efficientvit_b0",
    "efficientvit_b1",
    "efficientvit_b2",
    "efficientvit_l1",
    "mambavision_t",
)


class Quoted(NamedTuple):
    """A published top-1 accuracy on ImageNet; it is not measured here."""

    percent: float
    source: str


#: For networks of which the registry has no weights with their default epsilon and padding.
_QUOTED = {
    "resnet50": Quoted(76.13, "torchvision, IMAGENET1K_V1"),
    "efficientnet_b0": Quoted(77.69, "torchvision, IMAGENET1K_V1"),
}


@dataclass(frozen=True)
class Architecture:
    """Figures of one classifier.

    Attributes:
        name: name in :func:`foveal.create_model`, or in timm.
        params: number of weights.
        macs: multiply-accumulates for one image.
        p50_ms: median time of one batch.
        ratio: its time over the first network's time, median over the rounds.
        peak_mib: memory of its weights, plus what one run adds to a process of its own.
        top1: published top-1 accuracy on ImageNet at this size, in percent; quoted.
        top1_source: who published it, and for which weights.
    """

    name: str
    params: int
    macs: int
    p50_ms: float
    ratio: float
    peak_mib: float | None
    top1: float | None
    top1_source: str


@dataclass(frozen=True)
class ArchitectureReport:
    """Figures of all classifiers.

    Attributes:
        rows: one per network; ratios are relative to the first.
        left_out: networks that could not be built, each with the reason.
        size: (H, W) of the images.
        batch: images per run.
        threads: threads of torch.
        rounds: timed runs of each network.
        machine: processor, cores, operating system and versions.
    """

    rows: tuple[Architecture, ...]
    left_out: dict[str, str]
    size: tuple[int, int]
    batch: int
    threads: int
    rounds: int
    machine: dict[str, str | int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> list[tuple[str, ...]]:
        """Header and one row per network, as text."""
        header = ("network", "params", "MACs", "p50 ms", "ratio", "peak MiB", "top-1", "top-1 of")
        rows = [
            (
                row.name,
                f"{row.params / 1e6:.2f} M",
                f"{row.macs / 1e9:.3f} G",
                f"{row.p50_ms:.1f}",
                f"{row.ratio:.2f}",
                "" if row.peak_mib is None else f"{row.peak_mib:.1f}",
                "" if row.top1 is None else f"{row.top1:.1f} %",
                row.top1_source,
            )
            for row in self.rows
        ]
        return [header, *rows]

    def notes(self) -> list[str]:
        """The settings that the figures depend on, and the networks that are missing, in lines."""
        first = f"{self.size[0]}x{self.size[1]}, batch {self.batch}, {describe_settings(self.threads, self.rounds)}"
        return [first, *(f"{name} left out: {reason}" for name, reason in self.left_out.items())]

    def draw(self, path: str | Path) -> None:
        """Write a PNG: time by MACs, and quoted accuracy by time."""
        draw_architectures(self, path)


def architectures(
    *,
    names: Sequence[str] = ARCHITECTURES,
    size: tuple[int, int] = (224, 224),
    batch: int = 1,
    threads: int | None = None,
    rounds: int = 20,
    progress: Progress | None = None,
) -> ArchitectureReport:
    """Compare classifiers with random weights, as they are deployed: batch norms folded, kernels channels last.

    Args:
        names: names in :func:`foveal.create_model`; ``resnet50`` is timm's and is left out where timm is missing.
        size: (H, W) of the images.
        batch: images per run.
        threads: threads of torch; default: all cores.
        rounds: timed runs of each network.
        progress: shows progress; default: none is shown.

    Raises:
        ConfigError: an unknown or repeated name, or numbers that are not positive.
        DependencyError: timm is missing and all networks come from it.
    """
    threads = prepare_torch(threads, rounds, batch, *size)
    names, left_out = _available(names)
    costs = {name: _count(name, size) for name in names}
    image = torch.randn(batch, 3, *size)
    runs = {name: partial(run_network, build_deployed(name), image) for name in names}
    times = time_in_turns(runs, rounds, 2, progress)
    rows: list[Architecture] = []
    with (progress or Progress(enabled=False)).bar("memory", len(names)) as bar:
        for name in names:
            grown = peak_memory(_prepare_run, name, batch, *size).grown
            rows.append(_row(name, size, costs[name], times[name], times[names[0]], grown))
            bar.advance(name)
    return ArchitectureReport(tuple(rows), left_out, size, batch, threads, rounds, machine.describe())


def _available(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The networks that can be built, and for each of the others the reason."""
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"names={', '.join(names)!r}: give one or more different networks")
    left_out = {name: "needs timm: pip install timm" for name in names if name in TIMM_NETWORKS and not _has_timm()}
    available = [name for name in names if name not in left_out]
    if not available:
        raise DependencyError(f"{', '.join(left_out)}: needs timm: pip install timm")
    return available, left_out


def _row(
    name: str,
    size: tuple[int, int],
    costs: Costs,
    times: Sequence[float],
    reference: Sequence[float],
    grown: float | None,
) -> Architecture:
    quoted = published_top1(name, size)
    return Architecture(
        name=name,
        params=costs.params,
        macs=costs.macs,
        p50_ms=p50_ms(times),
        ratio=round(ratio(times, reference), 4),
        peak_mib=None if grown is None else round(4 * costs.params / 2**20 + grown, 1),
        top1=quoted.percent if quoted else None,
        top1_source=quoted.source if quoted else "",
    )


def _has_timm() -> bool:
    try:
        import timm  # noqa: F401
    except ImportError:
        return False
    return True


def _count(name: str, size: tuple[int, int]) -> Costs:
    with torch.device("meta"):
        return count(build_network(name), 3, size)


@torch.inference_mode()
def _prepare_run(name: str, batch: int, height: int, width: int) -> Callable[[], object]:
    """One run of a network, for :func:`peak_memory`.

    Another network runs first, so that what torch allocates once does not count.
    """
    torch.set_num_threads(1)
    model, image = build_deployed(name), torch.randn(batch, 3, height, width)
    run_network(build_deployed("mobilenetv3_small_100"), torch.randn(1, 3, 32, 32))
    ctypes.CDLL(None).malloc_trim(0)  # memory that building took and freed must not hide what the run takes
    return partial(run_network, model, image)


def published_top1(name: str, size: tuple[int, int]) -> Quoted | None:
    """The published accuracy of a classifier on images of ``size`` (H, W), ``None`` where none is known."""
    if name in _QUOTED:
        return _QUOTED[name] if size == (224, 224) else None
    for entry in variants()[name][1].published:
        if entry.metric == "top-1" and size == (int(entry.size), int(entry.size)):
            return Quoted(entry.value, f"{entry.source}, {entry.tag}")
    return None


def draw_architectures(report: ArchitectureReport, path: str | Path) -> None:
    """Draw time by multiply-accumulates on the left, quoted accuracy by time on the right."""
    figure = new_figure(12, 4.4)
    left, right = figure.subplots(1, 2)
    for i, row in enumerate(report.rows):
        style = {"color": f"C{i % 10}", "marker": "os^"[i % 3], "linestyle": ""}
        left.plot(row.macs / 1e9, row.p50_ms, label=row.name, **style)
        if row.top1 is not None:
            right.plot(row.p50_ms, row.top1, **style)
    left.set(**LOG_AXES, xlabel="GMACs", ylabel="ms")
    right.set(xscale="log", xlabel="ms", ylabel="top-1 on ImageNet, %, as published")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    write_figure(figure, path, dpi=90)
