"""Time of models after ``foveal.optimize`` over their time before it, on the CPU, and the change of their outputs.

python benchmarks/optimize.py [--models efficientvit_b0:segment ...] [--size 224x224] [--rounds 30] [--threads 1]
"""

from __future__ import annotations

import argparse

import torch

import foveal
from foveal.measuring import machine
from foveal.measuring.benchmark import interleaved, ratio

MODELS = ("efficientvit_b0:segment", "efficientvit_b1:classify", "efficientvit_l1:classify", "efficientvit_m0:classify")


@torch.inference_mode()
def main() -> None:
    """Time both models of each pair in turns and print the median of the round-by-round ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME:TASK")
    parser.add_argument("--size", default="224x224", metavar="HxW")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{machine.one_line()}, torch {torch.__version__}, {arguments.threads} threads, {arguments.size}")
    image = torch.randn(1, 3, *map(int, arguments.size.split("x")))
    for name in arguments.models:
        model = foveal.create_model(*name.split(":")).eval()
        fast = foveal.optimize(model)
        expected = model(image)
        change = (fast(image) - expected).abs().max() / expected.abs().max()
        runs = {"as built": lambda net=model: net(image), "optimised": lambda net=fast: net(image)}
        times = interleaved(runs, rounds=arguments.rounds)
        print(f"{name:28} {ratio(times['optimised'], times['as built']):.2f}  outputs moved {change:.1e}", flush=True)


if __name__ == "__main__":
    main()
