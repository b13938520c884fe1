"""Small data sets with maps of values, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 64)


def maps_folder(root: Path, kind: str = "depth", images: int = 6) -> Path:
    """Images of a bright disc on a dark ground whose depth, normals, coverage or two values follow from the picture."""
    for split in ("train", "val"):
        rng = np.random.default_rng(len(split))
        for folder in ("images", "targets"):
            (root / split / folder).mkdir(parents=True)
        for index in range(images):
            y, x = np.mgrid[: SIZE[0], : SIZE[1]]
            inside = np.hypot(y - rng.uniform(10, 38), x - rng.uniform(10, 54)) < rng.uniform(8, 18)
            levels = np.where(inside, 220, 40) + rng.normal(0, 5, SIZE)
            picture = np.stack([levels.clip(0, 255).astype(np.uint8)] * 3, 2)
            Image.fromarray(picture).save(root / split / "images" / f"{index}.png")
            _write(root / split / "targets" / str(index), kind, inside)
    keys = {"depth": ", unit: m, scale: 0.001, invalid: 0"}.get(kind, "")
    (root / "dataset.yaml").write_text(f"target: {{kind: {kind}{keys}}}\n")
    return root


def _write(path: Path, kind: str, inside: np.ndarray) -> None:
    if kind == "depth":
        stored = np.where(inside, 1500, 4000).astype(np.uint16)
        stored[:3] = 0
        Image.fromarray(stored).save(path.with_suffix(".png"))
    elif kind == "alpha":
        Image.fromarray(inside.astype(np.uint8) * 255).save(path.with_suffix(".png"))
    else:
        two = {"normals": ((0, 0.6, -0.8), (0, 0, -1)), "values": ((300, 0.01), (100, 0.03))}[kind]
        np.save(path.with_suffix(".npy"), np.where(inside[..., None], *two).astype(np.float32))
