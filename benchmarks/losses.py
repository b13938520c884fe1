"""Time each loss, forward and backward, on logits of stride 8; cross entropy and Lovász on upsampled logits as well.

python benchmarks/losses.py [--batch 8] [--size 288x384] [--classes 11] [--threads 1] [--rounds 10] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.commands.console import parse_size
from foveal.measuring import machine
from foveal.measuring.benchmark import interleaved
from foveal.training.losses import LOSSES, SegmentationLoss


def main() -> None:
    """Measure, and print the milliseconds of the median round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=parse_size, default=(288, 384), help="size of the crops, HEIGHTxWIDTH")
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    times = interleaved(
        candidates(arguments.batch, arguments.size, arguments.classes), rounds=arguments.rounds, warmup=1
    )
    report = {name: round(1e3 * float(np.median(seconds)), 1) for name, seconds in times.items()}
    if arguments.json:
        print(json.dumps({**vars(arguments), "machine": machine.describe(), "milliseconds": report}))
        return
    for name, milliseconds in report.items():
        print(f"{name:20s} {milliseconds:8.1f} ms")
    print(machine.one_line())


def candidates(batch: int, size: tuple[int, int], classes: int) -> dict[str, Callable[[], None]]:
    """One run of every loss by its name, of ``lovasz, all pixels``, and of ``cross_entropy, torch``."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    logits = torch.randn(batch, classes, height // 8, width // 8, generator=generator)
    target = torch.randint(0, classes, (batch, height, width), generator=generator)
    full = F.interpolate(logits, size=size, mode="bilinear").requires_grad_()
    runs = {name: partial(step, SegmentationLoss({name: 1.0}), logits.requires_grad_(), target) for name in LOSSES}
    return runs | {
        "lovasz, all pixels": partial(step, SegmentationLoss({"lovasz": 1.0}), full, target),
        "cross_entropy, torch": partial(step, torch_cross_entropy, logits, target),
    }


def torch_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The same loss on logits that are upsampled as a whole."""
    return F.cross_entropy(F.interpolate(logits, size=target.shape[1:], mode="bilinear"), target)


def step(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> None:
    """Run a loss forward and backward."""
    loss(logits, target).backward()


if __name__ == "__main__":
    main()
