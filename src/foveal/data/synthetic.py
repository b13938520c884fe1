"""A small synthetic segmentation data set of coloured shapes on a textured background, for tests and first steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import DataError

NAMES = ("ground", "disc", "square", "triangle")
PALETTE = ((90, 90, 90), (214, 39, 40), (31, 119, 180), (44, 160, 44))


def shapes_sample(
    rng: np.random.Generator, size: tuple[int, int] = (96, 96)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one scene: ``(H, W, 3)`` RGB and its ``(H, W)`` class ids. The class is the shape; colours are random."""
    height, width = size
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    mask = Image.new("L", (width, height))
    for _ in range(rng.integers(2, 5)):
        kind = int(rng.integers(1, 4))
        radius = float(rng.uniform(0.12, 0.25)) * min(size)
        x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        for canvas, fill in ((image, colour), (mask, kind)):
            draw = ImageDraw.Draw(canvas)
            box = (x - radius, y - radius, x + radius, y + radius)
            if kind == 1:
                draw.ellipse(box, fill=fill)
            elif kind == 2:
                draw.rectangle(box, fill=fill)
            else:
                draw.polygon(((x, y - radius), (x - radius, y + radius), (x + radius, y + radius)), fill=fill)
    noisy = np.asarray(image, np.int16) + rng.normal(0, 8, (height, width, 3)).astype(np.int16)
    return np.clip(noisy, 0, 255).astype(np.uint8), np.asarray(mask)


def write_shapes(
    root: str | Path, *, train: int = 200, val: int = 40, size: tuple[int, int] = (96, 96), seed: int = 0
) -> Path:
    """Write a small segmentation data set of coloured shapes, in CamVid's layout, to try training without data.

    Args:
        root: folder of the data set; it is created if needed.
        train: number of training images.
        val: number of validation images.
        size: (H, W) of each image.
        seed: random seed; the same seed gives the same images.

    Returns:
        ``root``.

    Raises:
        DataError: the folder has another data set.
    """
    root = Path(root)
    described = yaml.safe_dump({"names": list(NAMES), "palette": [list(colour) for colour in PALETTE]})
    file = root / "dataset.yaml"
    if (file.exists() or (root / "train").exists()) and not (file.exists() and file.read_bytes() == described.encode()):
        raise DataError(f"{root} has a data set, which these images would overwrite: give a new folder")
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    file.write_bytes(described.encode())  # first, so that an interrupted call can be repeated
    for split, count in (("train", train), ("val", val)):
        for folder in (root / split, root / f"{split}annot"):
            folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, mask = shapes_sample(rng, size)
            Image.fromarray(image).save(root / split / f"{index:04}.png")
            Image.fromarray(mask).save(root / f"{split}annot" / f"{index:04}.png")
    return root
