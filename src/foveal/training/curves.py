"""Draw the learning curves of a run: loss, learning rate, and the validation figure where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.metrics import UNITS
from ..images.figures import new_figure, write_figure


def draw_curves(lines: Sequence[Mapping[str, Any]], picture: str | Path, metric: str = "miou") -> None:
    """Draw the log of a run.

    Args:
        lines: lines of the log. Those of epochs have ``epoch``, ``loss``, ``lr`` and, after an evaluation, ``metric``
            (0..1, or dB for PSNR); others are ignored.
        picture: PNG file to write.
        metric: name of the validation figure.

    Raises:
        DependencyError: matplotlib is missing.
        InputError: the file cannot be written.
    """
    lines = [line for line in lines if "epoch" in line]
    epochs = [line["epoch"] for line in lines]
    figure = new_figure(9, 3.2)
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [line["loss"] for line in lines], label="training loss")
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    unit, factor = (UNITS[metric], 1) if metric in UNITS else ("%", 100)
    scores = [(line["epoch"], factor * line[metric]) for line in lines if metric in line]
    if scores:
        twin = left.twinx()
        twin.plot(*zip(*scores, strict=True), color="tab:green", marker=".")
        twin.set(ylabel=f"{metric}, {unit}".removesuffix(", "))
    right.plot(epochs, [line["lr"] for line in lines], color="tab:orange")
    right.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    write_figure(figure, picture)
