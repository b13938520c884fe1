"""Fine-tune Cityscapes weights on other classes for three epochs, with one learning rate and with the defaults.

python benchmarks/fine_tuning.py CAMVID WEIGHTS [--classes 11] [--out runs/fine_tuning]

CAMVID has train, trainannot, test and testannot. 96 training images and 24 test images are taken, at 320x240.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import foveal
from foveal.measuring import machine

NAMES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
OBJECTS = ["pole", "sign", "car", "pedestrian", "bicyclist"]
IGNORE = 255
SETTINGS: dict[str, Any] = {"crop": (160, 224), "batch_size": 8, "epochs": 3, "eval_every": 1, "workers": 0}
ALIKE: dict[str, Any] = {"backbone_lr_scale": 1.0, "bn_batches": 0}


def main() -> None:
    """Train both ways, and print the mIoU after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("camvid", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--classes", type=int, choices=(6, 11), default=11, help="6: objects and background")
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tuning"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = NAMES if arguments.classes == len(NAMES) else ["background", *OBJECTS]
    data = write_data(arguments.camvid, arguments.out / f"data{len(names)}", names)
    for way, settings in {"alike": ALIKE, "defaults": {}}.items():
        out = arguments.out / f"{way}{len(names)}"
        print(way, f"{foveal.train(data, weights=arguments.weights, out=out, **SETTINGS, **settings).value:.2%}")
    print(machine.one_line())


def write_data(camvid: Path, out: Path, names: list[str]) -> Path:
    """Write the images and the masks of ``names``; other classes become the first one."""
    ids = np.full(256, IGNORE, np.uint8)
    ids[: len(NAMES)] = [names.index(name) if name in names else 0 for name in NAMES]
    for split, source, count in (("train", "train", 96), ("val", "test", 24)):
        files = sorted((camvid / source).iterdir())
        for file in (files[index] for index in np.linspace(0, len(files) - 1, count).astype(int)):
            with Image.open(file) as image, Image.open(camvid / f"{source}annot" / f"{file.stem}.png") as mask:
                small = np.asarray(mask.resize((320, 240), Image.Resampling.NEAREST))
                for folder, picture in (
                    (split, image.resize((320, 240), Image.Resampling.BICUBIC)),
                    (f"{split}annot", Image.fromarray(ids[small])),
                ):
                    (out / folder).mkdir(parents=True, exist_ok=True)
                    picture.save(out / folder / f"{file.stem}.png")
    (out / "dataset.yaml").write_text(f"names: [{', '.join(names)}]\n")
    return out


if __name__ == "__main__":
    main()
