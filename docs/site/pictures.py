"""Draw the pictures of the documentation from the bundled photograph and weights: python docs/site/pictures.py

They show what the commands in the pages give. The photograph is by Wilfredor, CC0 (src/foveal/assets/street.md).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import foveal
from foveal import assets
from foveal.data.degradation import degraded

OUT = Path(__file__).parents[1] / "pictures"
STREET = assets.path("street", ".jpg")
WIDTH = 960  # of a picture, in pixels

#: What is clicked on in the photograph: columns and rows, and 1 for the object, 0 for what is not part of it.
CLICKS = [((437, 560), 1)]
#: A region of the photograph with detail, for enlarging: left, top, width, height.
DETAIL = (560, 300, 240, 140)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for ref in ("efficientvit_b0.camvid", "efficientvit_b0.camvid_scratch"):
        save(foveal.load(ref)(STREET).overlay(alpha=0.5).convert("RGB"), f"segment.{ref}")
    click()
    repair()
    enlarge("efficientvit_sr.x2", 2)
    enlarge("efficientvit_sr.x4", 4)
    everything()


def click() -> None:
    """The mask of one click, and the object cut out."""
    photograph = Image.open(STREET).convert("RGB")
    embedding = foveal.load("tf_efficientnet_lite0.sam").encode(STREET)
    result = embedding.prompt(points=[point for point, _ in CLICKS], labels=[label for _, label in CLICKS])
    mask = result.masks[result.by_area[0]]
    tint = np.asarray(photograph).astype(np.float32)
    tint[mask] = 0.4 * tint[mask] + 0.6 * np.array([40, 120, 255], np.float32)
    marked = Image.fromarray(tint.astype(np.uint8))
    draw = ImageDraw.Draw(marked)
    for (x, y), _ in CLICKS:
        draw.ellipse((x - 11, y - 11, x + 11, y + 11), fill="white", outline="black", width=3)
    save(marked, "click.tf_efficientnet_lite0.sam")


def everything() -> None:
    """All objects that are found without a prompt."""
    found = foveal.load("tf_efficientnet_lite0.sam").everything(STREET, fast=True)
    save(found.overlay().convert("RGB"), "everything.tf_efficientnet_lite0.sam")


def enlarge(ref: str, scale: int) -> None:
    """A detail, enlarged by interpolation at the left and by the model at the right."""
    left, top, width, height = DETAIL
    detail = Image.open(STREET).convert("RGB").crop((left, top, left + width, top + height))
    small = detail.resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    plain = small.resize((small.width * scale, small.height * scale), Image.Resampling.BICUBIC)
    model: NDArray[np.uint8] = np.asarray(foveal.load(ref)(small).image)[..., :3]
    both = Image.fromarray(np.concatenate([np.asarray(plain), model], axis=1))
    save(both.resize((WIDTH, WIDTH * both.height // both.width), Image.Resampling.NEAREST), f"upscale.{ref}")


def repair() -> None:
    """A detail with noise and JPEG artefacts at the left, repaired at the right."""
    left, top, width, height = DETAIL
    detail = np.asarray(Image.open(STREET).convert("RGB"))[top : top + height, left : left + width]
    damaged = degraded(detail, 1, {"noise": (10, 10), "jpeg": (40, 40)}, np.random.default_rng(0))
    model: NDArray[np.uint8] = np.asarray(foveal.load("efficientvit_sr.x1")(damaged).image)[..., :3]
    both = Image.fromarray(np.concatenate([damaged, model], axis=1))
    save(both.resize((WIDTH, WIDTH * both.height // both.width), Image.Resampling.NEAREST), "repair.efficientvit_sr.x1")


def save(picture: Image.Image, name: str) -> None:
    """Write a picture in the width of a page, as JPEG."""
    height = round(picture.height * WIDTH / picture.width)
    if picture.width != WIDTH:
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    picture.save(OUT / f"{name}.jpg", quality=82, optimize=True)


if __name__ == "__main__":
    main()
