"""Train the example of dense regression with several seeds, and print its errors beside those of the mean.

python benchmarks/depth.py DATA [--seeds 0,1,2] [--out runs/depth] [--toy]

DATA is a folder that rendered_depth.py wrote. Each run follows recipes/rendered_depth_b0.yaml; the figures are those of
the test images. Runs that were measured are kept in rows.jsonl, and an interrupted one is resumed. Curves of the runs
are drawn into curves.png.
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import training_rows
from curves import compare, read
from rendered_depth import baselines
from training_rows import TrainingRows

import foveal
from foveal.data.regression import RegressionData
from foveal.evaluation.regression import FIGURES, in_unit
from foveal.measuring.row_file import Row

RECIPE = Path(__file__).parents[1] / "recipes/rendered_depth_b0.yaml"
TOY: dict[str, Any] = {"epochs": 2, "eval_every": 1}
MODEL = "the model"


def main() -> None:
    """Measure the seeds that are missing, draw the curves, and print the table."""
    parser = training_rows.parser(__doc__, "runs/depth", data="data")
    parser.add_argument("--seeds", type=training_rows.seeds, default="0,1,2", help="numbers with commas between them")
    arguments = parser.parse_args()
    rows, found = TrainingRows(arguments.out), []
    logs: dict[str, list[dict[str, Any]]] = {}
    for seed in arguments.seeds:
        folder = rows.folder(f"seed {seed}{' toy' * arguments.toy}")
        settings = {"seed": seed, **(TOY if arguments.toy else {})}
        key = {"row": MODEL, "seed": seed, "toy": arguments.toy}
        run = partial(measure, arguments.data, folder, settings)
        found.append(rows.row(key, run, lambda row: f"AbsRel {row['abs_rel']:.2%}, {row['hours']:.2f} h"))
        if (folder / "log.jsonl").exists():  # not of a row that another machine measured
            logs[f"seed {seed}"] = [line for line in read(str(folder / "log.jsonl")) if "epoch" in line]
    if logs:
        compare(logs, "abs_rel", str(arguments.out / "curves.png"))
    print("\n".join(table(arguments.data, found)))
    print(f"{rows.measured_on(found)}; {training_rows.hours_text([row['hours'] for row in found])} hours a run")


def measure(data: Path, folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Train, or resume an interrupted run; the errors of its best weights on the test images."""
    result = training_rows.train(data, folder, config=RECIPE, **settings)
    figures = foveal.evaluate(result.best, data, split="test").scores.figures
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {**figures, "hours": max(line.get("seconds", 0.0) for line in lines) / 3600}


def table(data: Path, rows: list[Row]) -> list[str]:
    """The mean of the seeds and the smallest and largest error of each, and the errors of the means, as Markdown."""
    others = {name: scores.figures for name, scores in baselines(data).items()}
    names, unit = list(next(iter(others.values()))), RegressionData.open(data, ["test"]).target.unit
    lines = [f"| prediction | {' | '.join(FIGURES[name][0] for name in names)} |", "|---|" + "--:|" * len(names)]
    cells = []
    for name in names:
        values = [row[name] for row in rows]
        mean, low, high = (in_unit(name, value, unit) for value in (statistics.mean(values), min(values), max(values)))
        cells.append(f"{mean} ({low} to {high})")
    lines.append(f"| {MODEL}, seeds {', '.join(str(row['key']['seed']) for row in rows)} | {' | '.join(cells)} |")
    for name, figures in others.items():
        lines.append(f"| {name} | {' | '.join(in_unit(key, value, unit) for key, value in figures.items())} |")
    return lines


if __name__ == "__main__":
    main()
