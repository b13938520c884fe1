"""Compare the masks of two files of a model on photographs, for example of its float32 and its float16 file.

python benchmarks/exported_masks.py REFERENCE OTHER IMAGE...
    Segmentation: share of pixels of the same class. Promptable models: intersection over union of the masks of three
    clicks and three boxes in each image, at places that depend on nothing but the image's number.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import foveal
from foveal.prediction.predictor import Predictor
from foveal.task import TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference")
    parser.add_argument("other")
    parser.add_argument("images", type=Path, nargs="+")
    arguments = parser.parse_args()
    reference, other = foveal.load(arguments.reference), foveal.load(arguments.other)
    compare = _overlaps if TASKS[reference.info.task].takes_prompts else _same_classes
    values: list[float] = []
    for number, image in enumerate(arguments.images):
        found = list(compare(reference, other, image, number))
        print(f"{image.name}: mean {np.mean(found):.4%}, least {np.min(found):.4%}", flush=True)
        values += found
    print(f"{len(values)} values: mean {np.mean(values):.4%}, least {np.min(values):.4%}")


def _same_classes(reference: Predictor, other: Predictor, image: Path, number: int) -> Iterator[float]:
    yield float((reference(image).mask == other(image).mask).mean())


def _overlaps(reference: Predictor, other: Predictor, image: Path, number: int) -> Iterator[float]:
    first, second = reference.encode(image), other.encode(image)
    height, width = first.size
    for prompt in _prompts(height, width, number):
        for a, b in zip(first.prompt(**prompt).masks, second.prompt(**prompt).masks, strict=True):
            if (union := np.logical_or(a, b).sum()) > 0:
                yield float(np.logical_and(a, b).sum() / union)


def _prompts(height: int, width: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    size = np.array([width, height])
    for _ in range(3):
        yield {"points": [(rng.random(2) * size).tolist()], "labels": [1]}
        corner, extent = rng.random(2) * 0.5, rng.uniform(0.2, 0.5, 2)
        yield {"boxes": [[*(corner * size), *((corner + extent) * size)]]}


if __name__ == "__main__":
    main()
