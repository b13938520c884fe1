"""Render rooms with objects on the floor whose depth and surface normals are known.

python benchmarks/rendered_depth.py FOLDER [--train 160] [--val 16] [--test 40] [--target depth|normals] [--seed 0]
python benchmarks/rendered_depth.py FOLDER --model REF --picture FILE.png

The first command writes a data set: images of 160x128 (W x H), depth along the view in millimetres as PNG of 16 bits,
normals as NPY, and ``dataset.yaml``. Rays are intersected with the planes, boxes and spheres in NumPy; surfaces have
procedural textures, one light and a little ambient light, and the images noise. About 4 % of the depths are missing, in
patches, as from a sensor. The second command draws image, target and prediction of some test images. depth.py trains
on the data, and prints the errors of the model and of always predicting the mean of the training depths.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal.data.regression import RegressionData
from foveal.evaluation.regression import RegressionScores, regression_sums
from foveal.images.value_colours import map_colours

HEIGHT, WIDTH = 128, 160
FOCAL = 140.0  # pixels
MILLIMETRES = 1000.0
FLOOR, CEILING = 1.3, 1.3  # metres below and above the camera
NOISE = 6.0  # standard deviation, in levels of 0..255
SHOWN = 3  # rows of the picture
Array = NDArray[np.float64]


@dataclass
class Hits:
    """What each ray has hit so far: distance along the view, normal, colour; all rays in one dimension."""

    depth: Array
    normal: Array
    colour: Array

    def keep(self, depth: Array, normal: Array, colour: Array) -> None:
        """Take a surface where it is nearer than what is there; NaN and negative depths are no hits."""
        nearer = (depth > 0.05) & (depth < self.depth)
        self.depth[nearer] = depth[nearer]
        self.normal[nearer] = np.broadcast_to(normal, self.normal.shape)[nearer]
        self.colour[nearer] = colour[nearer]


def texture(points: Array, rng: np.random.Generator) -> Array:
    """Colours of points ``(N, 3)`` on a surface: a base colour with stripes, checks or smooth waves."""
    base, other = rng.uniform(0.15, 0.95, (2, 3))
    size = rng.uniform(0.15, 0.6)
    kind = rng.integers(4)
    if kind == 0:
        share = np.floor(points / size).sum(1) % 2
    elif kind == 1:
        share = np.floor(points @ rng.normal(size=3) / size) % 2
    elif kind == 2:
        share = 0.5 + 0.5 * np.sin(points @ rng.normal(size=(3, 3)) / size).prod(1)
    else:
        share = np.zeros(len(points))
    return base + share[:, None] * (other - base)


def add_room(hits: Hits, rays: Array, rng: np.random.Generator) -> None:
    """Floor, ceiling, back wall and side walls; x to the right, y down, z along the view."""
    left, right, back = rng.uniform(1.2, 3.5), rng.uniform(1.2, 3.5), rng.uniform(4, 9)
    planes = [(1, FLOOR), (1, -CEILING), (2, back), (0, right), (0, -left)]
    for axis, place in planes:
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = place / rays[:, axis]
        normal = np.zeros(3)
        normal[axis] = -np.sign(place)
        hits.keep(depth, normal, texture(rays * np.nan_to_num(depth, posinf=0, neginf=0)[:, None], rng))


def add_sphere(hits: Hits, rays: Array, centre: Array, radius: float, rng: np.random.Generator) -> None:
    """The nearer of a ray's intersections with a sphere."""
    square, half = (rays**2).sum(1), rays @ centre
    root = half**2 - square * (centre @ centre - radius**2)
    depth = np.where(root > 0, (half - np.sqrt(np.maximum(root, 0))) / square, np.nan)
    points = rays * np.nan_to_num(depth)[:, None]
    hits.keep(depth, (points - centre) / radius, texture(points - centre, rng))


def add_box(hits: Hits, rays: Array, centre: Array, half: Array, turn: float, rng: np.random.Generator) -> None:
    """A box that is turned around the vertical axis, by the slab method."""
    cos, sin = np.cos(turn), np.sin(turn)
    rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    local, origin = rays @ rotation, -centre @ rotation
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = np.sort(np.stack([(-half - origin) / local, (half - origin) / local]), axis=0)
    entry, side = near.max(1), near.argmax(1)
    depth = np.where((entry < far.min(1)) & (entry > 0), entry, np.nan)
    normal = np.zeros_like(local)
    rows = np.arange(len(local))
    normal[rows, side] = -np.sign(local[rows, side])
    hits.keep(depth, normal @ rotation.T, texture(local * np.nan_to_num(depth)[:, None] + origin, rng))


def render(rng: np.random.Generator) -> tuple[NDArray[np.uint8], Array, Array]:
    """One room: the image ``(H, W, 3)``, depths in metres ``(H, W)``, normals ``(H, W, 3)``."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([(x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL, np.ones_like(x)], axis=2).reshape(-1, 3)
    hits = Hits(np.full(len(rays), np.inf), np.zeros_like(rays), np.zeros_like(rays))
    add_room(hits, rays, rng)
    for _ in range(int(rng.integers(2, 6))):
        distance, half = rng.uniform(2.0, 6.0), rng.uniform(0.2, 0.6, 3)
        sideways = rng.uniform(-0.6, 0.6) * distance
        if rng.random() < 0.5:
            add_sphere(hits, rays, np.array([sideways, FLOOR - half[0], distance]), half[0], rng)
        else:
            add_box(hits, rays, np.array([sideways, FLOOR - half[1], distance]), half, rng.uniform(0, np.pi / 2), rng)
    points = rays * hits.depth[:, None]
    to_light = np.array([rng.uniform(-1, 1), -rng.uniform(0.3, 0.8), rng.uniform(0, 2)]) - points
    cosine = (hits.normal * to_light).sum(1) / np.linalg.norm(to_light, axis=1)
    shade = 0.35 + 0.65 * np.maximum(cosine, 0)
    levels = 255 * hits.colour * shade[:, None] + rng.normal(0, NOISE, points.shape)
    image = levels.clip(0, 255).round().astype(np.uint8).reshape(HEIGHT, WIDTH, 3)
    return image, hits.depth.reshape(HEIGHT, WIDTH), hits.normal.reshape(HEIGHT, WIDTH, 3)


def missing(rng: np.random.Generator) -> NDArray[np.bool_]:
    """Pixels without a measurement: a few rectangles."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for _ in range(3):
        top, left = rng.integers(HEIGHT), rng.integers(WIDTH)
        mask[top : top + rng.integers(8, 30), left : left + rng.integers(8, 30)] = True
    return mask


def write_data(root: Path, counts: dict[str, int], target: str, seed: int) -> None:
    """Write the data set; each split has random numbers of its own, so that its size changes no other split."""
    for number, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng((seed, number))
        for kind in ("images", "depth", "normals"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, depth, normals = render(rng)
            stored = np.where(missing(rng), 0, np.rint(depth * MILLIMETRES)).clip(0, 65535).astype(np.uint16)
            name = f"{index:04}"
            Image.fromarray(image).save(root / split / "images" / f"{name}.png")
            Image.fromarray(stored).save(root / split / "depth" / f"{name}.png")
            np.save(root / split / "normals" / f"{name}.npy", normals.astype(np.float32))
    description = "kind: depth, unit: m, scale: 0.001, invalid: 0" if target == "depth" else f"kind: {target}"
    (root / "dataset.yaml").write_text(f"target: {{{description}}}\n")


def baselines(root: Path) -> dict[str, RegressionScores]:
    """Errors on the test split of the mean of the training maps: one for all pixels, and one for each pixel."""
    train, test = (RegressionData.open(root, [split]) for split in ("train", "test"))
    maps = np.stack([values for _, values in train]).astype(np.float64)
    everywhere = np.broadcast_to(np.nanmean(maps, axis=(0, 1, 2)), maps.shape[1:])
    means = {"mean of all training maps": everywhere, "for each pixel the mean there": np.nanmean(maps, axis=0)}
    return {name: _scores(test, values) for name, values in means.items()}


def _scores(data: RegressionData, prediction: Array) -> RegressionScores:
    sums = [regression_sums(prediction, values, data.target.kind) for _, values in data]
    return RegressionScores(np.sum(sums, axis=0), data.target, data.labels.names)


def draw(root: Path, ref: str, path: Path) -> None:
    """Draw rows of image, target and prediction; both maps have the same colours."""
    predictor, test = foveal.load(ref), RegressionData.open(root, ["test"])
    rows = []
    for index in range(SHOWN):
        image, target = test[index]
        found = predictor.regress(image).values
        low, high = (float(limit) for limit in np.nanpercentile(target, (2, 98)))
        maps = [map_colours(values, test.target.kind, (low, high)) for values in (target, found)]
        rows.append(np.concatenate([image, *maps], axis=1))
    picture = Image.fromarray(np.concatenate(rows))
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC).save(path)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for split, count in (("train", 160), ("val", 16), ("test", 40)):
        parser.add_argument(f"--{split}", type=int, default=count)
    parser.add_argument("--target", choices=("depth", "normals"), default="depth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if options.model:
        draw(options.folder, options.model, options.picture or Path("rendered.png"))
    else:
        counts = {split: getattr(options, split) for split in ("train", "val", "test")}
        write_data(options.folder, counts, options.target, options.seed)
        print(f"{options.folder}: {', '.join(f'{count} {split}' for split, count in counts.items())}")


if __name__ == "__main__":
    main()
