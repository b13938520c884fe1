"""Time the native engine against OpenVINO and ONNX Runtime, which run Foveal's own ONNX exports.

For each network and number of threads, the three take turns in one process; ratios are taken round by round and their
median is printed, with the share of the processor's peak that the engine reaches. Outputs are compared before timing.

taskset -c 0 python benchmarks/engine.py [--work NAME ...] [--threads 1 2] [--seconds 6] [--json FILE]
    [--dtype bfloat16]
    Needs openvino. Pin it to one core for one thread; without taskset, threads may use all cores of the machine.
    In bfloat16, the engine and OpenVINO compute in that type, ONNX Runtime in float32.
python benchmarks/engine.py --profile NAME [--plot FILE]
    The operations of one network: shapes, arithmetic, time, share of the peak; and a roofline plot of them.
python benchmarks/engine.py --scaling NAME
    Time against the number of pixels, from 448x448 to 1792x1792, and the exponent.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import foveal
from foveal.engine.engine import Engine, OperationTime
from foveal.engine.library import DTYPES
from foveal.engine.lowering import make_plan
from foveal.measuring.machine import one_line
from foveal.prediction.native_runner import encode_points
from foveal.prediction.openvino_runner import openvino_core

Feed = dict[str, NDArray[np.float32]]
Run = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """A network, the size of its input, and the smallest ratio to the better peer that the project promises.

    ``part`` is the network of a promptable model: "encoder", or "prompts" for one click. ``half_floor`` is the smallest
    ratio to OpenVINO in bfloat16 on a processor that multiplies it.
    """

    model: str
    task: str | None
    size: tuple[int, int]
    floor: float | None = None
    part: str = ""
    half_floor: float | None = None


WORK = {
    "b0": Work("efficientvit_b0", None, (224, 224), 1.2, half_floor=1.3),
    "b1": Work("efficientvit_b1", None, (224, 224), 1.08, half_floor=1.15),
    "b3": Work("efficientvit_b3", None, (224, 224), 1.0, half_floor=1.0),
    "seg-b0": Work("efficientvit_b0", "segment", (512, 1024), 1.3, half_floor=1.4),
    "seg-b1": Work("efficientvit_b1", "segment", (512, 1024), 1.12, half_floor=1.2),
    "l1": Work("efficientvit_l1", None, (224, 224), 1.0, half_floor=1.0),
    "sr-x2": Work("efficientvit_sr", "upscale", (270, 480), 1.15, half_floor=1.15),
    "realtime-sr": Work("realtime_sr", "upscale", (270, 480)),
    "lite0": Work("efficientnet_lite0", None, (224, 224)),
    "mobilenetv2": Work("mobilenetv2_100", None, (224, 224)),
    "mobilenetv3": Work("mobilenetv3_large_100", None, (224, 224)),
    "mambavision-t": Work("mambavision_t", None, (224, 224), 1.1),
    "m0": Work("efficientvit_m0", None, (224, 224)),
    "m5": Work("efficientvit_m5", None, (224, 224)),
    "tinyvit": Work("tinyvit_5m", "prompt", (1024, 1024), part="encoder"),
    "vit-small": Work("vit_small", None, (224, 224)),
    "sam": Work("tf_efficientnet_lite0", "prompt", (512, 512), 1.1, part="encoder"),
    "sam-click": Work("tf_efficientnet_lite0", "prompt", (64, 64), 1.3, part="prompts"),
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


def compare(name: str, threads: int, seconds: float, folder: Path, dtype: str = "float32") -> dict[str, Any]:
    """One row of the table."""
    work = WORK[name]
    model = build(work)
    path = whole = folder / f"{work.model}-{work.task}.onnx"
    if work.part:
        path = path.with_name(f"{path.stem}.{work.part}.onnx")
    if not path.exists():
        foveal.export(model, output=whole)
    engine = Engine(make_plan(model, work.part), threads, dtype=dtype)
    feed = feed_of(work)
    runs: dict[str, Run] = {
        "native": native(engine, work, feed), "openvino": openvino(path, threads, feed, dtype),
        "onnxruntime": onnxruntime(path, threads, feed),
    }  # fmt: skip
    expected = np.asarray(runs["onnxruntime"]())
    difference = float(np.abs(runs["native"]() - expected).max() / np.abs(expected).max())
    times = {key: np.array(value) for key, value in measure(runs, seconds).items()}
    ratios = {key: float(np.median(times[key] / times["native"])) for key in ("openvino", "onnxruntime")}
    macs = sum(row.macs for row in engine.profile(*arrays_of(engine, work, feed), runs=1))
    floor = work.floor if dtype == "float32" else work.half_floor
    return {
        "work": name, "threads": threads, "dtype": dtype, "size": list(work.size), "rounds": len(times["native"]),
        "ms": {key: float(np.median(value) * 1e3) for key, value in times.items()},
        "over_openvino": ratios["openvino"], "over_onnxruntime": ratios["onnxruntime"],
        "over_better": min(ratios.values()), "floor": floor, "difference": difference, "macs": macs,
    }  # fmt: skip


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
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="*", default=list(WORK), choices=list(WORK))
    parser.add_argument("--threads", nargs="*", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--exports", type=Path, help="folder that keeps the ONNX files between runs")
    parser.add_argument("--profile", choices=list(WORK))
    parser.add_argument("--plot", type=Path, help="file of the roofline plot of --profile")
    parser.add_argument("--scaling", choices=list(WORK))
    arguments = parser.parse_args()
    if arguments.scaling:
        show_scaling(arguments.scaling, arguments.threads[0], arguments.dtype)
        return
    if arguments.profile:
        show_profile(arguments.profile, arguments.threads[0], arguments.plot, arguments.dtype)
        return
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("openvino", "onnxruntime", "numpy"))
    print(f"{one_line()}; {versions}; {arguments.dtype}")
    print(f"{'work':12} threads  native  OpenVINO      ORT     vs OV    vs ORT  floor  GF/s  difference")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.exports or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for threads in arguments.threads:
            for name in arguments.work:
                row = compare(name, threads, arguments.seconds, folder, arguments.dtype)
                rows.append(row)
                ms = row["ms"]
                print(
                    f"{name:12} {threads:7} {ms['native']:7.2f} {ms['openvino']:9.2f} {ms['onnxruntime']:8.2f} "
                    f"{row['over_openvino']:9.2f} {row['over_onnxruntime']:9.2f} {row['floor'] or '-':>6} "
                    f"{2 * row['macs'] / ms['native'] / 1e6:5.0f}  {row['difference']:.1e}",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": one_line(), "versions": versions, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
