"""Time of a prompt after the image is encoded; the aim is at most 100 ms on one core for a photograph of 1024 pixels.

The bundled photograph, enlarged to a long side of 1024 pixels, is encoded with each runtime. Then a click, a box, and
64 clicks at once take turns. The time of a click is that from the prompt to the mask at the photograph's size.

OMP_NUM_THREADS=1 python benchmarks/prompting.py [--model REF] [--rounds 15] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import foveal
from foveal import assets
from foveal.images.reading import read_image
from foveal.measuring import machine
from foveal.measuring.benchmark import interleaved
from foveal.prediction.predictor import Predictor
from foveal.prediction.prompting import Embedding


def main() -> None:
    """Measure the runtimes on one thread and print the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tinyvit_5m.mobilesam")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    image = Image.fromarray(read_image(assets.FOLDER / "street.jpg"))
    scale = 1024 / max(image.size)
    photo = np.asarray(image.resize((round(image.width * scale), round(image.height * scale))))
    with tempfile.TemporaryDirectory() as folder:
        path = foveal.export(arguments.model, output=Path(folder) / "model.onnx").path
        predictors = {
            "native": foveal.load(arguments.model, runtime="native", device="cpu", threads=1),
            "onnxruntime": foveal.load(path, runtime="onnxruntime", device="cpu", threads=1),
            "torch": foveal.load(arguments.model, runtime="torch", device="cpu"),
        }
        report = {
            "model": arguments.model,
            "photo": photo.shape[:2],
            "rounds": arguments.rounds,
            "machine": machine.describe(),
            "ms": {name: measure(predictor, photo, arguments.rounds) for name, predictor in predictors.items()},
        }
    if arguments.json:
        print(json.dumps(report))
        return
    height, width = photo.shape[:2]
    print(f"{arguments.model}, {height}x{width} pixels, one thread, {machine.one_line()}, {arguments.rounds} rounds")
    for name, times in report["ms"].items():
        print(f"{name:12}", "  ".join(f"{what} {ms:.1f} ms" for what, ms in times.items()))


def measure(predictor: Predictor, photo: np.ndarray, rounds: int) -> dict[str, float]:
    """Median milliseconds of encoding, of a click, of a box, of 64 clicks at once and of each of these."""
    embedding = predictor.encode(photo)
    height, width = photo.shape[:2]
    rng = np.random.default_rng(0)
    many = rng.uniform(0, (width, height), (64, 1, 2))

    def best(embedding: Embedding, **prompt: object) -> object:
        return embedding.prompt(**prompt).best  # type: ignore[arg-type]

    times = interleaved(
        {
            "encode": lambda: predictor.encode(photo),
            "click": lambda: best(embedding, points=[[width / 2, height / 2]], labels=[1]),
            "box": lambda: best(embedding, boxes=[width / 4, height / 4, width / 2, height / 2], multimask=False),
            "64 clicks": lambda: embedding.prompt(many, np.ones((64, 1))).low_res,
        },
        rounds=rounds,
        warmup=1,
    )
    medians = {what: 1e3 * float(np.median(seconds)) for what, seconds in times.items()}
    return {**medians, "each of 64": medians["64 clicks"] / 64}


if __name__ == "__main__":
    main()
