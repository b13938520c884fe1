"""Train on CamVid with one setting changed at a time, and compare the mIoU on its test images.

python benchmarks/training_features.py CAMVID [--weights REF] [--seeds 1] [--out runs/training_features] [--toy]

CAMVID is a folder, or a zip file, with train, trainannot, test and testannot. Each row is one short run of the recipe
below; the row without a change has three seeds, whose spread says which differences mean nothing. Rows that were
measured are kept in rows.jsonl, and an interrupted run is resumed. Rows of frozen parts and of layer-wise decay are
measured with --weights only: they are about what a backbone has learnt before.
"""

from __future__ import annotations

import statistics
from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import Any

import training_rows
from camvid import prepare
from training_rows import TrainingRows

import foveal
from foveal.measuring.row_file import Row, RowFile

RECIPE: dict[str, Any] = {
    "splits": ["train"],
    "val_split": "",
    "epochs": 8,
    "batch_size": 8,
    "crop": (192, 256),
    "lr": 1.5e-3,
    "loss": {"cross_entropy": 1.0, "lovasz": 0.5},
    "ema_decay": 0.99,
    "workers": 0,
}
WITH_WEIGHTS: dict[str, Any] = {"lr": 5e-4, "epochs": 4}
TOY: dict[str, Any] = {"epochs": 2, "crop": (64, 64)}
BASE = "the recipe"
SEEDS_OF_BASE = 3

FEATURES: dict[str, dict[str, Any]] = {
    BASE: {},
    "early stopping on val, patience 2": {"val_split": "val", "eval_every": 1, "patience": 2},
    "class weights: none": {"class_weights": "none"},
    "class weights: median": {"class_weights": "median"},
    "class weights: bicyclist 5, pole 3, others 1": {"class_weights": {"bicyclist": 5.0, "pole": 3.0}},
    "vertical flip 0.5": {"augment": {"vertical_flip": 0.5}},
    "rotate 10": {"augment": {"rotate": 10}},
    "scale 0.5 to 2": {"scale": (0.5, 2.0)},
    "RandAugment 2, 5": {"augment": {"rand_augment": [2, 5]}},
    "random erasing 0.25": {"augment": {"erase": 0.25}},
    "CutMix 1.0": {"augment": {"cutmix": 1.0}},
    "SGD": {"optimizer": "sgd", "lr": 1.5e-2, "momentum": 0.9, "weight_decay": 5e-4},
    "Muon": {"optimizer": "muon"},
    "schedule: poly": {"schedule": "poly"},
    "schedule: step": {"schedule": "step"},
    "schedule: linear": {"schedule": "linear"},
    "schedule: constant": {"schedule": "constant"},
    "two phases of half the epochs": {},
}
OF_WEIGHTS: dict[str, dict[str, Any]] = {
    "freeze: backbone": {"freeze": ["backbone"]},
    "freeze: stage2": {"freeze": ["stage2"]},
    "freeze: norms": {"freeze": ["norms"]},
    "layer-wise decay 0.8": {"layer_decay": 0.8},
}
PHASES = "two phases of half the epochs"


def main() -> None:
    """Measure the rows that are missing, and print the table."""
    parser = training_rows.parser(__doc__, "runs/training_features")
    parser.add_argument("--weights", default="")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    rows = TrainingRows(arguments.out)
    data = prepare(arguments.camvid, arguments.out, arguments.toy)
    recipe = RECIPE | (WITH_WEIGHTS | {"weights": arguments.weights} if arguments.weights else {})
    recipe |= TOY if arguments.toy else {}
    features = FEATURES | (OF_WEIGHTS if arguments.weights else {})
    for name, changes in features.items():
        seeds = max(arguments.seeds, SEEDS_OF_BASE) if name == BASE else arguments.seeds
        for seed in range(seeds):
            key = {"feature": name, "seed": seed, "weights": Path(arguments.weights).name, "toy": arguments.toy}
            settings = recipe | changes | {"seed": seed}
            run = partial(measure, data, rows.folder(f"{name} {seed}"), settings, name == PHASES)
            rows.row(key, run, lambda row: f"{row['miou']:.2%}")
    found = rows_of(rows.file, features, arguments.toy)
    for line in [*table(found), rows.measured_on(found)]:
        print(line)


def measure(data: Path, folder: Path, settings: dict[str, Any], in_phases: bool) -> Row:
    """Train, or resume an interrupted run; the mIoU on the test images, and the number of epochs."""
    if in_phases:
        half = settings["epochs"] // 2
        if not (folder / "config.1.yaml").exists():
            training_rows.train(data, folder, **settings | {"epochs": half})
            result = foveal.train(data, out=folder, resume=True, new_phase=True, epochs=settings["epochs"])
        else:
            result = foveal.train(data, out=folder, resume=True)
    else:
        result = training_rows.train(data, folder, **settings)
    miou = foveal.evaluate(result.best, data, split="test").scores.miou
    return {"miou": miou, "epochs": len(result.losses)}


def rows_of(rows: RowFile, features: Container[str], toy: bool) -> list[Row]:
    """The rows of a table."""
    of_table = [row for row in rows.rows if row["kind"] == "training" and row["key"]["toy"] == toy]
    return [row for row in of_table if row["key"]["feature"] in features]


def table(rows: list[Row]) -> list[str]:
    """The rows as Markdown, with the difference from the recipe."""
    found: dict[str, list[tuple[float, int]]] = {}
    for row in rows:
        found.setdefault(row["key"]["feature"], []).append((row["miou"], row["epochs"]))
    base = [miou for miou, _ in found[BASE]]
    lines = ["| change of the recipe | mIoU, test | difference | epochs |", "|---|---|---|---|"]
    for name, values in found.items():
        mean = statistics.mean(miou for miou, _ in values)
        difference = "" if name == BASE else f"{100 * (mean - statistics.mean(base)):+.1f}"
        epochs = ", ".join(map(str, dict.fromkeys(count for _, count in values)))
        lines.append(f"| {name} | {mean:.1%} | {difference} | {epochs} |")
    spread = ", ".join(f"{value:.1%}" for value in base)
    return [*lines, f"seeds of the recipe: {spread}"]


if __name__ == "__main__":
    main()
