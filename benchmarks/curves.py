"""Draw the curves of one training log, as ``foveal train`` does, or loss and a metric of several logs in one figure.

python benchmarks/curves.py curves.png runs/camvid_b0/log.jsonl [--metric miou]
python benchmarks/curves.py compared.png A=runs/a/log.jsonl B=runs/b/log.jsonl [--metric miou]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from foveal.images.figures import new_figure, write_figure
from foveal.training.curves import draw_curves


def read(path: str) -> list[dict[str, Any]]:
    """Read the lines of a log."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def compare(logs: dict[str, list[dict[str, Any]]], metric: str, path: str) -> None:
    """Draw the training loss and a validation metric of several runs, by epoch."""
    figure = new_figure(8, 3.2)
    left, right = figure.subplots(1, 2)
    for name, log in logs.items():
        left.plot([line["epoch"] for line in log], [line["loss"] for line in log], label=name)
        scored = [line for line in log if metric in line]
        right.plot(
            [line["epoch"] for line in scored], [line[metric] for line in scored], "o-", markersize=3, label=name
        )
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel=f"validation {metric}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    write_figure(figure, Path(path))


def main() -> None:
    """Read the logs and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", metavar="FILE.png")
    parser.add_argument("logs", nargs="+", metavar="[NAME=]LOG")
    parser.add_argument("--metric", default="miou")
    arguments = parser.parse_args()
    if len(arguments.logs) == 1:
        draw_curves(read(arguments.logs[0]), arguments.picture, arguments.metric)
    else:
        named = (log.partition("=") for log in arguments.logs)
        compare({name: read(path) for name, _, path in named}, arguments.metric, arguments.picture)


if __name__ == "__main__":
    main()
