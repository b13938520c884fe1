"""Compound scaling of EfficientNet: the networks that the formula gives, and the networks that were released."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import ConfigError
from ...factory.create import create_model
from ...images.figures import new_figure, write_figure
from ...models.efficientnet import EFFICIENTNET_COEFFICIENTS, Scale, compound_scale, scaled_config
from ...models.mobilenet import ClassifierHead, MobileNet
from ...progress import Progress
from ...tasks.classify import ClassificationModel
from .. import machine
from ..costs import count
from .timing import (
    LOG_AXES,
    build_deployed,
    describe_settings,
    p50_ms,
    prepare_torch,
    run_network,
    time_in_turns,
)


@dataclass(frozen=True)
class ScaledNetwork:
    """An EfficientNet: its multipliers and its costs.

    Attributes:
        width: multiplier of the channels.
        depth: multiplier of the numbers of blocks.
        resolution: side of its images in pixels.
        params: number of weights.
        macs: multiply-accumulates for one image of that size.
    """

    width: float
    depth: float
    resolution: int
    params: int
    macs: int


@dataclass(frozen=True)
class ScalingRow:
    """One step of compound scaling.

    Attributes:
        phi: compound coefficient; 0 is B0.
        formula: the network that :func:`compound_scale` gives.
        released: EfficientNet-B<phi>, whose multipliers were rounded by hand.
        p50_ms: median time of the released network on one image of its own size.
    """

    phi: int
    formula: ScaledNetwork
    released: ScaledNetwork
    p50_ms: float


@dataclass(frozen=True)
class ScalingReport:
    """EfficientNet by the formula and as released.

    Attributes:
        rows: one per phi.
        threads: threads of torch.
        rounds: timed runs of each network.
        machine: processor, cores, operating system and versions.
    """

    rows: tuple[ScalingRow, ...]
    threads: int
    rounds: int
    machine: dict[str, str | int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> list[tuple[str, ...]]:
        """Header and one row per phi, as text."""
        multipliers = "width, depth, pixels"
        header = ("phi", f"formula: {multipliers}", "params", "GMACs", f"released: {multipliers}", "params", "GMACs")
        rows = []
        for row in self.rows:
            cells = [str(row.phi)]
            for net in (row.formula, row.released):
                cells.append(f"{net.width:.2f}, {net.depth:.2f}, {net.resolution}")
                cells += [f"{net.params / 1e6:.2f} M", f"{net.macs / 1e9:.2f}"]
            rows.append((*cells, f"{row.p50_ms:.1f}"))
        return [(*header, "p50 ms"), *rows]

    def notes(self) -> list[str]:
        """The settings that the figures depend on, in lines."""
        return [
            f"each at its own size, batch 1, {describe_settings(self.threads, self.rounds)}; released networks timed"
        ]

    def draw(self, path: str | Path) -> None:
        """Write a PNG: multiply-accumulates by phi, and time by multiply-accumulates."""
        draw_scaling(self, path)


def scaling(
    *,
    phis: Sequence[int] = tuple(range(8)),
    threads: int | None = None,
    rounds: int = 3,
    progress: Progress | None = None,
) -> ScalingReport:
    """Count EfficientNets by the formula and as released, and time the released ones at their own sizes.

    Args:
        phis: numbers from 0 (B0) to 7 (B7).
        threads: threads of torch; default: all cores.
        rounds: timed runs of each network; few by default, because B7 takes 98 times the multiply-accumulates of B0.
        progress: shows progress; default: none is shown.

    Raises:
        ConfigError: a phi out of range, or numbers that are not positive.
    """
    threads = prepare_torch(threads, rounds)
    names = {phi: f"efficientnet_b{phi}" for phi in phis}
    if not names or not set(names.values()) <= EFFICIENTNET_COEFFICIENTS.keys():
        raise ConfigError(f"phis={tuple(phis)}: give numbers of released EfficientNets, 0 to 7")
    runs = {}
    for name in names.values():
        side = EFFICIENTNET_COEFFICIENTS[name].resolution
        runs[name] = partial(run_network, build_deployed(name), torch.randn(1, 3, side, side))
    times = time_in_turns(runs, rounds, 1, progress)
    rows = []
    for phi, name in names.items():
        formula, released = compound_scale(phi), EFFICIENTNET_COEFFICIENTS[name]
        with torch.device("meta"):
            networks = (
                _scaled_network(formula, _build_scaled(formula)),
                _scaled_network(released, create_model(name).eval()),
            )
        rows.append(ScalingRow(phi, *networks, p50_ms(times[name])))
    return ScalingReport(tuple(rows), threads, rounds, machine.describe())


def _build_scaled(scale: Scale) -> nn.Module:
    """Build the network of these multipliers."""
    config = scaled_config(scale)
    backbone = MobileNet(config)
    return ClassificationModel(backbone, ClassifierHead(backbone.feature_info[-1].channels, config=config)).eval()


def _scaled_network(scale: Scale, model: nn.Module) -> ScaledNetwork:
    return ScaledNetwork(*scale, *count(model, 3, (scale.resolution, scale.resolution)))


def draw_scaling(report: ScalingReport, path: str | Path) -> None:
    """Draw multiply-accumulates by phi on the left, time by multiply-accumulates on the right."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    phis = [row.phi for row in report.rows]
    released = [row.released.macs / 1e9 for row in report.rows]
    left.plot(phis, [row.formula.macs / 1e9 for row in report.rows], "o-", label="formula: 1.2, 1.1, 1.15")
    left.plot(phis, released, "s-", label="released")
    first = released[0] / 2 ** phis[0]
    left.plot(phis, [first * 2**phi for phi in phis], "k:", label="doubling from the first")
    left.set(yscale="log", xlabel="phi", ylabel="GMACs at the network's own resolution")
    left.set_xticks(phis)
    left.legend()
    right.plot(released, [row.p50_ms for row in report.rows], "s-", color="tab:orange")
    for row, macs in zip(report.rows, released, strict=True):
        right.annotate(f"B{row.phi}", (macs, row.p50_ms), xytext=(5, -9), textcoords="offset points")
    right.set(**LOG_AXES, xlabel="GMACs, released", ylabel="ms")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    write_figure(figure, path, dpi=90)
