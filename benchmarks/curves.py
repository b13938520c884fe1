"""Draw the curves of training runs: loss, learning rate, and mIoU where it was measured.

python benchmarks/curves.py runs/camvid_b0/log.jsonl curves.png      (needs matplotlib)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def draw(log: Path, picture: Path) -> None:
    """Read ``log.jsonl`` and write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    epochs = [line["epoch"] for line in lines]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(epochs, [line["loss"] for line in lines], label="training loss")
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    scored = [(line["epoch"], 100 * line["miou"]) for line in lines if "miou" in line]
    if scored:
        twin = left.twinx()
        twin.plot(*zip(*scored, strict=True), color="tab:green", marker=".")
        twin.set(ylabel="mIoU, %")
    right.plot(epochs, [line["lr"] for line in lines], color="tab:orange")
    right.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
