"""Multiply-accumulates of the blocks of efficient convnets, from their closed forms: a table and a figure.

python benchmarks/blocks.py docs/convnets/blocks.png
"""

from __future__ import annotations

import sys

from foveal import costs
from foveal.images.figures import new_figure, write_figure

CHANNELS = (16, 32, 64, 128, 256, 512)
SIZE = (56, 56)


def main(path: str) -> None:
    """Print the table and draw the figure."""
    blocks = {
        "dense 3x3": [costs.convolution(c, c, SIZE) for c in CHANNELS],
        "depthwise separable": [costs.depthwise_separable(c, c, SIZE) for c in CHANNELS],
        "inverted residual, x4": [costs.inverted_residual(c, c, SIZE, expand_ratio=4) for c in CHANNELS],
        "fused inverted residual, x4": [costs.fused_inverted_residual(c, c, SIZE, expand_ratio=4) for c in CHANNELS],
    }
    print(f"| GMACs, map of {SIZE[0]}x{SIZE[1]} | {' | '.join(f'{c} channels' for c in CHANNELS)} |")
    print("|---" * (len(CHANNELS) + 1) + "|")
    for name, row in blocks.items():
        print(f"| {name} | {' | '.join(f'{cost.macs / 1e9:.3f}' for cost in row)} |")
    figure = new_figure(10, 3.8)
    left, right = figure.subplots(1, 2)
    for name, row in blocks.items():
        left.plot(CHANNELS, [cost.macs / 1e9 for cost in row], marker="o", label=name)
    left.set(xscale="log", yscale="log", xlabel="channels in and out", ylabel=f"GMACs, map of {SIZE[0]}x{SIZE[1]}")
    for kernel in (3, 5, 7):
        (line,) = right.plot(
            CHANNELS, [costs.separable_reduction(kernel, c) for c in CHANNELS], marker="o", label=f"{kernel}x{kernel}"
        )
        right.axhline(kernel**2, color=line.get_color(), linestyle=":")
    right.set(xscale="log", ylim=(0, None), xlabel="channels out", ylabel="times fewer than dense; dotted: k²")
    for axes in (left, right):
        axes.set_xticks(CHANNELS, map(str, CHANNELS))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_figure(figure, path, dpi=90)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
