"""Hybrid backbones beside their parents: parameters, MACs, time of one image and mIoU after a short training on CamVid.

python benchmarks/hybrids.py CAMVID [--epochs 40] [--seeds 0] [--out runs/hybrids] [--rounds 20] [--toy]

CAMVID is a folder, or a zip file, with train, trainannot, test and testannot. Rows are EfficientViT-B0 with the blocks
of other families in its last stages, and a narrow MambaVision with linear attention; all have B0's segmentation head.
The time is that of the fastest of the native engine and the optimised torch model, on one thread, in turns with the
other rows. Rows that were measured are kept in rows.jsonl, and an interrupted run is resumed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from camvid import HEAD, SIZE, Model, figures, finish, parser, sizes, train_rows

import foveal
from foveal.engine.engine import Engine
from foveal.engine.lowering import NotCoveredError, make_plan
from foveal.timing import interleaved

_MAMBA: dict[str, Any] = {
    "embed_dim": 16,
    "stem_dim": 8,
    "depths": (1, 2, 3, 3),
    "num_heads": (2, 4),
    "drop_path_rate": 0.0,
}


def _b0(stages: dict[int, str]) -> Model:
    return "efficientvit_b0", {"stage_blocks": stages} if stages else {}


ROWS: dict[str, Model] = {
    "efficientvit_b0": _b0({}),
    "convolutions in stages 3 and 4": _b0({3: "convolution", 4: "convolution"}),
    "window attention in stage 4": _b0({4: "window_attention"}),
    "window attention in stages 3 and 4": _b0({3: "window_attention", 4: "window_attention"}),
    "scan in stage 4": _b0({4: "scan"}),
    "softmax attention in stage 4": _b0({4: "softmax_attention"}),
    "narrow mambavision": ("mambavision_t", _MAMBA),
    "narrow mambavision, linear attention in stage 3": (
        "mambavision_t",
        _MAMBA | {"stage_blocks": {3: "linear_attention"}},
    ),
}


def roads(model: Model) -> dict[str, Callable[[], object]]:
    """What computes the logits of one image, by name."""
    name, options = model
    torch.manual_seed(0)
    network = foveal.create_model(name, "segment", num_classes=11, **options, **HEAD).eval()
    x = torch.rand(1, 3, *SIZE)
    optimised = foveal.optimize(copy.deepcopy(network))

    def with_torch() -> object:
        with torch.inference_mode():
            return optimised(x, upsample=False)

    found: dict[str, Callable[[], object]] = {"torch": with_torch}
    try:
        engine = Engine(make_plan(network), 1)
        found["native"] = lambda: engine(x.numpy())
    except NotCoveredError as reason:
        print(reason)
    return found


def times(rounds: int) -> dict[str, str]:
    """Milliseconds of the fastest road of each row, and its name."""
    runs = {(row, road): run for row, model in ROWS.items() for road, run in roads(model).items()}
    medians = {key: float(np.median(seconds)) for key, seconds in interleaved(runs, rounds=rounds, warmup=1).items()}
    shown = {}
    for row in ROWS:
        road = min((key[1] for key in medians if key[0] == row), key=lambda road: medians[row, road])
        shown[row] = f"{1e3 * medians[row, road]:.1f} ms ({road})"
    return shown


def main() -> None:
    """Train the rows that are missing, measure the times, print the table and draw it."""
    made = parser(__doc__, "runs/hybrids")
    made.add_argument("--rounds", type=int, default=20)
    arguments = made.parse_args()
    found, machines = train_rows(ROWS, arguments)
    measured = times(2 if arguments.toy else arguments.rounds)
    print(f"| backbone | parameters | MACs at {SIZE[0]}x{SIZE[1]} | one image | mIoU, test |\n|---|---|---|---|---|")
    for name, model in ROWS.items():
        print(f"| {name} | {sizes(model)} | {measured[name]} | {figures(found[name])} |")
    finish(found, machines, arguments.plot)


if __name__ == "__main__":
    main()
