"""Compare a segmentation model in 16 bits with the same model in float32, on one photograph at each size.

For each mode it prints the share of finite logits, the share of pixels with the class that float32 gives (both at the
image's size, upsampled by the model itself), the peak memory of a process of its own, and the time of its only run.
"float16" and "bfloat16" convert the whole model; "autocast" keeps float32 weights. "float16 attention" gives 16-bit
queries, keys and values to the linear attention of a float32 network. "float16 weights" and "float16 maps" compute in
float32 and round only the weights, or only the outputs of convolutions, norms and activations: better arithmetic cannot
recover what this rounding loses.

python benchmarks/half_precision.py --weights efficientvit_seg_b0_cityscapes.pt --sizes 1024x2048 2048x4096
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import foveal
from foveal import assets
from foveal.images.preparing import prepare
from foveal.images.reading import read_image
from foveal.info import info_of
from foveal.layers import linear_attention
from foveal.measuring import machine

MODES = (
    "float32",
    "float16 attention",
    "float16 weights",
    "float16 maps",
    "float16",
    "float16 autocast",
    "bfloat16 attention",
    "bfloat16 weights",
    "bfloat16 maps",
    "bfloat16",
    "bfloat16 autocast",
)


def main() -> None:
    """Run every mode at every size in a process of its own, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", default="efficientvit_b0.camvid", help="reference of a segmentation model")
    parser.add_argument("--sizes", nargs="+", default=["1024x2048"], metavar="HxW")
    parser.add_argument("--image", type=Path, default=assets.FOLDER / "street.jpg", help="resized to each size")
    parser.add_argument("--modes", nargs="+", default=MODES[1:], choices=MODES[1:], metavar="MODE")
    arguments = parser.parse_args()
    print(f"{arguments.weights}, {machine.one_line()}, torch {torch.__version__}")
    print(f"{'size':>10}  {'mode':18} {'finite':>9} {'agreement':>10} {'peak MiB':>9} {'seconds':>8}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "classes.npy"
        for size in arguments.sizes:
            expected = None
            for mode in (MODES[0], *arguments.modes):
                row = measure_alone(arguments.weights, arguments.image, size, mode, output)
                classes = np.load(output)
                expected = classes if expected is None else expected
                print(
                    f"{size:>10}  {mode:18} {row['finite']:9.3%} {(classes == expected).mean():10.4%} "
                    f"{row['peak_mib']:9} {row['seconds']:8}",
                    flush=True,
                )


def measure_alone(weights: str, image: Path, size: str, mode: str, output: Path) -> dict[str, float]:
    """Run :func:`measure` in a new process, because peak memory is counted per process."""
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import half_precision as h; h.measure()"
    call = [sys.executable, "-c", script, weights, str(image), size, mode, str(output)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{mode} at {size} failed: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def measure() -> None:
    """Run one mode once, save its classes, print the figures as JSON."""
    weights, image, size, mode, output = sys.argv[1:]
    height, width = (int(side) for side in size.split("x"))
    model = foveal.load_model(weights)
    preprocess = dataclasses.replace(info_of(model).preprocess, max_side=None)
    photo = Image.fromarray(read_image(image)).resize((width, height), Image.Resampling.BICUBIC)
    x = torch.from_numpy(prepare(np.asarray(photo), preprocess))
    name, _, kind = mode.partition(" ")
    dtype = getattr(torch, name)
    autocast = torch.autocast("cpu", dtype) if kind == "autocast" else contextlib.nullcontext()
    if kind == "attention":
        exact = linear_attention.linear_attention

        def round_inputs(q: Tensor, k: Tensor, v: Tensor, *, eps: float) -> Tensor:
            return exact(q.to(dtype), k.to(dtype), v.to(dtype), eps=eps).float()

        linear_attention.linear_attention = round_inputs
    elif kind == "weights":
        model = model.to(dtype).float()
    elif kind == "maps":
        for module in model.modules():
            if not any(True for _ in module.children()):
                module.register_forward_hook(lambda module, inputs, output: output.to(dtype).float())
    elif not kind:
        model, x = model.to(dtype), x.to(dtype)
    start = time.perf_counter()
    with torch.inference_mode(), autocast:
        logits = model(x)[0]
        seconds = time.perf_counter() - start
    finite = float(np.mean([plane.isfinite().float().mean().item() for plane in logits]))
    np.save(output, logits.argmax(0).to(torch.uint8).numpy())
    status = Path("/proc/self/status").read_text().splitlines()  # Linux; ru_maxrss starts with the parent's figure
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps({"finite": finite, "seconds": round(seconds, 2), "peak_mib": round(peak / 1024)}))


if __name__ == "__main__":
    main()
