"""Plots of quality against latency, from the rows of the headline comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import InputError
from ...images.figures import new_figure, write_figure
from ..pairwise import best_of
from ..quality import quality_of
from ..row_file import Row
from .pairs import GROUPS, PEERS


class Point(NamedTuple):
    """A model in a plot.

    Attributes:
        name: of the model.
        ours: whether it is ours.
        ms: median time in its fastest runtime, of the fastest row.
        quality: score.
        metric: of the score.
        source: of the score.
        command: that measures the time.
    """

    name: str
    ours: bool
    ms: float
    quality: float
    metric: str
    source: str
    command: str


class Plot(NamedTuple):
    """Points of one task, of the same metric, size, threads and number type."""

    title: str
    points: list[Point]


def plots_of(rows: Iterable[Row]) -> list[Plot]:
    """A plot for each group that has points: float32 on the CPU, one image.

    The size and the number of threads are those with the most rows; of several, the largest size with the most threads.
    """
    plots = []
    measured = [row for row in rows if "candidates" in row]
    for group in GROUPS:
        own = of_one_machine([row for row in measured if row["key"]["group"] == group and _is_plain(row)])
        if not own:
            continue
        settings = [(_pixels(row), row["key"]["threads"]) for row in own]
        pixels, threads = max(settings, key=lambda setting: (settings.count(setting), setting))
        kept = [row for row, setting in zip(own, settings, strict=True) if setting == (pixels, threads)]
        points = _points(kept)
        if points:
            key = kept[0]["key"]
            size = key["size"] or "each at its own size"
            where = f", machine {label}" if (label := kept[0].get("machine")) else ""
            title = f"{group}, {size}, {threads} thread{'s' if threads > 1 else ''}, float32{where}"
            plots.append(Plot(title, points))
    return plots


def of_one_machine(rows: Sequence[Row]) -> list[Row]:
    """The rows of the machine that has most of them, since times of two machines do not compare."""
    machines = [row.get("machine", "") for row in rows]
    fullest = max(machines, key=machines.count, default="")
    return [row for row, label in zip(rows, machines, strict=True) if label == fullest]


def _is_plain(row: Row) -> bool:
    key = row["key"]
    return key["dtype"] == "float32" and key["device"] == "cpu" and key["batch"] == 1


def _pixels(row: Row) -> int:
    """Pixels of an image of our model, or of the peer where each has a size of its own."""
    height, _, width = (row["key"]["size"] or row["key"]["peer_size"]).partition("x")
    return int(height) * int(width)


def _points(rows: Iterable[Row]) -> list[Point]:
    """One point per model whose quality is known: its fastest time in any row."""
    found: dict[str, Point] = {}
    for row in rows:
        key = row["key"]
        group = GROUPS[key["group"]]
        size = tuple(map(int, key["size"].split("x"))) if key["size"] and not group.peer_size else None
        quality = quality_of(key["ours"], group.task, size if len(group.sizes) == 1 else None)  # pyright: ignore[reportArgumentType]
        peer = PEERS.get(key["peer"])
        candidates = []
        if quality is not None:
            candidates.append((key["ours"], "ours", quality.value, quality.metric, quality.source))
        if peer is not None and peer.quality is not None:
            candidates.append((key["peer"], "peer", peer.quality, peer.metric, peer.source))
        for name, side, value, metric, source in candidates:
            if (best := best_of(row["candidates"], side)) is None:
                continue
            ms, runtime = best
            if name not in found or ms < found[name].ms:
                command = command_of(row, side, runtime)
                found[name] = Point(name, side == "ours", ms, value, metric, source, command)
    metrics = [point.metric for point in found.values()]
    usual = max(metrics, key=metrics.count) if metrics else ""
    return sorted((point for point in found.values() if point.metric == usual), key=lambda point: point.ms)


def command_of(row: Row, side: str, runtime: str) -> str:
    """The command that times one side of a row in one runtime."""
    key = row["key"]
    group = GROUPS[key["group"]]
    ref = key["ours"] if side == "ours" else PEERS[key["peer"]].ref
    size = key["size"] if side == "ours" else key["peer_size"]
    settings = f"@runtime={'torch' if runtime == 'eager' else runtime}"
    options = f" --size {size}" if size else ""
    options += f" --task {group.task}" if side == "ours" and "." not in ref else ""
    options += f" --batch {key['batch']}" if key["batch"] > 1 else ""
    options += f" --dtype {key['dtype']}" if key["dtype"] != "float32" else ""
    return f"foveal bench {ref}{settings}{options} --threads {key['threads']}"


def draw_quality(rows: Iterable[Row], path: str | Path) -> None:
    """Draw quality against latency, one panel for each task.

    Raises:
        InputError: no row has a model whose quality is known.
    """
    plots = plots_of(rows)
    if not plots:
        raise InputError("no points to draw: no row has a model whose quality is known")
    columns = min(len(plots), 2)
    lines = -(-len(plots) // columns)
    figure = new_figure(7.5 * columns, 5 * lines)
    panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axes in panels[len(plots) :]:
        axes.remove()
    for axes, plot in zip(panels, plots, strict=False):
        for ours, marker, label in ((True, "o", "Foveal's"), (False, "s", "others")):
            points = [point for point in plot.points if point.ours == ours]
            if points:
                axes.plot([p.ms for p in points], [p.quality for p in points], marker, label=label)
            for point in points:  # names of ours stand on the left of their points
                side, place = ("right", (-4, 4)) if ours else ("left", (4, 4))
                where = (point.ms, point.quality)
                axes.annotate(point.name, where, xytext=place, textcoords="offset points", fontsize=7, ha=side)
        axes.margins(x=0.2)
        axes.set(xscale="log", xlabel="ms, fastest runtime of each", ylabel=plot.points[0].metric)
        axes.set_title(plot.title, fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    write_figure(figure, path, dpi=90)
