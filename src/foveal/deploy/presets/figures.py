"""The figures of the presets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...plots import new_figure, write_figure

if TYPE_CHECKING:
    from .architectures import ArchitectureReport
    from .attention import AttentionReport
    from .scaling import ScalingReport

_LOG = {"xscale": "log", "yscale": "log"}


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


def draw_attention(report: AttentionReport, path: str | Path) -> None:
    """Time, memory, and traffic counted."""
    figure = new_figure(12.5, 4)
    left, middle, right = figure.subplots(1, 3)
    for row in report.rows:
        left.plot(report.tokens, row.ms, marker="o", label=f"{row.name}, n^{row.time_exponent:.2f}")
        held = [size / 2**20 for size in row.peak_bytes]
        middle.plot(report.tokens, held, marker="o", label=f"{row.name}, n^{row.memory_exponent:.2f}")
    left.set(**_LOG, xlabel="tokens", ylabel="ms, one layer", title="Time")
    middle.set(**_LOG, xlabel="tokens", ylabel="MiB beside input and weights", title="Memory")
    for axes in (left, middle):
        axes.set_xticks(report.tokens, map(str, report.tokens))
        axes.minorticks_off()
    memories, n = [row.memory for row in report.traffic], report.tokens[-1]
    right.plot(memories, [row.standard / n for row in report.traffic], "--", label="standard")
    right.plot(memories, [row.tiled / n for row in report.traffic], marker="o", label="tiled")
    right.set(**_LOG, xlabel="fast memory, numbers", ylabel="numbers moved per token")
    right.set_title(f"Traffic of one head, {n} tokens, counted")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_figure(figure, path, dpi=80)


def draw_scaling(report: ScalingReport, path: str | Path) -> None:
    """Multiply-accumulates by phi on the left, time by multiply-accumulates on the right."""
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
    right.set(**_LOG, xlabel="GMACs, released", ylabel="ms")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    write_figure(figure, path, dpi=90)
