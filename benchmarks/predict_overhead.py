"""Time that a prediction takes in addition to the network and to reading the file; the aim is at most a tenth.

For an image file of 1024x2048 pixels and each runtime, two candidates take turns: ``predict`` reads and prepares the
image, runs the network at full size, upsamples and takes the argmax; ``bare`` reads the image and runs the network on
an array that is ready. It prints the median of the round-by-round ratios.

python benchmarks/predict_overhead.py [--model REF] [--runtimes onnxruntime torch] [--rounds 15] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import foveal
from foveal import assets
from foveal.images.preparing import prepare
from foveal.images.reading import read_image
from foveal.measuring import machine
from foveal.measuring.benchmark import interleaved, ratio
from foveal.prediction.predictor import Predictor

SIZE = (1024, 2048)
REF = "efficientvit_b0.camvid"


def main() -> None:
    """Measure the runtimes and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", default=REF, help="an ONNX file needs --runtimes onnxruntime")
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "torch"])
    arguments = parser.parse_args()
    report: dict = {"size": SIZE, "model": arguments.model, "rounds": arguments.rounds, "machine": machine.describe()}
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        with Image.open(assets.FOLDER / "street.jpg") as image:
            image.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC).save(photo, quality=90)
        for runtime in arguments.runtimes:
            times = interleaved(candidates(arguments.model, photo, runtime), rounds=arguments.rounds, warmup=2)
            report[runtime] = {
                "bare_ms": round(1e3 * float(np.median(times["bare"])), 2),
                "predict_ms": round(1e3 * float(np.median(times["predict"])), 2),
                "ratio": round(ratio(times["predict"], times["bare"]), 4),
            }
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"{arguments.model} at {SIZE[0]}x{SIZE[1]}, {machine.one_line()}, {arguments.rounds} rounds")
    for runtime in arguments.runtimes:
        row = report[runtime]
        print(f"{runtime:12} bare {row['bare_ms']:8.1f} ms  predict {row['predict_ms']:8.1f} ms", end="  ")
        print(f"ratio {row['ratio']:.3f}")


def candidates(ref: str, photo: Path, runtime: str) -> dict[str, Callable[[], object]]:
    """Both candidates with one network, at full size: the weights' own limit on the image size is removed."""
    loaded = foveal.load(ref, runtime=runtime)
    info = loaded.info.replace(preprocess=dataclasses.replace(loaded.info.preprocess, max_side=None))
    predictor = Predictor(loaded.runner, info, loaded.runtime)
    ready = prepare(read_image(photo), info.preprocess)

    def bare() -> object:
        read_image(photo)
        return predictor.runner(ready)

    return {"bare": bare, "predict": lambda: predictor.segment(photo).mask}


if __name__ == "__main__":
    main()
