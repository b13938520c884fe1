"""Train small classifiers from random weights on Tiny ImageNet, and compare their accuracy on its validation images.

python benchmarks/tiny_imagenet.py DATA [--out runs/tiny_imagenet] [--seeds 0] [--rows NAME ...] [--epochs N] [--toy]

DATA is the archive of Tiny ImageNet (200 classes, 64x64), or a folder with train/<class> and val/<class>. Each row is
one run of a recipe; the validation images decide nothing in it. Rows that were measured are kept in rows.jsonl, and an
interrupted run is resumed, so the command can be stopped and given again. Curves are drawn into curves.png.
"""

from __future__ import annotations

import json
import statistics
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import training_rows
from curves import compare, read
from training_rows import TrainingRows

import foveal
from foveal.costs import count
from foveal.info import info_of

RECIPES = Path(__file__).parents[1] / "recipes"
#: Name of a row -> recipe, and what it changes.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "EfficientViT-B0": ("tiny_imagenet_b0", {}),
    "EfficientViT-M0": ("tiny_imagenet_m0", {}),
    "MobileNetV3-small": ("tiny_imagenet_mobilenetv3_small", {}),
}
TOY: dict[str, Any] = {"epochs": 2, "batch_size": 8, "crop": (32, 32), "sizes": (), "bn_batches": 2}


def main() -> None:
    """Measure the rows that are missing, draw the curves, and print the table."""
    parser = training_rows.parser(__doc__, "runs/tiny_imagenet", data="data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--epochs", type=int, help="instead of those of the recipes")
    arguments = parser.parse_args()
    rows = TrainingRows(arguments.out)
    data = prepare(arguments.data, arguments.out, arguments.toy)
    changes: dict[str, Any] = {"epochs": arguments.epochs} if arguments.epochs else {}
    changes |= TOY if arguments.toy else {}
    logs: dict[str, list[dict[str, Any]]] = {}
    for name in arguments.rows:
        recipe, own = ROWS[name]
        for seed in arguments.seeds:
            settings = own | changes | {"seed": seed}
            key = {"model": name, "seed": seed, "toy": arguments.toy, "epochs": arguments.epochs or 0}
            folder = rows.folder(f"{recipe} {seed}{' toy' * arguments.toy}")
            run = partial(measure, data, folder, RECIPES / f"{recipe}.yaml", settings)
            rows.row(key, run, lambda row: f"{row['top1']:.1%}, {row['hours']:.1f} h")
            if (folder / "log.jsonl").exists():  # not of a row that another machine measured
                logs[f"{name} {seed}"] = [line for line in read(str(folder / "log.jsonl")) if "epoch" in line]
    if logs:
        compare(logs, "top1", str(arguments.out / "curves.png"))
    found = [row for row in rows.file.rows if row["kind"] == "training" and row["key"]["toy"] == arguments.toy]
    for line in [*table(found), rows.measured_on(found)]:
        print(line)


def measure(data: Path, folder: Path, recipe: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, or resume an interrupted run; the figures of its last weights."""
    result = training_rows.train(data, folder, config=recipe, **settings)
    scores = foveal.evaluate(folder / "last.safetensors", data, split="val").scores
    model = foveal.load_model(folder / "last.safetensors").eval()
    size = info_of(model).preprocess.size
    assert size is not None
    costs = count(model, 3, size)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        **scores.to_dict(),
        "size": list(size),
        "params": costs.params,
        "macs": costs.macs,
        "trained": len(result.losses),
        "hours": max(line["seconds"] for line in log if "epoch" in line) / 3600,
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown, the means of their seeds."""
    lines = [
        "| model | input | parameters | MACs | epochs | seeds | hours | top-1 | top-5 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["key"]["model"], row["trained"]), []).append(row)
    for (name, epochs), group in groups.items():
        first = group[0]
        top1, top5 = (statistics.mean(row[score] for row in group) for score in ("top1", "top5"))
        hours = training_rows.hours_text([row["hours"] for row in group], 1)
        lines.append(
            f"| {name} | {first['size'][0]} | {first['params'] / 1e6:.2f} M | {first['macs'] / 1e6:.1f} M | {epochs} | "
            f"{len(group)} | {hours} | {top1:.1%} | {top5:.1%} |"
        )
    return lines


def prepare(data: Path, out: Path, toy: bool) -> Path:
    """The folder of the data: unpacked if it is an archive; ten classes of few images for a try."""
    folder = data
    if data.suffix == ".zip":
        folder = out / "data"
        if not folder.exists():
            unpack(data, out / "unpacked")
            (out / "unpacked").rename(folder)
    if not toy:
        return folder
    small = out / "toy"
    for split, images in (("train", 8), ("val", 2)):
        for each in sorted((folder / split).iterdir())[:10]:
            for file in sorted(each.iterdir())[:images]:
                target = small / split / each.name / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    return small


def unpack(archive: Path, folder: Path) -> None:
    """Write the images as SPLIT/CLASS/NAME. The classes of the validation images are in a table of the archive."""
    with zipfile.ZipFile(archive) as content:
        names = [name for name in content.namelist() if name.lower().endswith((".jpeg", ".jpg", ".png"))]
        listed = next(name for name in content.namelist() if name.endswith("val_annotations.txt"))
        lines = (line.split("\t") for line in content.read(listed).decode().splitlines())
        classes = {file: name for file, name, *_ in lines}
        for name in names:
            parts = Path(name).parts
            split = next((split for split in ("train", "val") if split in parts), "")
            known = classes.get(parts[-1]) if split == "val" else parts[parts.index("train") + 1] if split else None
            if known is not None and Path(known).name == known:
                target = folder / split / known / parts[-1]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read(name))


if __name__ == "__main__":
    main()
