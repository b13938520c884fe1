"""Classifiers side by side: size, cost, time, memory, and the accuracy that was published."""

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
from .timing import _LOG, OF_TIMM, built, deployed, p50_ms, prepared, run, settings, timed

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
    """A published top-1 accuracy on ImageNet: not measured here."""

    percent: float
    source: str


#: Of networks for whose default conventions the registry has no weights.
_QUOTED = {
    "resnet50": Quoted(76.13, "torchvision, IMAGENET1K_V1"),
    "efficientnet_b0": Quoted(77.69, "torchvision, IMAGENET1K_V1"),
}


@dataclass(frozen=True)
class Architecture:
    """Figures of one classifier.

    Attributes:
        name: of :func:`foveal.create_model`, or of timm.
        params: number of weights.
        macs: multiply-accumulates of one image.
        p50_ms: median time of one batch.
        ratio: its time over the first network's, median over the rounds.
        peak_mib: memory of its weights and of what running it once adds to a process of its own.
        top1: published top-1 on ImageNet at this size, in percent: quoted.
        top1_source: whose weights that is of.
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
    """Classifiers side by side.

    Attributes:
        rows: one per network; the first is the reference of the ratios.
        left_out: networks that could not be built, with the reason.
        size: (H, W) of the images.
        batch: images per run.
        threads: of torch.
        rounds: timed runs of each.
        machine: processor, cores, system and versions.
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
        """What the figures depend on, and what is missing, in lines."""
        first = f"{self.size[0]}x{self.size[1]}, batch {self.batch}, {settings(self.threads, self.rounds)}"
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
        names: of :func:`foveal.create_model`; ``resnet50`` is timm's, and left out where timm is missing.
        size: (H, W) of the images.
        batch: images per run.
        threads: of torch; default: all cores.
        rounds: timed runs of each.
        progress: where to show progress; default: nowhere.

    Raises:
        ConfigError: an unknown or repeated name, or numbers that are not positive.
        DependencyError: nothing is left without timm.
    """
    threads = prepared(threads, rounds, batch, *size)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"names={', '.join(names)!r}: give one or more different networks")
    left_out = {name: "needs timm: pip install timm" for name in names if name in OF_TIMM and not _has_timm()}
    names = [name for name in names if name not in left_out]
    if not names:
        raise DependencyError(f"{', '.join(left_out)}: needs timm: pip install timm")
    costs = {name: _counted(name, size) for name in names}
    image = torch.randn(batch, 3, *size)
    runs = {name: partial(run, deployed(name), image) for name in names}
    times = timed(runs, rounds, 2, progress)
    rows: list[Architecture] = []
    with (progress or Progress(enabled=False)).bar("memory", len(names)) as bar:
        for name in names:
            grown = peak_memory(_deploying, name, batch, *size).grown
            quoted = published_top1(name, size)
            rows.append(
                Architecture(
                    name=name,
                    params=costs[name].params,
                    macs=costs[name].macs,
                    p50_ms=p50_ms(times[name]),
                    ratio=round(ratio(times[name], times[names[0]]), 4),
                    peak_mib=None if grown is None else round(4 * costs[name].params / 2**20 + grown, 1),
                    top1=quoted.percent if quoted else None,
                    top1_source=quoted.source if quoted else "",
                )
            )
            bar.advance(name)
    return ArchitectureReport(tuple(rows), left_out, size, batch, threads, rounds, machine.describe())


def _has_timm() -> bool:
    try:
        import timm  # noqa: F401
    except ImportError:
        return False
    return True


def _counted(name: str, size: tuple[int, int]) -> Costs:
    with torch.device("meta"):
        return count(built(name), 3, size)


@torch.inference_mode()
def _deploying(name: str, batch: int, height: int, width: int) -> Callable[[], object]:
    """One run, for :func:`peak_memory`: the network is built, and another has run, so that torch is awake."""
    torch.set_num_threads(1)
    model, image = deployed(name), torch.randn(batch, 3, height, width)
    run(deployed("mobilenetv3_small_100"), torch.randn(1, 3, 32, 32))
    ctypes.CDLL(None).malloc_trim(0)  # what building took and freed must not hide what the run takes
    return partial(run, model, image)


def published_top1(name: str, size: tuple[int, int]) -> Quoted | None:
    """What was published for a classifier on images of ``size`` (H, W), ``None`` where nothing is known."""
    if name in _QUOTED:
        return _QUOTED[name] if size == (224, 224) else None
    for entry in variants()[name][1].published:
        if (entry.task, entry.metric) == ("classify", "top-1") and size == (int(entry.size), int(entry.size)):
            return Quoted(entry.value, f"{entry.source}, {entry.tag}")
    return None


def draw_architectures(report: ArchitectureReport, path: str | Path) -> None:
    """Time by multiply-accumulates on the left, quoted accuracy by time on the right."""
    figure = new_figure(12, 4.4)
    left, right = figure.subplots(1, 2)
    for i, row in enumerate(report.rows):
        style = {"color": f"C{i % 10}", "marker": "os^"[i % 3], "linestyle": ""}
        left.plot(row.macs / 1e9, row.p50_ms, label=row.name, **style)
        if row.top1 is not None:
            right.plot(row.p50_ms, row.top1, **style)
    left.set(**_LOG, xlabel="GMACs", ylabel="ms")
    right.set(xscale="log", xlabel="ms", ylabel="top-1 on ImageNet, %, as published")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    write_figure(figure, path, dpi=90)
