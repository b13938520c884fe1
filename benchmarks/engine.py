"""Time the native engine against OpenVINO and ONNX Runtime, which run Foveal's own ONNX exports.

For each network and number type, the three take turns in one process, which is bound to as many cores as there are
threads; ratios are taken round by round and their median is printed. Outputs are compared first.

python benchmarks/engine.py [--work NAME ...] [--dtype float32 bfloat16] [--threads 1 2]
    [--rows FILE.jsonl] [--page FILE.md]
    Needs openvino. In bfloat16, the engine and OpenVINO compute in that type, ONNX Runtime in float32. With --rows, an
    interrupted run continues; --page writes the tables of all rows into the documentation.
python benchmarks/engine.py --profile NAME [--plot FILE]
    The operations of one network: shapes, arithmetic, time, share of the peak; and a roofline plot of them.
python benchmarks/engine.py --scaling NAME
    Time against the number of pixels, from 448x448 to 1792x1792, and the exponent.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured_tables import parse, parser, write_tables
from numpy.typing import NDArray
from torch import nn

import foveal
from foveal.engine.engine import Engine, OperationTime
from foveal.engine.library import DTYPES
from foveal.engine.lowering import make_plan
from foveal.measuring.machine import one_line
from foveal.measuring.page import markdown
from foveal.measuring.row_file import Row, RowFile
from foveal.prediction.native_runner import encode_points
from foveal.prediction.openvino_runner import openvino_core

Feed = dict[str, NDArray[np.float32]]
Run = Callable[[], Any]
KIND = "engine"  # of the rows
PEERS = ("openvino", "onnxruntime")


@dataclass(frozen=True)
class Work:
    """A network, its name in tables, its input's size, and the smallest ratio to the better peer that is promised.

    ``part`` is the network of a promptable model: "encoder", or "prompts" for one click. ``half_floor`` is the smallest
    ratio to OpenVINO in bfloat16 on a processor that multiplies it.
    """

    title: str
    model: str
    task: str | None
    size: tuple[int, int]
    floor: float | None = None
    part: str = ""
    half_floor: float | None = None


WORK = {
    "b0": Work("EfficientViT-B0", "efficientvit_b0", None, (224, 224), 1.2, half_floor=1.3),
    "b1": Work("EfficientViT-B1", "efficientvit_b1", None, (224, 224), 1.08, half_floor=1.15),
    "b3": Work("EfficientViT-B3", "efficientvit_b3", None, (224, 224), 1.0, half_floor=1.0),
    "seg-b0": Work("B0 segmentation", "efficientvit_b0", "segment", (512, 1024), 1.3, half_floor=1.4),
    "seg-b1": Work("B1 segmentation", "efficientvit_b1", "segment", (512, 1024), 1.12, half_floor=1.2),
    "l1": Work("EfficientViT-L1", "efficientvit_l1", None, (224, 224), 1.0, half_floor=1.0),
    "sr-x2": Work("EfficientViT-SR x2", "efficientvit_sr", "upscale", (270, 480), 1.15, half_floor=1.15),
    "realtime-sr": Work("`realtime_sr` x2", "realtime_sr", "upscale", (270, 480)),
    "lite0": Work("EfficientNet-Lite0", "efficientnet_lite0", None, (224, 224)),
    "mobilenetv2": Work("MobileNetV2", "mobilenetv2_100", None, (224, 224)),
    "mobilenetv3": Work("MobileNetV3-Large", "mobilenetv3_large_100", None, (224, 224)),
    "mambavision-t": Work("MambaVision-T", "mambavision_t", None, (224, 224), 1.1),
    "m0": Work("EfficientViT-M0", "efficientvit_m0", None, (224, 224)),
    "m5": Work("EfficientViT-M5", "efficientvit_m5", None, (224, 224)),
    "tinyvit": Work("TinyViT, encoder of MobileSAM", "tinyvit_5m", "prompt", (1024, 1024), part="encoder"),
    "vit-small": Work("ViT-small", "vit_small", None, (224, 224)),
    "sam": Work(
        "encoder of `tf_efficientnet_lite0.sam`", "tf_efficientnet_lite0", "prompt", (512, 512), 1.1, part="encoder"
    ),
    "sam-click": Work("a click after it", "tf_efficientnet_lite0", "prompt", (64, 64), 1.3, part="prompts"),
}


def build(work: Work) -> nn.Module:
    """The model with random weights and batch statistics as after training."""
    torch.manual_seed(0)
    model = foveal.create_model(work.model, work.task).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


def feed_of(work: Work) -> Feed:
    """Inputs of the exported file."""
    rng = np.random.default_rng(0)
    if work.part != "prompts":
        return {"image": rng.standard_normal((1, 3, *work.size)).astype(np.float32)}
    return {
        "image_embeddings": rng.standard_normal((1, 256, *work.size)).astype(np.float32),
        "point_coords": np.array([[[500, 400], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
    }


def arrays_of(engine: Engine, work: Work, feed: Feed) -> list[NDArray[np.float32]]:
    """Inputs of the engine: those of the file, but of a click the tokens."""
    arrays = list(feed.values())
    if work.part == "prompts":
        arrays[1:] = [encode_points(engine.plan, arrays[1], arrays[2].astype(np.int64))]
    return arrays


def native(engine: Engine, work: Work, feed: Feed) -> Run:
    """The native engine; of several results it returns the last, the masks, which are the first of the file."""
    return lambda: engine(*arrays_of(engine, work, feed))


def openvino(path: Path, threads: int, feed: Feed, dtype: str = "float32") -> Run:
    """The exported file in OpenVINO, tuned for latency."""
    core = openvino_core(path.name)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    if (used := compiled.get_property("INFERENCE_NUM_THREADS")) != threads:
        raise SystemExit(f"OpenVINO runs on {used} threads, not on {threads}")
    request = compiled.create_infer_request()

    def run() -> Any:
        request.infer(list(feed.values()), share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data

    return run


def onnxruntime(path: Path, threads: int, feed: Feed) -> Run:
    """The exported file in ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Else its threads spin on after a run and take the cores of whoever has the next turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)[0]


def measure(runs: dict[str, Run], seconds: float) -> dict[str, list[float]]:
    """Seconds of each run, in rounds in which all take turns."""
    for run in runs.values():
        for _ in range(3):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[names[0]]) < 7:
        for name in names:
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
        names.append(names.pop(0))
    return times


def bind(cores: int) -> None:
    """Bind this process to a number of cores, where the system can do that: before a runtime counts them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def compare(name: str, threads: int, dtype: str, seconds: float, folder: Path) -> Row:
    """Measure one row of the table."""
    work = WORK[name]
    model = build(work)
    path = whole = folder / f"{work.model}-{work.task}.onnx"
    if work.part:
        path = path.with_name(f"{path.stem}.{work.part}.onnx")
    if not path.exists():
        foveal.export(model, output=whole)
    feed = feed_of(work)
    engine = Engine(make_plan(model, work.part), threads, dtype=dtype)
    runs: dict[str, Run] = {
        "native": native(engine, work, feed), "openvino": openvino(path, threads, feed, dtype),
        "onnxruntime": onnxruntime(path, threads, feed),
    }  # fmt: skip
    expected = np.asarray(runs["onnxruntime"]())
    difference = float(np.abs(runs["native"]() - expected).max() / np.abs(expected).max())
    times = {runtime: np.array(found) for runtime, found in measure(runs, seconds).items()}
    return {
        "kind": KIND, "key": key_of(name, threads, dtype), "rounds": len(times["native"]),
        "ms": {runtime: float(np.median(found) * 1e3) for runtime, found in times.items()},
        "speed_up": {peer: float(np.median(times[peer] / times["native"])) for peer in PEERS},
        "difference": difference,
        "macs": sum(row.macs for row in engine.profile(*arrays_of(engine, work, feed), runs=1)),
    }  # fmt: skip


def key_of(name: str, threads: int, dtype: str) -> dict[str, Any]:
    """What identifies a row."""
    work = WORK[name]
    return {"work": name, "model": work.model, "size": list(work.size), "threads": threads, "dtype": dtype}


def line_of(row: Row) -> str:
    """A row as text, with the speed-up that is promised."""
    key, ms = row["key"], row["ms"]
    work = WORK[key["work"]]
    floor = work.floor if key["dtype"] == "float32" else work.half_floor
    return (
        f"{key['work']:14} {key['dtype']:9} {key['threads']:7} {ms['native']:8.2f} {ms['openvino']:9.2f} "
        f"{ms['onnxruntime']:9.2f} {row['speed_up']['openvino']:6.2f} {row['speed_up']['onnxruntime']:7.2f} "
        f"{floor or '-':>6} {2 * row['macs'] / ms['native'] / 1e6:5.0f}  {row['difference']:.1e}"
    )


# ---- the page

HEADERS = {
    "float32": (
        *("network", "engine", "OpenVINO", "ONNX Runtime", "speed-up vs OpenVINO", "vs ONNX Runtime"),
        "on two cores: vs OpenVINO, vs ONNX Runtime",
    ),
    "bfloat16": (
        *("network", "engine", "OpenVINO", "speed-up vs OpenVINO", "vs the engine in float32"),
        *("on two cores: vs OpenVINO", "difference"),
    ),
}


def write_page(rows: Path, page: Path) -> None:
    """Write the tables of all rows into a page."""
    write_tables("engine", rows, page, ("foveal", "openvino", "onnxruntime", "numpy"), tables)


def tables(rows: Sequence[Row]) -> str:
    """A table for each number type, in Markdown."""
    found = {tuple(row["key"][name] for name in ("work", "dtype", "threads")): row for row in rows}
    parts = []
    for dtype in HEADERS:
        lines = [cells_of(work, dtype, found) for work in WORK if (work, dtype, 1) in found]
        parts += [f"In {dtype}, on one core:", markdown([HEADERS[dtype], *lines])] if lines else []
    return "\n\n".join(parts)


def cells_of(name: str, dtype: str, rows: Mapping[tuple[str, str, int], Row]) -> tuple[str, ...]:
    """A line of the table of a number type."""
    one, two = rows[name, dtype, 1], rows.get((name, dtype, 2))
    peers = PEERS if dtype == "float32" else PEERS[:1]
    ratios = [f"{one['speed_up'][peer]:.2f}" for peer in peers]
    twice = "" if two is None else ", ".join(f"{two['speed_up'][peer]:.2f}" for peer in peers)
    times = [f"{one['ms'][runtime]:.1f}" for runtime in ("native", *peers)]
    title = f"{WORK[name].title}, {WORK[name].size[0]}x{WORK[name].size[1]}"
    cells = [title if WORK[name].part != "prompts" else WORK[name].title, *times, *ratios]
    if dtype == "float32":
        return (*cells, twice)
    single = rows.get((name, "float32", 1))
    gain = "" if single is None else f"{single['ms']['native'] / one['ms']['native']:.2f}"
    return (*cells, gain, twice, f"{one['difference']:.1e}")


# ---- one network


def show_profile(name: str, threads: int, plot: Path | None, dtype: str = "float32") -> None:
    """Print every operation of one network, and draw them under the machine's limits."""
    work = WORK[name]
    engine = Engine(make_plan(build(work), work.part), threads, dtype=dtype)
    arrays = arrays_of(engine, work, feed_of(work))
    rows = engine.profile(*arrays, runs=max(5, int(2e9 / np.prod(work.size) / 1e4)))
    peak = engine.library.peak() * threads
    total, macs = sum(row.seconds for row in rows), sum(row.macs for row in rows)
    for row in rows:
        rate = 2 * row.macs / row.seconds
        print(
            f"{row.seconds * 1e6:9.0f} us {row.seconds / total:6.1%} "
            f"{rate / 1e9:7.1f} GF/s {rate / peak:5.0%}  {row.label}"
        )
    rate = 2 * macs / total
    print(f"{total * 1e3:9.3f} ms        {rate / 1e9:7.1f} GF/s {rate / peak:5.0%} of {peak / 1e9:.0f} GF/s in all")
    if plot is not None:
        draw_roofline(rows, peak, copy_rate(), f"{work.model}, {work.size[0]}x{work.size[1]}, {threads} threads", plot)


def show_scaling(name: str, threads: int, dtype: str = "float32") -> None:
    """Print the time for growing images, and the exponent of the time in the number of pixels."""
    engine = Engine(make_plan(build(WORK[name])), threads, dtype=dtype)
    sides = (448, 640, 896, 1280, 1792)
    times = []
    for side in sides:
        batch = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
        found = measure({"native": partial(engine, batch)}, 3)["native"]
        times.append(float(np.median(found)))
        print(f"{side}x{side}  {times[-1] * 1e3:9.2f} ms")
    exponent = np.polyfit(np.log(np.square(sides)), np.log(times), 1)[0]
    print(f"{WORK[name].model}: time grows as pixels to the power of {exponent:.3f}")


def copy_rate() -> float:
    """Bytes per second that are read and written by a copy of an array that no cache holds."""
    source = np.ones(1 << 26, np.float32)
    target = np.empty_like(source)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times)


def draw_roofline(rows: list[OperationTime], peak: float, bandwidth: float, title: str, path: Path) -> None:
    """Arithmetic intensity against speed: a point for each operation, its area in proportion to its time."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    intensity = np.logspace(-0.5, 3, 100)
    axes.plot(intensity, np.minimum(peak, intensity * bandwidth) / 1e9, "k-", lw=1)
    total = sum(row.seconds for row in rows)
    kinds = sorted({row.label.split()[0] for row in rows if row.macs})
    for kind in kinds:
        chosen = [row for row in rows if row.macs and row.label.startswith(kind)]
        x = [2 * row.macs / row.bytes for row in chosen]
        y = [2 * row.macs / row.seconds / 1e9 for row in chosen]
        axes.scatter(x, y, s=[20 + 4000 * row.seconds / total for row in chosen], alpha=0.5, label=kind)
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity, FLOP per byte", ylabel="GFLOP/s", title=title)
    axes.text(intensity[-1], peak / 1e9 * 1.05, f"{peak / 1e9:.0f} GFLOP/s", ha="right")
    axes.legend(markerscale=0.5)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--work", nargs="*", default=list(WORK), choices=list(WORK))
    arguments.add_argument("--threads", nargs="*", type=int, default=[1])
    arguments.add_argument("--dtype", nargs="*", default=["float32"], choices=list(DTYPES))
    arguments.add_argument("--seconds", type=float, default=6, help="of the rounds of a row")
    arguments.add_argument("--exports", type=Path, help="folder that keeps the ONNX files between runs")
    arguments.add_argument("--profile", choices=list(WORK))
    arguments.add_argument("--plot", type=Path, help="file of the roofline plot of --profile")
    arguments.add_argument("--scaling", choices=list(WORK))
    options = parse(arguments)
    if options.rows and (options.scaling or options.profile):
        arguments.error("--rows is for the table: leave out --scaling and --profile")
    if options.scaling:
        show_scaling(options.scaling, options.threads[0], options.dtype[0])
    elif options.profile:
        show_profile(options.profile, options.threads[0], options.plot, options.dtype[0])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            measure_rows(options, RowFile(options.rows), options.exports or Path(temporary))
        if options.page:
            write_page(options.rows, options.page)


def measure_rows(options: argparse.Namespace, rows: RowFile, folder: Path) -> None:
    """Measure what has no row yet, and print all rows."""
    folder.mkdir(parents=True, exist_ok=True)
    print(one_line(), *(f"{name} {rows.machine.get(name)}" for name in ("openvino", "onnxruntime", "numpy")), sep=", ")
    print(
        f"{'work':14} {'dtype':9} {'threads':>7} {'native':>8} {'OpenVINO':>9} {'ORT':>9} "
        f"{'vs OV':>6} {'vs ORT':>7} {'floor':>6} {'GF/s':>5}  difference"
    )
    for threads in options.threads:  # in a process of their own: OpenVINO counts the cores once in a process
        with ProcessPoolExecutor(1, get_context("spawn"), bind, (threads,)) as process:
            for dtype, name in product(options.dtype, options.work):
                row = rows.find(KIND, key_of(name, threads, dtype))
                if row is None:
                    work = process.submit(compare, name, threads, dtype, options.seconds, folder)
                    rows.add(row := work.result())
                print(line_of(row), flush=True)


if __name__ == "__main__":
    main()
