"""Top-1 and top-5 accuracy of EfficientNet-Lite0's published weights with the padding or epsilon of other ports.

python benchmarks/conventions.py IMAGES      (one folder per ImageNet class, or files named by WordNet ids)
"""

from __future__ import annotations

import sys
from typing import Any

import foveal
from foveal.info import info_of
from foveal.layers.conv import set_convention
from foveal.prediction.predictor import Predictor
from foveal.prediction.torch_runner import TorchRunner

OWN: dict[str, Any] = {"norm_eps": 1e-3, "padding": "same"}
OTHERS: dict[str, dict[str, Any]] = {
    "their own": OWN,
    "symmetric padding": {**OWN, "padding": "symmetric"},
    "epsilon 1e-5": {**OWN, "norm_eps": 1e-5},
}

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    model = foveal.load_model("tf_efficientnet_lite0.in1k")
    print("| conventions | top-1 | top-5 |\n|---|---|---|")
    for name, settings in OTHERS.items():
        set_convention(model, **settings)
        found = foveal.evaluate(Predictor(TorchRunner(model), info_of(model), "torch"), sys.argv[1])
        print(f"| {name} | {found.top1:.2%} | {found.top5:.2%} |", flush=True)
