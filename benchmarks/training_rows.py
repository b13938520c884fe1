"""Tables whose rows are trainings: each is measured once, and an interrupted run is resumed."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import foveal
from foveal.images.figures import new_figure, write_figure
from foveal.measuring import machine
from foveal.measuring.row_file import Row, RowFile
from foveal.training.train import TrainResult


def parser(doc: str | None, out: str, data: str = "camvid") -> argparse.ArgumentParser:
    """The arguments that all of these tables have.

    Args:
        doc: the program's docstring, whose first line is its help.
        out: default folder of the runs and of ``rows.jsonl``.
        data: name of the argument for the data.
    """
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument(data, type=Path)
    made.add_argument("--out", type=Path, default=Path(out))
    made.add_argument("--toy", action="store_true", help="few small images, to try the command")
    return made


def seeds(text: str) -> list[int]:
    """Type of an argument: numbers with commas between them."""
    return [int(part) for part in text.split(",")]


class TrainingRows:
    """The rows of a table in ``rows.jsonl`` of a folder, and the folders of their runs. Trainings use one thread.

    Rows of other machines are kept: scores do not depend on the machine, but for rounding.

    Args:
        out: the folder.
        kind: of the rows.
    """

    def __init__(self, out: Path, kind: str = "training") -> None:
        torch.set_num_threads(1)
        self.out, self.kind = out, kind
        self.file = RowFile(out / "rows.jsonl", of_any_machine=True)

    def row(
        self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]], describe: Callable[[Row], str]
    ) -> Row:
        """The row with this key: from the file, or measured now, kept in the file and printed.

        Args:
            key: what is measured: first the name of the row, then its seed and what else tells it from others.
            measure: trains, and returns the figures.
            describe: the figures that are printed of a new row.
        """
        row = self.file.find(self.kind, key)
        if row is None:
            row = {"kind": self.kind, "key": dict(key), **measure()}
            self.file.add(row)
            print(f"{next(iter(key.values()))}, seed {key['seed']}: {describe(row)}", flush=True)
        return row

    def measured_on(self, rows: Iterable[Row]) -> str:
        """The machines and versions that measured some of the rows, in one line."""
        found = self.file.machines_of(rows)
        return "; ".join(f"one thread of {machine.one_line(where)}, torch {where['torch']}" for where in found)

    def folder(self, name: str) -> Path:
        """The folder of a run."""
        return self.out / name.translate(str.maketrans(" :,", "___"))


def hours_text(hours: Sequence[float], digits: int = 2) -> str:
    """The mean of hours, or the smallest and the largest if machines differed: more than by half."""
    if max(hours) > 1.5 * min(hours):
        return f"{min(hours):.{digits}f} to {max(hours):.{digits}f}"
    return f"{statistics.mean(hours):.{digits}f}"


def draw(found: Mapping[str, Sequence[float]], label: str, path: Path) -> None:
    """A dot for each value of a row, and a line at their mean.

    Args:
        found: the values of each row.
        label: of the axis.
        path: of the PNG.
    """
    figure = new_figure(8, 0.5 * len(found) + 1)
    axes = figure.subplots()
    for place, values in enumerate(found.values()):
        axes.plot(values, [place] * len(values), "o", color="tab:blue", markersize=4)
        axes.plot([statistics.mean(values)], [place], "|", color="tab:blue", markersize=18)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set(xlabel=label)
    axes.grid(alpha=0.3, axis="x")
    write_figure(figure, path)


def train(data: Path, folder: Path, **settings: Any) -> TrainResult:
    """Train as :func:`foveal.train`, or resume the run that was interrupted in this folder."""
    return foveal.train(data, out=folder, resume=(folder / "state.pt").exists(), **settings)
