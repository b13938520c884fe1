"""The table of formats: what a model's file weighs, how fast it runs here, and how its result compares with torch's.

python benchmarks/formats.py [--models REF ...] [--formats NAME ...] [--size 512x1024] [--threads 1] [--json FILE]
    Exports each model to each format, opens the files with foveal.load, and lets the networks take turns on the
    bundled photograph. Formats whose packages are missing are named and left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal import assets
from foveal.exporting.formats import FORMATS
from foveal.exporting.report import ExportReport
from foveal.measuring.machine import describe, one_line
from foveal.prediction.predictor import Predictor
from foveal.timing import interleaved, ratio

MODELS = ("efficientvit_b0.camvid", "efficientvit_sr.x2")
NAMES = ("native", "onnx", "openvino", "executorch", "litert", "onnx --half", "openvino --half", "native --half")
FIXED = ("executorch", "litert")  # written for the photograph's size: their memory is planned for the largest image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--formats", nargs="+", default=NAMES)
    parser.add_argument("--size", default="512x1024", help="of the photograph, HEIGHTxWIDTH")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))
    with Image.open(assets.FOLDER / "street.jpg") as image:
        photo = np.asarray(image.convert("RGB").resize((width, height)))
    rows = [row for ref in arguments.models for row in measure(ref, photo, arguments)]
    print(f"{arguments.size}, threads: {arguments.threads}, {one_line()}\n")
    print("| model | format | MB | ms | times torch's speed | equal to torch |\n|---|---|---|---|---|---|")
    for row in rows:
        cells = f"{row['mb']:.2f} | {row['ms']:.1f} | {row['ratio']:.2f} | {row['equal']}"
        print(f"| `{row['model']}` | {row['format']} | {cells} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": describe(), "size": arguments.size, "rows": rows}, indent=1))


def measure(ref: str, photo: NDArray[np.uint8], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for torch and one for each format of a model."""
    reference = foveal.load(ref, runtime="torch", device="cpu", threads=arguments.threads)
    predictors: dict[str, Predictor] = {"torch": reference}
    size = {"torch": assets.path(ref, ".safetensors").stat().st_size}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.formats:
            try:
                report = write(ref, name, Path(folder), photo.shape[:2])
            except (foveal.ExportError, foveal.DependencyError) as error:
                print(f"{ref}, {name}: {error}", flush=True)
                continue
            predictors[name], size[name] = foveal.load(report.path, threads=arguments.threads), report.bytes
        batch = np.random.default_rng(0).random((1, 3, *photo.shape[:2]), np.float32)
        works: dict[str, Callable[[], Any]] = {name: partial(found.runner, batch) for name, found in predictors.items()}
        times = interleaved(works, rounds=arguments.rounds)
        expected = reference(photo)
        for name, predictor in predictors.items():
            yield {
                "model": ref,
                "format": name,
                "mb": size[name] / 1e6,
                "ms": 1e3 * float(np.median(times[name])),
                "ratio": ratio(times["torch"], times[name]),
                "equal": compare(expected, predictor(photo)),
            }


def write(ref: str, name: str, folder: Path, size: tuple[int, ...]) -> ExportReport:
    """Export a model to "FORMAT" or "FORMAT --half"."""
    to, *half = name.split()
    fixed = (size[0], size[1]) if to in FIXED else None
    file = folder / f"model{''.join(half)}{FORMATS[to].suffixes[0]}"
    return foveal.export(ref, to, output=file, input_size=fixed, half=bool(half))


def compare(expected: Any, found: Any) -> str:
    """How much of a result equals another one."""
    if isinstance(expected, foveal.UpscaleResult):
        levels = np.abs(expected.image.astype(int) - found.image)
        return f"{(levels == 0).mean():.3%} of the values, at most {levels.max()} levels apart"
    return f"{(expected.mask == found.mask).mean():.3%} of the pixels"


if __name__ == "__main__":
    main()
