"""Cost laws: how latency and memory of networks grow with the number of pixels, with fitted exponents."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...errors import ConfigError
from ...files import ensure_folder
from ...images.figures import new_figure, write_figure
from ...prediction.devices import cpu_count, free_memory
from ...progress import Progress
from ..pairwise import EAGER, PairRun, measure_apart
from ..peer_files import cache_folder
from ..peers import is_peer
from ..row_file import Row, RowFile
from .headline import check_peers
from .timing import LOG_AXES, Exponent, fit_exponent

KIND = "law"
SIDES = (224, 320, 448, 640, 896, 1280, 1792, 2560, 4096)
#: Sides from which on exponents are fitted: in smaller images, what does not depend on the size counts too much.
FITTED_FROM = 448
#: Exponent of the time above which a network of ours is named.
STEEP = 1.05
#: Classifiers: their heads cost the same at every size.
MODELS = (
    "efficientvit_b0", "efficientvit_b1", "efficientvit_b2", "efficientvit_b3", "efficientvit_l0", "efficientvit_l1",
    "efficientvit_l2", "efficientvit_l3", "efficientvit_m0", "efficientvit_m5", "mobilenetv2_100",
    "mobilenetv3_large_100", "efficientnet_b0", "efficientnet_lite0", "mambavision_t", "tinyvit_5m", "vit_small",
)  # fmt: skip
#: Networks of others with softmax attention: of all positions, and of positions that are averaged first.
SOFTMAX_PEERS = tuple(f"benchmarks.peers.published:{name}" for name in ("mit_b1", "deit_small", "pvt_v2_b2"))


@dataclass(frozen=True)
class LawReport:
    """Latency and memory of networks for growing images.

    Attributes:
        rows: as they are in the file.
        stopped: by model and runtime, why larger images were not measured.
        machine: processor, cores, operating system and versions.
    """

    rows: tuple[Row, ...]
    stopped: dict[str, str]
    machine: dict[str, str | int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> list[tuple[str, ...]]:
        """Header and one row per model and runtime, as text."""
        return law_table(self.rows)

    def notes(self) -> list[str]:
        """What the exponents are, and what is missing, in lines."""
        above = ", ".join(steep(self.rows)) or "none"
        return [
            LAW_NOTE,
            f"ours with an exponent of the time above {STEEP}: {above}",
            *(f"{name}: {why}" for name, why in self.stopped.items()),
        ]

    def draw(self, path: str | Path) -> None:
        """Write a PNG: time, and memory, against the number of pixels."""
        draw_laws(self.rows, path)


LAW_NOTE = (
    f"batch 1, square images; exponents in the number of pixels from {FITTED_FROM}x{FITTED_FROM} up, ± 95 % "
    "confidence; memory is what the first run adds to the process"
)


def cost_laws(
    *,
    models: Sequence[str] = MODELS + SOFTMAX_PEERS,
    sides: Sequence[int] = SIDES,
    threads: int | None = None,
    dtype: str = "float32",
    runtime: str = "auto",
    rounds: int = 7,
    seconds: float = 20.0,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> LawReport:
    """Time networks, and measure the memory that they need, for growing images.

    Args:
        models: names of architectures, and ``module:callable`` for networks of others.
        sides: of the images in pixels.
        threads: threads of each runtime; default: all cores.
        dtype: "float32", or another type that the runtimes have.
        runtime: "auto": torch as it is, and our engine, or ONNX Runtime where that cannot be; or a name of
            :data:`foveal.measuring.pairwise.OUR_RUNTIMES`.
        rounds: timed runs of each at most.
        seconds: time of one run from which on larger images are not measured.
        resume: file of rows, which is continued if it exists.
        progress: shows progress; default: none is shown.

    Raises:
        ConfigError: impossible numbers, or the networks of others are not here.
        DataError: ``resume`` is another file, or was measured on another machine.
    """
    if not models or len(sides) < 2 or min(*sides, rounds, threads or 1) < 1 or seconds <= 0:
        raise ConfigError("cost-laws: give a model, two sides or more, and positive numbers")
    if any(map(is_peer, models)):
        check_peers()
    file, shown = RowFile(resume), progress or Progress(enabled=False)
    cores = cpu_count()
    stopped: dict[str, str] = {}
    rows: list[Row] = []
    ensure_folder(cache_folder())
    with TemporaryDirectory(prefix="exports-", dir=cache_folder()) as folder:
        kinds = [(model, kind) for kind in _kinds(runtime) for model in models]
        with shown.bar("models", len(kinds)) as bar:
            for model, kind in kinds:
                settings = {"threads": threads or cores, "dtype": dtype, "rounds": rounds, "folder": folder}
                found, why = _law(model, kind, sorted(set(sides)), settings, seconds, file)
                rows += found
                if why:
                    stopped[f"{short_name(model)}, {kind}"] = why
                bar.advance(short_name(model))
    return LawReport(tuple(rows), stopped, file.machine)


def _kinds(runtime: str) -> tuple[str, ...]:
    return ("fastest", EAGER) if runtime == "auto" else tuple(runtime.replace(" ", "").split(","))


def short_name(model: str) -> str:
    """Name of an architecture, or of the function of a peer."""
    return model.rpartition(":")[2]


def _law(
    model: str, kind: str, sides: Sequence[int], settings: dict[str, Any], limit: float, file: RowFile
) -> tuple[list[Row], str]:
    """Measure one model in one runtime at growing sides; rows, and why it stopped, if it did."""
    runtimes = [kind]
    if kind == "fastest":
        runtimes = ["onnxruntime"] if is_peer(model) else ["native", "onnxruntime"]
    rows: list[Row] = []
    for side in sides:
        expected = _predict([(row["key"]["side"], row["ms"] / 1e3) for row in rows], side)
        if expected > limit:
            return rows, f"{side}x{side} would take about {expected:.0f} s, more than {limit:g} s"
        memory = _predict([(row["key"]["side"], row["grown_mib"] or 0) for row in rows], side)
        if (free := free_memory()) is not None and memory > free / 2**20:
            return rows, f"{side}x{side} would need about {memory / 1024:.0f} GiB of memory, more than there is"
        row = _point(model, kind, runtimes, side, settings, file)
        if "failed" in row:
            return rows, f"{side}x{side}: {row['failed']}"
        rows.append(row)
        runtimes = [row["runtime"]]
    return rows, ""


def _point(model: str, kind: str, runtimes: Sequence[str], side: int, settings: dict[str, Any], file: RowFile) -> Row:
    """One model at one side, in the first of the runtimes that runs it."""
    fixed = {name: settings[name] for name in ("threads", "dtype")}
    key = {"model": model, "kind": kind, "side": side, **fixed}
    if (known := file.find(KIND, key)) is not None:
        return known
    size, peer = (side, side), is_peer(model)
    found: dict[str, Any] = {}
    for runtime in runtimes:
        task = PairRun(
            "" if peer else model, model if peer else "", "classify", size, size, runtimes=(runtime,),
            seconds=10.0, **settings,
        )  # fmt: skip
        started = time.monotonic()
        found = measure_apart(task)
        if "failed" not in found:
            (name,) = found["candidates"]
            ms = float(np.median(found["candidates"][name]))
            taken = {"seconds": round(time.monotonic() - started, 1), "grown_mib": found["grown_mib"].get(name)}
            row = {"kind": KIND, "key": key, "runtime": runtime, "ms": round(ms, 4), **taken, "costs": found["costs"]}
            file.add(row)
            return row
    return found


def _predict(points: Sequence[tuple[int, float]], side: int) -> float:
    """The cost at the next side, if it grows at least in proportion to the pixels, and by the last exponent."""
    if not points:
        return 0.0
    last_side, last = points[-1]
    exponent = 1.0
    if len(points) > 1 and min(points[-2][1], last) > 0:
        exponent = max(1.0, math.log(last / points[-2][1]) / math.log((last_side / points[-2][0]) ** 2))
    return last * (side / last_side) ** (2 * exponent)


# ---- table and figure


def laws_of(rows: Sequence[Row]) -> dict[tuple[str, str, int, str], list[Row]]:
    """Rows by model, kind of runtime, threads and number type, by growing side."""
    laws: dict[tuple[str, str, int, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["key"]["side"]):
        key = row["key"]
        laws.setdefault((key["model"], key["kind"], key["threads"], key["dtype"]), []).append(row)
    return laws


def law_table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Header and one row per model and runtime: milliseconds by side, and the exponents of time and memory."""
    sides = sorted({row["key"]["side"] for row in rows})
    header = ("model", "runtime", "threads", *(f"{side}²: ms" for side in sides), "time ~", "memory ~")
    table: list[tuple[str, ...]] = [header]
    for (model, _, threads, dtype), points in laws_of(rows).items():
        ms = {row["key"]["side"]: f"{row['ms']:.4g}" for row in points}
        runtime = points[0]["runtime"] + ("" if dtype == "float32" else f", {dtype}")
        fits = [fit_text(points, "ms"), fit_text(points, "grown_mib")]
        table.append((short_name(model), runtime, str(threads), *(ms.get(side, "") for side in sides), *fits))
    return table


def exponent_of(points: Sequence[Row], cost: str) -> Exponent | None:
    """The exponent of "ms" or "grown_mib" in the number of pixels."""
    fitted = [row for row in points if row["key"]["side"] >= FITTED_FROM and row[cost]]
    return fit_exponent([row["key"]["side"] ** 2 for row in fitted], [row[cost] for row in fitted])


def steep(rows: Sequence[Row]) -> list[str]:
    """Our models whose time in their fastest runtime grows by an exponent above :data:`STEEP`, with it."""
    found = []
    for (model, kind, threads, _), points in laws_of(rows).items():
        fit = exponent_of(points, "ms")
        if kind != EAGER and not is_peer(model) and fit is not None and fit.value > STEEP:
            found.append(f"{model} ({fit_text(points, 'ms')}, {threads} thread{'s' if threads > 1 else ''})")
    return found


def fit_text(points: Sequence[Row], cost: str) -> str:
    """An exponent with its confidence, as text."""
    fit = exponent_of(points, cost)
    if fit is None:
        return ""
    return f"n^{fit.value:.2f}" + ("" if math.isnan(fit.error) else f" ±{fit.error:.2f}")


def draw_laws(rows: Sequence[Row], path: str | Path) -> None:
    """Draw time on the left and memory on the right, in the fastest runtime of each model.

    The legend has the models in the order of their time, the slowest first.
    """
    from matplotlib import colormaps

    figure = new_figure(13, 5)
    left, right = figure.subplots(1, 2)
    laws = {key: points for key, points in laws_of(rows).items() if key[1] != EAGER} or laws_of(rows)
    common = min(map(len, laws.values()), default=1)
    slowest_first = sorted(laws.items(), key=lambda law: -law[1][common - 1]["ms"])
    for i, ((model, *_), points) in enumerate(slowest_first):
        style = {"color": colormaps["tab20"](i % 20), "linestyle": "--" if is_peer(model) else "-", "marker": "o"}
        pixels = [row["key"]["side"] ** 2 for row in points]
        left.plot(pixels, [row["ms"] for row in points], label=short_name(model), markersize=3, **style)
        known = [(row["key"]["side"] ** 2, row["grown_mib"]) for row in points if row["grown_mib"]]
        if known:  # measured on Linux only
            right.plot(*zip(*known, strict=True), markersize=3, **style)
    left.set(**LOG_AXES, xlabel="pixels", ylabel="ms")
    right.set(**(LOG_AXES if right.lines else {}), xlabel="pixels", ylabel="MiB that a run adds")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=7, title="dashed: others", title_fontsize=7)
    write_figure(figure, path, dpi=90)
