"""Streaming of tall images, for measurements of memory."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import foveal
from foveal.images import polygons, rasters
from foveal.images.bands import RGB
from foveal.images.polygons import write_polygons
from foveal.images.rasters import open_raster
from helpers.pngs import write_tall
from helpers.streams import predictor_for, segmenter


def stream_tall(path: str) -> None:
    """Stream an image of 256 columns in pieces of 256 pixels; the name of ``path`` is the number of rows."""
    torch.set_num_threads(1)
    rows, source = int(Path(path).name), Path(f"{path}.npy")
    band = np.full((64, 256, 3), 100, np.uint8)
    with source.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, 256, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(rows // 64):
            file.write(band.tobytes())
    foveal.stream(predictor_for(segmenter()), source, f"{path}.tif", tile=256)


def read_tall(path: str) -> None:
    """Write an image of 3000 columns, and read it in pieces of 256 pixels with margins; ``path`` names the rows."""
    file = Path(path)
    rows, width = int(file.stem), 3000
    if file.suffix == ".png":
        write_tall(file, rows, width)
    else:
        _write_tall_jpeg(file, rows, width)
    rasters._AT_ONCE = 1_000_000
    with open_raster(file, RGB) as raster:
        assert raster.shape == (rows, width, 3)
        for top in range(0, rows, 256):
            for left in range(0, width, 256):
                window = slice(max(0, top - 20), min(top + 276, rows)), slice(left, min(left + 276, width))
                assert raster.read(*window).any()


def _write_tall_jpeg(path: Path, rows: int, width: int) -> None:
    """Write an image that was never in memory: 512 of its rows again and again, between restart markers."""
    band = np.full((512, width, 3), 100, np.uint8)
    band[::3] += 50
    content = io.BytesIO()
    Image.fromarray(band).save(content, "jpeg", subsampling=0, restart_marker_rows=1)
    head, _, scan = content.getvalue().partition(b"\xff\xda")
    size = head.index(b"\xff\xc0") + 5
    head = head[:size] + rows.to_bytes(2, "big") + head[size + 2 :]
    length = int.from_bytes(scan[:2], "big")
    start, scan = scan[:length], scan[length:-2]
    marker = 0xD7 - 0xD0  # 64 rows of blocks end with the marker before the next one's, the eighth
    with path.open("wb") as file:
        file.write(head + b"\xff\xda" + start)
        for index in range(rows // 512):
            file.write((bytes([0xFF, 0xD0 + marker]) if index else b"") + scan)
        file.write(b"\xff\xd9")


def outline_tall(path: str) -> None:
    """Write the polygons of a mask of 1024 columns, an area in each square of 32 pixels; ``path`` names the rows."""
    file = Path(path)
    band = np.full((1024, 1024), 255, np.uint8)
    for row in range(0, 1024, 32):
        for column in range(0, 1024, 32):
            band[row + 3 : row + 35, column + 3 : column + 25] = (row + column) // 32 % 5
    polygons._BAND_PIXELS = 1 << 20
    count = int(file.stem) // 1024
    write_polygons(file, (band for _ in range(count)), [], nodata=255)
