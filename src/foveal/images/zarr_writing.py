"""Write images as OME-Zarr 0.4: a folder with an array of chunks for each level, in the second version of Zarr."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_folder
from .pyramid import TILE, Level
from .tiff_writing import TiffImage

_COMPRESSION = 3


def write_zarr(path: str | Path, image: TiffImage, bands: Iterable[NDArray[Any]]) -> None:
    """Write an image from its bands, top to bottom; if that fails, no partial folder is left.

    Args:
        path: of the folder.
        image: size and format; its tags are not written.
        bands: ``(rows, width, channels)`` each.

    Raises:
        InputError: the folder cannot be written.
    """
    path = Path(path)
    single = image.channels == 1
    with atomic_folder(path) as folder:
        folder.mkdir()

        def store(level: int, row: int, column: int, tile: NDArray[Any]) -> None:
            place = folder / str(level) / ("" if single else "0") / str(row)
            place.mkdir(parents=True, exist_ok=True)
            planes = np.ascontiguousarray(tile.transpose(2, 0, 1), tile.dtype.newbyteorder("<"))
            (place / str(column)).write_bytes(zlib.compress(planes.tobytes(), _COMPRESSION))

        first = Level((image.height, image.width), image.channels, image.dtype, store, smaller=image.overviews)
        first.add_all(bands)
        levels = list(first.levels())
        for level in levels:
            _write_json(folder / str(level.number) / ".zarray", _array(image, level.size))
        _write_json(folder / ".zgroup", {"zarr_format": 2})
        _write_json(folder / ".zattrs", _attributes(path.stem, image, levels))


def _array(image: TiffImage, size: tuple[int, int]) -> dict[str, Any]:
    planes = [] if image.channels == 1 else [image.channels]
    return {
        "zarr_format": 2,
        "shape": [*planes, *size],
        "chunks": [*planes, TILE, TILE],
        "dtype": np.dtype(image.dtype).newbyteorder("<").str,
        "compressor": {"id": "zlib", "level": _COMPRESSION},
        "fill_value": 0,
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
    }


def _attributes(name: str, image: TiffImage, levels: list[Level]) -> dict[str, Any]:
    channel = [] if image.channels == 1 else [{"name": "c", "type": "channel"}]
    axes = [*channel, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    datasets = []
    for level in levels:
        scale = [*[1.0] * len(channel), *[float(1 << level.number)] * 2]
        transformation = {"type": "scale", "scale": scale}
        datasets.append({"path": str(level.number), "coordinateTransformations": [transformation]})
    attributes: dict[str, Any] = {
        "multiscales": [{"version": "0.4", "name": name, "axes": axes, "datasets": datasets}],
    }
    if image.palette:
        colours = [{"label-value": index, "rgba": [*colour, 255]} for index, colour in enumerate(image.palette)]
        attributes["image-label"] = {"version": "0.4", "colors": colours}
    return attributes


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
