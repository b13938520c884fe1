"""Draw each augmentation on the photograph of the demo and its mask.

python benchmarks/augmentations.py [--out docs/augmentation.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from foveal import assets
from foveal.data.augmentations import MIXES, TRANSFORMS
from foveal.data.labels import CAMVID
from foveal.data.rand_augment import OPERATIONS, operate
from foveal.data.transforms import SegmentAugment
from foveal.images.colours import colour_table
from foveal.images.reading import read_image, read_mask

CELL, COLUMNS, TITLE = (192, 128), 4, 14
FILL = (124.0, 116.0, 104.0)
STRENGTH: dict[str, Any] = {
    "vertical_flip": 1.0, "rotate": 25.0, "rand_augment": [2, 9], "erase": 1.0, "mixup": 0.9, "cutmix": 1.0,
}  # fmt: skip

Pair = tuple[NDArray[Any], NDArray[Any] | None]


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("docs/augmentation.png"))
    arguments = parser.parse_args()
    image, mask = scene()
    cells: list[tuple[str, Pair]] = [("the photograph and its mask", (image, mask))]
    crop = SegmentAugment((CELL[1], CELL[0]), (1.3, 1.8), flip=1.0)
    cells.append(("crop, scale, flip, jitter", crop(image, mask, np.random.default_rng(2))))
    for name, transform in TRANSFORMS.items():
        pair = transform.apply(image, mask, STRENGTH[name], np.random.default_rng(3), FILL)
        cells.append((f"{name}: {STRENGTH[name]}", pair))
    other, ids = (np.ascontiguousarray(part[:, ::-1]) for part in (image, mask))
    for name, mix in MIXES.items():
        mixed = mix.apply(image, other, STRENGTH[name], np.random.default_rng(4))
        target = None
        if mixed.region is not None:
            target = mask.copy()
            target[mixed.region] = ids[mixed.region]
        cells.append((f"{name}: {STRENGTH[name]}", (mixed.image, target)))
    for name in OPERATIONS[1:]:
        cells.append((f"rand_augment, {name}", operate(name, image, mask, 0.8, FILL)))
    draw(cells).quantize(200).save(arguments.out, optimize=True)


def scene() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The photograph of the demo and its mask, in the size of a cell."""
    image, mask = read_image(assets.path("street", ".jpg")), read_mask(assets.path("street.label", ".png"))
    small = Image.fromarray(image).resize(CELL, Image.Resampling.LANCZOS)
    ids = Image.fromarray(mask.astype(np.uint8)).resize(CELL, Image.Resampling.NEAREST)
    return np.asarray(small), np.asarray(ids)


def draw(cells: list[tuple[str, Pair]]) -> Image.Image:
    """Each cell is a title, the image and, if it has one, its mask."""
    width, height = CELL[0] + 8, TITLE + 2 * CELL[1] + 12
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(cells) // COLUMNS) * height), "white")
    pen, colours = ImageDraw.Draw(sheet), colour_table(CAMVID)
    for number, (title, (image, mask)) in enumerate(cells):
        left, top = number % COLUMNS * width + 4, number // COLUMNS * height + 2
        pen.text((left, top), title, fill="black")
        sheet.paste(Image.fromarray(np.ascontiguousarray(image)), (left, top + TITLE))
        if mask is not None:
            sheet.paste(Image.fromarray(colours[mask]), (left, top + TITLE + CELL[1] + 2))
    return sheet


if __name__ == "__main__":
    main()
