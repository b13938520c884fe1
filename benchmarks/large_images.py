"""Exact streaming beside plain tiles without overlap: time per pixel, memory, disk, and agreement with the whole image.

    python benchmarks/large_images.py --side 16384 --model efficientvit_b0.camvid

The image is a square of copies of the bundled photograph with noise. Each way runs in a process of its own, on one
thread, with the image in a tiled TIFF; processor time is compared, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import foveal
from foveal import assets
from foveal.images.bands import RGB
from foveal.images.rasters import open_raster
from foveal.images.reading import read_image
from foveal.images.tiff_writing import TiffImage, write_tiff

TILE = 512


def bands(side: int) -> Iterator[NDArray[np.uint8]]:
    """The image, 512 rows at a time."""
    photo = read_image(assets.path("street", ".jpg"))
    height, width = photo.shape[:2]
    rng = np.random.default_rng(0)
    columns = np.arange(side) % width
    for top in range(0, side, TILE):
        rows = np.arange(top, min(top + TILE, side)) % height
        band = photo[rows][:, columns].astype(np.int16)
        band += rng.integers(-9, 10, (*band.shape[:2], 1), np.int16)
        yield band.clip(0, 255).astype(np.uint8)


def stream(model: str, source: Path, out: Path) -> dict[str, float]:
    """Segment exactly."""
    result = foveal.stream(foveal.load(model, runtime="torch", threads=1), source, out)
    return {"disk_mb": result.disk_bytes / 1e6, "passes": result.passes}


def tiles(model: str, source: Path, out: Path) -> dict[str, float]:
    """Segment tile by tile, without overlap."""
    predictor = foveal.load(model, runtime="torch", threads=1)
    with open_raster(source, RGB) as raster:
        height, width, _ = raster.shape

        mask = np.lib.format.open_memmap(out, "w+", np.uint8, (height, width))
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                place = slice(top, min(top + TILE, height)), slice(left, min(left + TILE, width))
                mask[place] = predictor.segment(raster.read(*place)).mask
    return {}


def measure(way: str, model: str, source: Path, out: Path) -> None:
    """Run one way in this process and print its figures as JSON."""
    wall, cpu = time.perf_counter(), time.process_time()
    report = {"stream": stream, "tiles": tiles}[way](model, source, out)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps(report | seconds | {"peak_mb": peak / 1000}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=16_384)
    parser.add_argument("--model", default="efficientvit_b0.camvid")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--way", choices=["stream", "tiles"])
    parser.add_argument("--files", type=Path, nargs=2)
    arguments = parser.parse_args()
    if arguments.way:
        measure(arguments.way, arguments.model, *arguments.files)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source, masks = Path(name) / "image.tif", {}
        write_tiff(source, TiffImage(arguments.side, arguments.side, 3, overviews=False), bands(arguments.side))
        for way in ("tiles", "stream"):
            masks[way] = Path(name) / f"{way}.npy"
            command = [sys.executable, __file__, "--model", arguments.model, "--way", way, "--files"]
            done = subprocess.run([*command, source, masks[way]], capture_output=True, text=True, check=True)
            print(f"{way:7}", done.stdout.strip(), flush=True)
        exact, plain = (np.load(masks[way], mmap_mode="r") for way in ("stream", "tiles"))
        same = sum(
            int((exact[top : top + TILE] == plain[top : top + TILE]).sum()) for top in range(0, len(exact), TILE)
        )
        print(f"plain tiles agree with the exact result on {same / exact.size:.2%} of the pixels")


if __name__ == "__main__":
    main()
