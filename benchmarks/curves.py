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
    """Draw the training loss and, if the logs have it, a validation metric of several runs, by epoch."""
    labels = {"loss": "training loss", metric: f"validation {metric}"}
    shown = [key for key in labels if any(key in line for log in logs.values() for line in log)]
    figure = new_figure(4 * len(shown), 3.2)
    for axes, key in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for name, log in logs.items():
            scored = [line for line in log if key in line]
            marks = "o-" if key == metric else "-"
            axes.plot([line["epoch"] for line in scored], [line[key] for line in scored], marks, ms=3, label=name)
        axes.set(xlabel="epoch", ylabel=labels[key])
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
