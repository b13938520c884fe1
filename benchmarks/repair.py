"""Score the repair of photographs: damaged images and repaired ones against the originals.

python benchmarks/repair.py SETS [--model efficientvit_sr.x1] [--sets set14,bsd100]

SETS has a folder of clean images for each set. Damage is drawn as ``foveal evaluate`` draws it, the same each time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import foveal
from foveal.measuring import machine
from foveal.measuring.page import markdown

#: Damage by its name in the table; JPEG quality, and the standard deviation of the noise in levels of 255.
DAMAGE: dict[str, dict[str, tuple[float, float]]] = {
    "JPEG 30": {"jpeg": (30, 30)},
    "JPEG 50": {"jpeg": (50, 50)},
    "JPEG 80": {"jpeg": (80, 80)},
    "noise 5": {"noise": (5, 5)},
    "noise 15": {"noise": (15, 15)},
    "noise 10, JPEG 60": {"noise": (10, 10), "jpeg": (60, 60)},
    "as in training": {"noise": (0, 15), "jpeg": (30, 95)},
    "none": {"noise": (0, 0)},
}
UNTOUCHED = "bicubic.x1"  #: interpolation of scale 1, which changes nothing


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="efficientvit_sr.x1")
    parser.add_argument("--sets", default="set14,bsd100")
    arguments = parser.parse_args()
    names = arguments.sets.split(",")
    table: list[tuple[str, ...]] = [
        ("damage", *(f"{name}: {what}" for name in names for what in ("damaged", "repaired")))
    ]
    for damage, degradation in DAMAGE.items():
        scores = [
            foveal.evaluate(ref, arguments.data, split=name, degradation=degradation).sets[0].scores
            for name in names
            for ref in (UNTOUCHED, arguments.model)
        ]
        table.append((damage, *(f"{score.psnr:.2f} / {score.ssim:.4f}" for score in scores)))
    print(markdown(table))
    print(machine.one_line())


if __name__ == "__main__":
    main()
