"""Train on CamVid without a teacher and with each term of distillation, and compare the mIoU on its test images.

python benchmarks/distillation.py CAMVID [--seeds 0,1,2] [--rows NAME,...] [--weights REF] [--epochs N] [--teacher REF]
    [--out runs/distillation] [--plot FILE.png] [--toy]

CAMVID is a folder, or a zip file, with train, val and test as for ``foveal train``. All rows have the settings of
recipes/camvid_b0_scratch.yaml; they differ in what the line "command" adds. Rows that were measured are kept in
rows.jsonl, and an interrupted run is resumed, with its own time going on. With --toy, a few small images and two epochs
try the command.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import training_rows
from camvid import prepare
from training_rows import TrainingRows

import foveal
from foveal.config import read_yaml
from foveal.measuring.row_file import Row

RECIPE = Path(__file__).parents[1] / "recipes" / "camvid_b0_scratch.yaml"
TOY: dict[str, Any] = {"epochs": 2, "crop": [64, 64], "splits": ["train"], "log_every": 1}
BASE = "no teacher"
CACHE = "stored logits"

#: The terms of each row; with no term of a teacher, there is none.
ROWS: dict[str, dict[str, Any]] = {
    BASE: {},
    "logits": {"logits": 1.0},
    "channel": {"channel": 3.0},
    "features": {"features": 1.0},
    "ema": {"ema": 1.0},
    "logits + ema": {"logits": 1.0, "ema": 1.0},
    "logits + channel + features": {"logits": 1.0, "channel": 3.0, "features": 1.0},
    CACHE: {"logits": 1.0},
}


def main() -> None:
    """Measure the rows that are missing, and print the table."""
    parser = training_rows.parser(__doc__, "runs/distillation")
    parser.add_argument("--seeds", type=training_rows.seeds, default="0", help="numbers with commas between them")
    parser.add_argument("--rows", default=",".join(ROWS), help="names with commas between them; default: all")
    parser.add_argument("--weights", default="", help="weights that all rows start from, besides random ones")
    parser.add_argument("--epochs", type=int, default=None, help="default: those of the recipe")
    parser.add_argument("--teacher", default="efficientvit_b0.camvid")
    parser.add_argument("--plot", type=Path, help="write the figure to this PNG")
    arguments = parser.parse_args()
    chosen = arguments.rows.split(",")
    if unknown := [name for name in chosen if name not in ROWS]:
        parser.error(f"no row {unknown[0]!r}: give some of {', '.join(ROWS)}")
    rows = TrainingRows(arguments.out)
    data = prepare(arguments.camvid, arguments.out, arguments.toy)
    kept = []
    for seed in arguments.seeds:
        for name in chosen:
            settings = settings_of(name, arguments)
            key = {"row": name, "seed": seed, "settings": settings}
            run = partial(measure, data, rows.folder(f"{name} {seed}"), settings | {"seed": seed})
            kept.append(rows.row(key, run, lambda row: f"{row['miou']:.2%}, {row['seconds'] / 3600:.2f} h"))
    for line in [*table(kept), "", rows.measured_on(kept)]:
        print(line)
    if arguments.plot:
        values = {name: [100 * row["miou"] for row in kept if row["key"]["row"] == name] for name in chosen}
        training_rows.draw(values, "mIoU on the test images of CamVid, %", arguments.plot)


def settings_of(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a row changes of the recipe, but for the seed."""
    settings = dict(TOY) if arguments.toy else {}
    settings |= {"weights": arguments.weights} if arguments.weights else {}
    settings |= {"epochs": arguments.epochs} if arguments.epochs else {}
    terms = ROWS[name]
    settings |= {"distil": terms} if terms else {}
    settings |= {"teacher": arguments.teacher} if set(terms) - {"ema"} else {}
    settings |= {"teacher_cache": str(arguments.out / "outputs")} if name == CACHE else {}
    return settings


def measure(data: Path, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, or resume an interrupted run: the mIoU on the test images, and the seconds that it took."""
    started = (folder / "state.pt").exists()
    recipe = read_yaml(RECIPE) | settings
    begun = time.monotonic()
    result = training_rows.train(data, folder, **recipe)
    spent = time.monotonic() - begun
    seconds = _steps_seconds(folder)
    report = {"seconds": max(seconds, 0 if started else spent), "epochs": len(result.losses)}
    return {"miou": foveal.evaluate(result.best, data, split="test").scores.miou, **report}


def _steps_seconds(folder: Path) -> float:
    """Seconds of all steps of a run, over its interruptions: the last that its log has."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return max((line["seconds"] for line in lines if "seconds" in line), default=0.0)


def table(rows: list[Row]) -> list[str]:
    """The rows as Markdown, with the difference from the runs without a teacher of the same seeds."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        found.setdefault(row["key"]["row"], {})[row["key"]["seed"]] = row
    base = found.get(BASE, {})
    lines = ["| terms | mIoU, test | seeds | difference | hours |", "|---|---|---|---|---|"]
    for name, by_seed in found.items():
        values = [row["miou"] for row in by_seed.values()]
        pairs = [row["miou"] - base[seed]["miou"] for seed, row in by_seed.items() if seed in base and name != BASE]
        difference = f"{100 * statistics.mean(pairs):+.2f}" if pairs else ""
        if len(pairs) > 1:
            difference += f" ± {100 * statistics.stdev(pairs):.2f}"
        hours = training_rows.hours_text([row["seconds"] / 3600 for row in by_seed.values()])
        each = ", ".join(f"{value:.2%}" for value in values)
        lines.append(f"| {name} | {statistics.mean(values):.2%} | {each} | {difference} | {hours} |")
    lines += ["", "commands, for each seed:", "", "```bash"]
    for name, by_seed in found.items():
        settings = next(iter(by_seed.values()))["key"]["settings"]
        words = [f"--set.{key} {shlex.quote(_text(value))}" for key, value in settings.items()]
        command = ["foveal train CAMVID --config camvid_b0_scratch --seed SEED", *words]
        lines.append(f"{' '.join(command)}   # {name}")
    return [*lines, "```"]


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value).replace('"', "")


if __name__ == "__main__":
    main()
