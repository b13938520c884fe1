"""Short trainings on CamVid for the tables of benchmarks: the data, the loop over the rows, figures of a model."""

from __future__ import annotations

import argparse
import json
import statistics
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import training_rows
from PIL import Image
from training_rows import TrainingRows, draw

import foveal
from foveal.measuring.costs import Costs, count
from foveal.measuring.row_file import Row

SIZE = (360, 480)  #: of CamVid's images
#: Recipe of networks from random weights: one epoch takes well below a minute on one core.
RECIPE: dict[str, Any] = {
    "splits": ["train"],
    "val_split": "",
    "epochs": 40,
    "batch_size": 8,
    "crop": (160, 224),
    "lr": 2e-3,
    "ema_decay": 0.99,
    "workers": 0,
}
TOY: dict[str, Any] = {"epochs": 1, "crop": (64, 64)}
HEAD: dict[str, Any] = {"head_width": 32, "head_depth": 1}  #: that of EfficientViT-B0, for all rows

Model = tuple[str, dict[str, Any]]  #: architecture and options of ``create_model``


def parser(doc: str | None, out: str) -> argparse.ArgumentParser:
    """The arguments of a table of :func:`train_rows`."""
    made = training_rows.parser(doc, out)
    made.add_argument("--epochs", type=int, default=RECIPE["epochs"])
    made.add_argument("--seeds", type=training_rows.seeds, default="0", help="numbers with commas between them")
    made.add_argument("--plot", type=Path, help="write the figure to this PNG")
    return made


def train_rows(models: Mapping[str, Model], arguments: argparse.Namespace) -> tuple[dict[str, list[Row]], str]:
    """Train what is not in ``rows.jsonl`` yet, or resume an interrupted run.

    Returns:
        The rows of each model, with the mIoU on the test images in percent and the seconds of training; and the
        machines that trained them.
    """
    rows = TrainingRows(arguments.out)
    data = prepare(arguments.camvid, arguments.out, arguments.toy)
    recipe = RECIPE | {"epochs": arguments.epochs} | (TOY if arguments.toy else {})
    found: dict[str, list[Row]] = {name: [] for name in models}
    for seed in arguments.seeds:
        for name, (model, options) in models.items():
            settings = recipe | {"model": model, "options": options | HEAD, "seed": seed}
            key = {"row": name, "seed": seed, "epochs": settings["epochs"], "toy": arguments.toy}
            folder = rows.folder(f"{name} {seed} {settings['epochs']}")
            row = rows.row(
                key,
                partial(measure, data, folder, settings),
                lambda row: f"{row['miou']:.1f} %, {row['seconds'] / 60:.1f} minutes",
            )
            found[name].append(row)
    return found, rows.measured_on(row for own in found.values() for row in own)


def measure(data: Path, folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Train; the mIoU on the test images, and the seconds of the training."""
    result = training_rows.train(data, folder, **settings)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = max(line.get("seconds", 0.0) for line in lines)
    return {"miou": 100 * foveal.evaluate(result.best, data, split="test").scores.miou, "seconds": seconds}


def costs(model: Model) -> Costs:
    """Parameters, and MACs for one image of CamVid's size."""
    name, options = model
    with torch.device("meta"):
        network = foveal.create_model(name, "segment", num_classes=11, **options, **HEAD).eval()
    return count(network, 3, SIZE)


def sizes(model: Model) -> str:
    """Two cells of a table: parameters and MACs."""
    cost = costs(model)
    return f"{cost.params / 1e6:.3f} M | {cost.macs / 1e9:.3f} G"


def figures(rows: list[Row]) -> str:
    """Mean mIoU of the rows and, of several, the values."""
    values = [row["miou"] for row in rows]
    each = f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{each}"


def finish(found: Mapping[str, list[Row]], machines: str, plot: Path | None) -> None:
    """Print the machines and the hours of the training, and draw the figure if it is asked for."""
    hours = sum(row["seconds"] for rows in found.values() for row in rows) / 3600
    print(f"{machines}; {hours:.2f} hours of training")
    if plot:
        values = {name: [row["miou"] for row in rows] for name, rows in found.items()}
        draw(values, "mIoU on the test images of CamVid, %", plot)


def prepare(camvid: Path, out: Path, toy: bool) -> Path:
    """The folder of the data: unpacked if it is a zip file; a few images of a quarter of the size for a try."""
    folder = camvid
    if camvid.suffix == ".zip":
        folder = out / "camvid"
        if not folder.exists():
            with zipfile.ZipFile(camvid) as archive:
                archive.extractall(out / "unpacked")
            (out / "unpacked").rename(folder)
    if not toy:
        return folder
    small = out / "toy"
    for split, number in (("train", 16), ("val", 2), ("test", 2)):
        for file in sorted((folder / split).iterdir())[:number]:
            mask = folder / f"{split}annot" / f"{file.stem}.png"
            for source, kernel in ((file, Image.Resampling.BICUBIC), (mask, Image.Resampling.NEAREST)):
                target = small / source.parent.name / f"{file.stem}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                with Image.open(source) as image:
                    Image.fromarray(np.asarray(image.resize((120, 90), kernel))).save(target)
    return small
