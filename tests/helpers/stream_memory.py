"""Streaming of tall images, for measurements of memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import foveal
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
