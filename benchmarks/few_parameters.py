"""Tune a few parameters of published weights on other data, and compare with training all of them.

python benchmarks/few_parameters.py CAMVID --weights CITYSCAPES_B0 [--seeds 0,1,2] [--out FOLDER] [--plot FILE.png]
python benchmarks/few_parameters.py PENNFUDAN --pennfudan [--weights tf_efficientnet_lite0.sam] ...

CAMVID is a folder, or a zip file, with train, trainannot, test and testannot; the weights are those of EfficientViT-B0
for Cityscapes, and the figure is the mIoU on the test images. PENNFUDAN is a zip file of images and masks; in the order
of their names every fifth image is a test image, and the figure is the mean IoU of the masks from boxes. Each kind of
``tune`` trains at most 5 % of the parameters. Runs that were measured are kept in rows.jsonl, and an interrupted one is
resumed. The learning rates were not searched for. On one core of an Intel Xeon, a run on CamVid takes about two
minutes and one on Penn-Fudan about four; on AMD's Zen 5, one on CamVid takes about one.
"""

from __future__ import annotations

import shlex
import statistics
import sys
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import training_rows
from camvid import prepare
from training_features import RECIPE, TOY, WITH_WEIGHTS
from training_rows import TrainingRows

import foveal
from foveal.measuring.row_file import Row
from foveal.weights.checkpoints import read_state

ALL = "all parameters"
KINDS: dict[str, dict[str, Any]] = {
    ALL: {},
    "head": {"tune": "head"},
    "norms": {"tune": "norms"},
    "bias": {"tune": "bias"},
    "prompt": {"tune": "prompt"},
}
FEW: dict[str, Any] = {"lr": 2e-3}  # of the kinds
RANK, OBJECTS_RANK = 1, 4  # the largest powers of two with which lora stays below the share
SHARE = 0.05  # largest, of the trained parameters
OBJECTS: dict[str, Any] = {
    "model": "tf_efficientnet_lite0",
    "task": "prompt",
    "splits": ["train"],
    "val_split": "",
    "epochs": 1,
    "samples_per_epoch": 64,
    "batch_size": 4,
    "prompts": 3,
    "clicks": 1,
    "lr": 5e-5,
    "ema_decay": 0.9,
    "grad_clip": 1.0,
    "freeze_bn": True,
    "workers": 0,
}
OBJECTS_FEW: dict[str, Any] = {"lr": 5e-4}
OBJECTS_TOY: dict[str, Any] = {"samples_per_epoch": 2, "batch_size": 2, "prompts": 1, "clicks": 0}
STUDENT = "tf_efficientnet_lite0.sam"
EVERY = 5  # every fifth image of Penn-Fudan is a test image
BOX = "box, surest of 3"


def main() -> None:
    """Measure the rows that are missing, and print the table."""
    parser = training_rows.parser(__doc__, "runs/few_parameters", data="data")
    parser.add_argument("--weights", default="")
    parser.add_argument("--pennfudan", action="store_true", help="the promptable model on Penn-Fudan")
    parser.add_argument("--seeds", type=training_rows.seeds, default="0,1,2")
    parser.add_argument("--plot", type=Path, help="write the figure to this PNG")
    arguments = parser.parse_args()
    weights = arguments.weights or (STUDENT if arguments.pennfudan else "")
    if not weights:
        parser.error("--weights: give the weights of EfficientViT-B0 for Cityscapes")
    if arguments.pennfudan:
        data = split(arguments.data, arguments.out, arguments.toy)
        recipe, few, toy, rank = OBJECTS, OBJECTS_FEW, OBJECTS_TOY, OBJECTS_RANK
    else:
        data = prepare(arguments.data, arguments.out, arguments.toy)
        recipe, few, toy, rank = RECIPE | WITH_WEIGHTS, FEW, TOY, RANK
    kinds = KINDS | {f"lora, rank {rank}": {"tune": "lora", "lora_rank": rank}}
    recipe = recipe | {"weights": weights} | (toy if arguments.toy else {})
    rows = TrainingRows(arguments.out, "tuning")
    shared = {"data": data.name, "weights": Path(weights).name, "toy": arguments.toy}
    for seed in arguments.seeds:
        for name, changes in kinds.items():
            key = {"kind": name, "seed": seed, **shared}
            settings = recipe | (few if changes else {}) | changes | {"seed": seed}
            run = partial(measure, data, rows.folder(f"{data.name} {name} {seed}"), settings)
            rows.row(key, run, lambda row: f"{row['figure']:.2%}")
    found = [row for row in rows.file.rows if shared.items() <= row["key"].items()]
    for line in [*table(found), f"python {shlex.join(sys.argv)}", rows.measured_on(found)]:
        print(line)
    if arguments.plot:
        values = {name: [100 * row["figure"] for row in found if row["key"]["kind"] == name] for name in kinds}
        what = "masks from boxes, Penn-Fudan" if arguments.pennfudan else "CamVid"
        training_rows.draw(values, f"mIoU on the test images, {what}, %", arguments.plot)


def measure(data: Path, folder: Path, settings: dict[str, Any]) -> Row:
    """Train, or resume an interrupted run; the figure on the test images, the trained share, the file, the time."""
    start = time.monotonic()
    result = training_rows.train(data, folder, **settings)
    hours = (time.monotonic() - start) / 3600
    info = read_state(result.best)[1]
    share = (info.notes.get("tuned") if info else None) or {"trained": 1, "parameters": 1}
    share = share["trained"] / share["parameters"]
    if settings.get("tune") and share > SHARE:
        raise SystemExit(f"{settings['tune']}: {share:.1%} of the parameters are trained, more than {SHARE:.0%}")
    options: dict[str, Any] = {"prompts": "boxes"} if "clicks" in settings else {}
    report = foveal.evaluate(result.best, data, split="test", **options)
    figure = report.miou(BOX) if "clicks" in settings else report.scores.miou
    return {"figure": figure, "share": share, "bytes": result.best.stat().st_size, "hours": hours}


def table(rows: list[Row]) -> list[str]:
    """The rows as Markdown: of each kind the mean over the seeds, the largest and the smallest figure."""
    lines = ["| trained | share | mIoU, test | lowest to highest | file | hours a run |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["key"]["kind"] for row in rows):
        found = [row for row in rows if row["key"]["kind"] == name]
        figures = [row["figure"] for row in found]
        hours = training_rows.hours_text([row["hours"] for row in found], 3)
        lines.append(
            f"| {name} | {found[0]['share']:.1%} | {statistics.mean(figures):.1%} | {min(figures):.1%} to "
            f"{max(figures):.1%} ({len(found)}) | {found[0]['bytes'] / 1e6:.2f} MB | {hours} |"
        )
    return lines


def split(archive: Path, out: Path, toy: bool) -> Path:
    """Penn-Fudan with every fifth image, in the order of the names, as the test split; few images for a try."""
    folder = out / ("pennfudan_toy" if toy else "pennfudan")
    if folder.exists():
        return folder
    unpacked = out / "unpacked"
    with zipfile.ZipFile(archive) as file:
        file.extractall(unpacked)
    for number, image in enumerate(sorted((unpacked / "images").iterdir())[: 10 if toy else None]):
        name = "test" if number % EVERY == EVERY - 1 else "train"
        for source in (image, unpacked / "masks" / f"{image.stem}.png"):
            target = unpacked / "split" / source.parent.name / name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
    (unpacked / "split").rename(folder)
    return folder


if __name__ == "__main__":
    main()
