"""Automatic masks: the full grid of 32 x 32 points against the fast mode, prompts, time and average recall.

Data: images and one text file for each, of the same name, whose lines are objects: a class and the corners of its
outline, x and y as parts of width and height (YOLO's segmentation format). Average recall is COCO's, without classes:
up to 100 masks of an image, the surest first, IoU of 0.5 to 0.95 in steps of 0.05, over all objects. The decoder's
cost is 1.81 GMACs for each prompt. Each image is a line of the JSON file, and is not measured again.

OMP_NUM_THREADS=1 python benchmarks/everything.py IMAGES LABELS [--model tinyvit_5m.mobilesam] [--count 10]
    [--json everything.jsonl]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import foveal
from foveal import machine
from foveal.mask_results import EverythingResult
from foveal.run.predict import Predictor

GMACS = 1.81  # of the decoder for one prompt of one point
THRESHOLDS = np.arange(0.5, 0.96, 0.05)
MODES = {"full grid": False, "fast": True}


def main() -> None:
    """Measure images and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--model", default="tinyvit_5m.mobilesam")
    parser.add_argument("--count", type=int, default=10, help="images, evenly spread")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", type=Path, help="file for the figures of each image; goes on where it ends")
    arguments = parser.parse_args()
    files = [path for path in sorted(arguments.images.iterdir()) if (arguments.labels / f"{path.stem}.txt").exists()]
    files = [files[i] for i in np.linspace(0, len(files) - 1, min(arguments.count, len(files))).astype(int)]
    predictor = foveal.load(arguments.model)
    rows = [json.loads(line) for line in arguments.json.read_text().splitlines()] if _exists(arguments.json) else []
    for path in files:
        for mode in arguments.modes:
            if any((row["image"], row["mode"]) == (path.name, mode) for row in rows):
                continue
            rows.append(measured(predictor, path, arguments.labels / f"{path.stem}.txt", mode))
            print(rows[-1], flush=True)
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    names = {path.name for path in files}
    print(f"\n{predictor.info.model}, {predictor.runtime}, {machine.one_line()}; {len(files)} images\n")
    print("| | prompts | decoder GMACs | seconds | masks | AR@100 |\n|---|---|---|---|---|---|")
    for mode in arguments.modes:
        chosen = [row for row in rows if row["mode"] == mode and row["image"] in names]
        recall = np.concatenate([row["recall"] for row in chosen]).mean()
        prompts, seconds, masks = (np.mean([row[key] for row in chosen]) for key in ("prompts", "seconds", "masks"))
        print(f"| {mode} | {prompts:.1f} | {GMACS * prompts:.0f} | {seconds:.1f} | {masks:.1f} | {recall:.4f} |")


def _exists(path: Path | None) -> bool:
    return path is not None and path.exists()


def measured(predictor: Predictor, image: Path, label: Path, mode: str) -> dict[str, Any]:
    """Figures of one image."""
    started = time.perf_counter()
    found = predictor.everything(image, fast=MODES[mode])
    seconds = time.perf_counter() - started
    return {
        "image": image.name,
        "mode": mode,
        "prompts": found.prompts,
        "seconds": round(seconds, 2),
        "masks": len(found),
        "recall": recalls(found, outlines(label, found.size)).round(4).tolist(),
    }


def outlines(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Masks ``(N, H, W)`` of the objects in a label file; those below half a pixel are left out."""
    height, width = size
    masks = []
    for line in path.read_text().splitlines():
        corners = np.array(line.split()[1:], float).reshape(-1, 2) * (width, height)
        picture = Image.new("1", (width, height))
        # Pillow counts from the centre of a pixel.
        ImageDraw.Draw(picture).polygon([(x - 0.5, y - 0.5) for x, y in corners.tolist()], fill=1)
        masks.append(np.asarray(picture))
    kept = [mask for mask in masks if mask.any()]
    return np.stack(kept) if kept else np.zeros((0, *size), bool)


def recalls(found: EverythingResult, objects: NDArray[np.bool_], limit: int = 100) -> NDArray[np.float64]:
    """Of each object the share of the thresholds at which a mask of its own finds it, ``(N,)``."""
    out = np.zeros(len(objects))
    if not len(found) or not len(objects):
        return out
    flat = objects.reshape(len(objects), -1).astype(np.float32)
    masks = np.stack([np.asarray(record["segmentation"]).ravel() for record in found[:limit]]).astype(np.float32)
    shared = flat @ masks.T
    iou = shared / (flat.sum(1)[:, None] + masks.sum(1) - shared)
    for threshold in THRESHOLDS:
        free = np.ones(len(objects), bool)
        for column in iou.T:  # the surest mask chooses first
            best = np.where(free, column, -1).argmax()
            if free[best] and column[best] >= threshold:
                free[best] = False
        out += ~free / len(THRESHOLDS)
    return out


if __name__ == "__main__":
    main()
