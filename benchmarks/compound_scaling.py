"""The compound scaling formula beside the released EfficientNets: multiply-accumulates, counted, as table and figure.

python benchmarks/compound_scaling.py docs/convnets/scaling.png
"""

from __future__ import annotations

import sys

import matplotlib
import torch
from torch import nn

from foveal.costs import count
from foveal.factory import create_model
from foveal.models.efficientnet import EFFICIENTNET_COEFFICIENTS, Scale, compound_scale, scaled_config
from foveal.models.mobilenet import ClassifierHead, MobileNet
from foveal.tasks.classify import ClassificationModel

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def by_formula(scale: Scale) -> nn.Module:
    """The classifier that the formula's multipliers give."""
    config = scaled_config(scale)
    backbone = MobileNet(config)
    return ClassificationModel(backbone, ClassifierHead(backbone.feature_info[-1].channels, config=config)).eval()


def main(path: str) -> None:
    """Count, print the table, draw the figure."""
    found: dict[str, list[float]] = {"formula": [], "released": []}
    print("| phi | formula: width, depth, pixels | GMACs | released: width, depth, pixels | GMACs | B0 x 2^phi |")
    print("|---|---|---|---|---|---|")
    for phi in range(8):
        scales = {"formula": compound_scale(phi), "released": EFFICIENTNET_COEFFICIENTS[f"efficientnet_b{phi}"]}
        with torch.device("meta"):
            models = {"formula": by_formula(scales["formula"]), "released": create_model(f"efficientnet_b{phi}").eval()}
            for kind, model in models.items():
                side = scales[kind].resolution
                found[kind].append(count(model, 3, (side, side)).macs / 1e9)
        cells = [
            f"{scales[kind].width:.2f}, {scales[kind].depth:.2f}, {scales[kind].resolution} | {found[kind][-1]:.2f}"
            for kind in found
        ]
        print(f"| {phi} | {' | '.join(cells)} | {found['released'][0] * 2**phi:.2f} |")
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    axes.plot(range(8), found["formula"], "o-", label="formula, alpha 1.2, beta 1.1, gamma 1.15")
    axes.plot(range(8), found["released"], "s-", label="released B0 to B7")
    axes.plot(range(8), [found["released"][0] * 2**phi for phi in range(8)], "k:", label="B0 x 2^phi")
    axes.set(yscale="log", xlabel="phi", ylabel="GMACs at the network's own resolution")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
