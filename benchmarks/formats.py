"""The table of formats x tasks x devices: what a file weighs, how fast it runs, how its result compares with torch's.

python benchmarks/formats.py [--rows FILE.jsonl] [--page docs/deploy.md] [--data TASK=FOLDER ...]
    Exports one model of each task to each format, opens the files with foveal.load, compares their results with
    torch's on the bundled photograph, and lets all files of a task take turns. Files and rows are kept: an interrupted
    run continues. int8 needs a data set of the task, as in --data segment=CAMVID prompt=PENNFUDAN.

python benchmarks/formats.py --times
    Measures the times again, with the files that are there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured_tables import parse, parser, replace_part
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import foveal
from foveal import assets
from foveal.errors import DependencyError, ExportError
from foveal.exporting.formats import FORMATS, Format
from foveal.exporting.report import report_path
from foveal.files import parse_json
from foveal.images.preparing import prepare
from foveal.info import info_of
from foveal.measuring.machine import describe, one_line
from foveal.measuring.page import markdown
from foveal.measuring.row_file import Row, RowFile, read_rows
from foveal.prediction.exported import part_path
from foveal.prediction.predictor import Predictor
from foveal.progress import Progress
from foveal.timing import interleaved, ratio
from foveal.weights.checkpoints import save_checkpoint

FILE, TIME = "file", "time"  #: kinds of rows
TORCH = "torch"  #: in place of a format: the checkpoint
OTHER_DEVICES = {"tensorrt": "NVIDIA GPU", "coreml": "Apple"}  #: of formats that do not run on a CPU of this system
PHONES = ("executorch", "litert", "coreml")  #: written for the size of the image: a phone's camera has one
RANDOM = "efficientvit_b0"  #: a model of the task regress with random weights: there are none of ours
CROPS = 60  #: of the photograph, that are classified
SAME_SIDE = "share of pixels that both models put on the same side of the mask (inside or outside)"
BOX, POINT = (0.3, 0.3, 0.6, 0.7), (0.5, 0.5)  #: prompts: x1, y1, x2, y2 and x, y, of the photograph's sides


@dataclass(frozen=True)
class Case:
    """A model that stands for its task, the size (H, W) of the image, and what share of two results is the same.

    ``max_loss`` is that of int8, ``tolerance`` the largest difference of two values that count as the same.
    """

    task: str
    ref: str
    size: tuple[int, int]
    same: str
    max_loss: float
    tolerance: float = 0.0


CASES = {
    case.task: case
    for case in (
        Case(
            "classify",
            "tf_efficientnet_lite0.in1k",
            (224, 224),
            f"share of {CROPS} crops with the same top-1 class",
            0.5,
        ),
        Case("segment", "efficientvit_b0.camvid", (512, 1024), "share of pixels with the same class", 0.5),
        Case(
            "upscale",
            "efficientvit_sr.x2",
            (256, 512),
            "share of output values that are equal after rounding to 8 bits",
            0.15,
        ),
        Case("prompt", "tf_efficientnet_lite0.sam", (512, 1024), SAME_SIDE, 1.0),
        Case("regress", RANDOM, (512, 1024), "share of values, of mean 0.5, that differ by at most 0.01", 0.5, 0.01),
    )
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.set_defaults(rows=Path("formats.jsonl"))
    arguments.add_argument("--files", type=Path, default=Path("formats"), help="folder of the exported files")
    arguments.add_argument("--tasks", nargs="+", default=list(CASES), choices=list(CASES))
    arguments.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    arguments.add_argument("--data", nargs="+", default=[], metavar="TASK=FOLDER", help="data sets for int8")
    arguments.add_argument("--times", action="store_true", help="measure only the times, and those of all files again")
    arguments.add_argument("--no-times", action="store_true", help="measure no times")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=12)
    options = parse(arguments)
    options.files.mkdir(parents=True, exist_ok=True)
    data = dict(text.partition("=")[::2] for text in options.data)
    rows = RowFile(options.rows)
    print(one_line(), *(f"{name} {version}" for name, version in list(describe().items())[4:]), sep=", ", flush=True)
    for case in map(CASES.__getitem__, options.tasks):
        if not options.times:
            for row in files_of(case, rows, data.get(case.task), options):
                rows.add(row)
                print(line_of(row), flush=True)
        if not options.no_times:
            for row in times_of(case, rows, options):
                rows.add(row)
    print(table(rows.rows))
    if options.page:
        write_page(options.rows, options.page)


def variants(format: Format, int8: bool) -> list[str]:
    """Types of the weights that a format can have."""
    able = {"float32": True, "float16": format.halves, "int8": int8 and format.quantizer is not None}
    return [dtype for dtype, has in able.items() if has]


def model_of(case: Case, folder: Path) -> str | Path:
    """What :func:`foveal.load` takes; weights that are random are kept beside the exported files."""
    if case.ref != RANDOM:
        return case.ref
    path = folder / f"{case.task}.safetensors"
    if not path.exists():
        model = random_model(case)
        save_checkpoint(path, model.state_dict(), info_of(model))
    return path


@torch.no_grad()
def random_model(case: Case) -> nn.Module:
    """A model with one channel of values, whose mean on the photograph is 0.5 and whose standard deviation is 0.2."""
    torch.manual_seed(0)
    model: Any = foveal.create_model(case.ref, "regress", out_chans=1).eval()
    batch = torch.from_numpy(prepare(photograph(case.size), info_of(model).preprocess))
    spread, mean = torch.std_mean(model(batch))
    classifier = model.head.classifier
    classifier.weight.mul_(0.2 / spread)
    classifier.bias.copy_((classifier.bias - mean) * 0.2 / spread + 0.5)
    return model


def key_of(case: Case, format: str, dtype: str) -> dict[str, Any]:
    return {"task": case.task, "model": case.ref, "size": list(case.size), "format": format, "dtype": dtype}


# ---- files


def files_of(case: Case, rows: RowFile, data: str | None, options: argparse.Namespace) -> Iterator[Row]:
    """A row for each file of a model that has none yet."""
    reference: Predictor | None = None
    key = key_of(case, TORCH, "float16" if case.ref in assets.WEIGHTS else "float32")
    usual = [name for name, format in FORMATS.items() if format.graphs is None and format.site is None]
    names = [name for name in options.formats if name in usual]  # not the files of other programs, and no sites
    wanted = [(name, dtype) for name in names for dtype in variants(FORMATS[name], data is not None)]
    missing = [
        pair
        for pair in wanted
        if not is_done(rows.find(FILE, key_of(case, *pair)), path_of(case, *pair, options.files))
    ]
    if missing or not rows.find(FILE, key):
        reference = foveal.load(model_of(case, options.files), runtime="torch", device="cpu", threads=options.threads)
        expected = results(reference, case)
        if case.ref in assets.WEIGHTS:
            bytes_of = assets.path(case.ref, ".safetensors").stat().st_size
        else:
            model = foveal.load_model(model_of(case, options.files))
            bytes_of = sum(4 * parameter.numel() for parameter in model.parameters())
        if not rows.find(FILE, key):
            yield {"kind": FILE, "key": key, "bytes": bytes_of, "difference": 0.0, "same": 1.0}
        for name, dtype in missing:
            yield {
                "kind": FILE,
                "key": key_of(case, name, dtype),
                **file_row(case, name, dtype, data, expected, options),
            }


def is_done(row: Row | None, path: Path) -> bool:
    return row is not None and ("failed" in row or report_path(path).exists())


def path_of(case: Case, name: str, dtype: str, folder: Path) -> Path:
    """The file that is opened: of a promptable model, its encoder."""
    path = folder / f"{case.task}.{dtype}{FORMATS[name].suffixes[0]}"
    return part_path(path, "encoder") if case.task == "prompt" else path


def file_row(
    case: Case, name: str, dtype: str, data: str | None, expected: tuple[Any, Any], options: argparse.Namespace
) -> Row:
    """Export a model, open the file, and compare its results."""
    path = path_of(case, name, dtype, options.files)
    try:
        if not report_path(path).exists():
            write(case, name, dtype, data, options.files)
    except (ExportError, DependencyError) as error:
        return {"failed": str(error)}
    report = parse_json(report_path(path).read_bytes())
    row = {key: report[key] for key in ("bytes", "delegated", "quantisation", "versions")}
    row["kept_float"] = len(report["kept_float"])
    if name in OTHER_DEVICES:
        return row | {"difference": report["max_difference"], "same": None}
    outputs, answers = results(foveal.load(path, device="cpu", threads=options.threads), case)
    scale = max(float(np.abs(expected[0]).max()), 1e-30)
    return row | {
        "difference": float(np.abs(outputs - expected[0]).max()) / scale,
        "same": float((np.abs(answers.astype(float) - expected[1]) <= case.tolerance).mean()),
    }


def write(case: Case, name: str, dtype: str, data: str | None, folder: Path) -> None:
    quantised: dict[str, Any] = {"int8": data, "max_loss": case.max_loss, "progress": Progress()}
    foveal.export(
        model_of(case, folder),
        name,
        output=folder / f"{case.task}.{dtype}{FORMATS[name].suffixes[0]}",
        input_size=case.size if name in PHONES and case.task != "prompt" else None,
        half=dtype == "float16",
        **quantised if dtype == "int8" else {},
    )


def photograph(size: tuple[int, int]) -> NDArray[np.uint8]:
    with Image.open(assets.FOLDER / "street.jpg") as image:
        return np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC))


def crops(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Parts of the photograph of several scales."""
    rng = np.random.default_rng(0)
    photo = photograph((512, 1024))
    found = []
    for _ in range(CROPS):
        side = int(rng.integers(size[0] // 2, 513))
        top, left = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
        found.append(photo[top : top + side, left : left + side])
    return found


def results(predictor: Predictor, case: Case) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Numbers of the network's output, and what a user gets of them, in which two files may be equal or not."""
    if case.task == "classify":
        batches = [prepare(crop, predictor.info.preprocess) for crop in crops(case.size)]
        logits = np.concatenate([predictor.runner(batch) for batch in batches])
        return logits, logits.argmax(1)
    photo = photograph(case.size)
    if case.task == "segment":
        result = predictor.segment(photo)
        return result.logits, result.mask
    if case.task == "regress":
        values = predictor.regress(photo).values
        return values, values
    if case.task == "upscale":
        batch = prepare(photo, predictor.info.preprocess)
        return predictor.runner(batch), predictor.upscale(photo).image
    embedding = predictor.encode(photo)
    width, height = case.size[::-1]
    sides = np.array([width, height])
    box, point = np.tile(sides, 2) * BOX, sides * POINT
    found = [embedding.prompt(boxes=box), embedding.prompt(points=[point], labels=[1])]
    return np.stack([mask.low_res for mask in found]), np.stack([np.asarray(mask.masks) for mask in found])


# ---- times


def times_of(case: Case, rows: RowFile, options: argparse.Namespace) -> list[Row]:
    """Let the checkpoint and all files of a model take turns; nothing is measured if that was done before."""
    found = [
        row["key"]
        for row in rows.rows
        if row["kind"] == FILE
        and (row["key"]["task"], row["key"]["model"]) == (case.task, case.ref)
        and "failed" not in row
        and row["key"]["format"] not in OTHER_DEVICES
    ]
    keys = [key for key in found if key["format"] == TORCH or key["format"] in options.formats]
    named = {(key["format"], key["dtype"]): {**key, "threads": options.threads} for key in keys}
    if not named or (not options.times and all(rows.find(TIME, key) for key in named.values())):
        return []
    works = {}
    for name, dtype in named:
        ref = model_of(case, options.files) if name == TORCH else path_of(case, name, dtype, options.files)
        runtime = "torch" if name == TORCH else "auto"
        works[name, dtype] = partial(
            run, foveal.load(ref, device="cpu", threads=options.threads, runtime=runtime), case
        )
    times = interleaved(works, rounds=options.rounds)
    reference = next(seconds for (name, _), seconds in times.items() if name == TORCH)
    measured = {"rounds": options.rounds, "load": os.getloadavg()[0]}
    return [
        {
            "kind": TIME,
            "key": named[pair],
            "ms": 1e3 * float(np.median(seconds)),
            "speed": ratio(reference, seconds),
            **measured,
        }
        for pair, seconds in times.items()
    ]


def run(predictor: Predictor, case: Case) -> None:
    """Run the networks on one image; of a promptable model, also the decoder on one box."""
    if case.task == "prompt":
        width, height = case.size[::-1]
        predictor.encode(photograph(case.size)).prompt(boxes=np.multiply((width, height) * 2, BOX))
        return
    batch = np.random.default_rng(0).random((1, predictor.info.in_chans, *case.size), np.float32)
    predictor.runner(batch)


# ---- the table


def line_of(row: Row) -> str:
    key = row["key"]
    name = f"{key['task']}, {key['format']} {key['dtype']}"
    if "failed" in row:
        return f"{name}: {row['failed']}"
    numbers = [f"{row['bytes'] / 1e6:.2f} MB"]
    numbers += [f"difference {row['difference']:.1e}"] if row["difference"] is not None else []
    numbers += [f"same {row['same']:.3%}"] if row["same"] is not None else []
    return f"{name}: {', '.join(numbers)}"


HEADER = ("device", "file", "MB", "ms", "speed", "largest difference", "same")


def table(rows: Sequence[Row]) -> str:
    """One table per task in Markdown: every file, on the device that it was measured on."""
    parts = []
    for case in CASES.values():
        own = [row for row in rows if (row["key"]["task"], row["key"]["model"]) == (case.task, case.ref)]
        files = sorted((row for row in own if row["kind"] == FILE), key=place)
        if not files:
            continue
        times = {cells(row["key"]): row for row in own if row["kind"] == TIME}
        size = "x".join(map(str, case.size))
        model = f"`{case.ref}`" + (" with random weights" if case.ref == RANDOM else "")
        title = f"**{case.task}**: {model}, an image of {size}; *same*: {case.same}."
        lines = [row_of(row, times.get(cells(row["key"]))) for row in files if "failed" not in row]
        refused = [
            f"- `{row['key']['format']}` in {row['key']['dtype']}: {row['failed']}" for row in files if "failed" in row
        ]
        parts += [title, markdown([HEADER, *lines]), *(["\n".join(refused)] if refused else [])]
    return "\n\n".join(parts)


def place(row: Row) -> tuple[int, int]:
    """Where a file is in the table: by its format, then by its type."""
    name, dtype = cells(row["key"])
    return (TORCH, *FORMATS).index(name), ("float32", "float16", "int8").index(dtype)


def cells(key: dict[str, Any]) -> tuple[str, str]:
    return key["format"], key["dtype"]


def row_of(row: Row, time: Row | None) -> tuple[str, ...]:
    name, dtype = cells(row["key"])
    device = f"{OTHER_DEVICES[name]}, not run" if name in OTHER_DEVICES else "CPU"
    file = "checkpoint in torch" if name == TORCH else f"`{name}`" + ("" if dtype == "float32" else f" {dtype}")
    megabytes = f"{row['bytes'] / 1e6:.2f}"
    ms, speed = ("", "") if time is None else (f"{time['ms']:.1f}", f"{time['speed']:.2f}")
    if name == TORCH:
        return device, file, megabytes, ms, speed, "", ""
    difference = "" if row["difference"] is None else f"{row['difference']:.1e}"
    same = "" if row["same"] is None else f"{row['same']:.3%}"
    return device, file, megabytes, ms, speed, difference, same


def page_text(rows: Path) -> str:
    """What stands between the two marks of the page: the machine, the versions, and the tables.

    Sizes and differences are those of every machine, times those of the last one that measured any.
    """
    machines = read_rows(rows)
    timed = next((where for where in reversed(machines) if any(row["kind"] == TIME for row in where.rows)), None)
    found = {
        (row["kind"], json.dumps(row["key"], sort_keys=True)): row
        for where in machines
        for row in where.rows
        if row["kind"] == FILE or where is timed
    }
    measured = list(found.values())
    machine = (timed or machines[-1]).machine
    versions = {name: machine[name] for name in ("foveal", "torch", "onnxruntime", "openvino") if name in machine}
    for row in measured:
        versions |= row.get("versions", {})
    times = [row for row in measured if row["kind"] == TIME]
    facts = [one_line(machine), ", ".join(f"{name} {version}" for name, version in versions.items())]
    if times:
        threads = sorted({row["key"]["threads"] for row in times})
        load = max(row["load"] for row in times)
        facts.append(f"times with {threads[0]} thread{'s' * (threads[0] > 1)}, the machine's load was up to {load:.1f}")
    return f"Measured on {'; '.join(facts)}.\n\n{table(measured)}"


def write_page(rows: Path, page: Path) -> None:
    """Replace what stands between the marks of a Markdown file."""
    replace_part("formats", page, page_text(rows))


if __name__ == "__main__":
    main()
