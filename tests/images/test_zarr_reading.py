"""Zarr folders as images: arrays and groups of the library zarr, levels, axes, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import foveal
from foveal.errors import InputError
from foveal.images.bands import RGB
from foveal.images.rasters import as_bands, open_raster
from foveal.images.tiff_writing import TiffImage
from foveal.images.zarr_reading import ZarrRaster
from foveal.images.zarr_writing import write_zarr
from helpers.commands import Command
from helpers.streams import stripes

IMAGE = stripes(150, 201)
WINDOWS = [(slice(0, 150), slice(0, 201)), (slice(31, 33), slice(5, 150)), (slice(149, 150), slice(200, 201))]


def write_array(path: Path, values: Any, chunks: tuple[int, ...], **options: Any) -> None:
    array = zarr.create_array(str(path), shape=values.shape, dtype=values.dtype, chunks=chunks, **options)
    array[:] = values


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ("yxc", {"zarr_format": 2}),
        ("yxc", {"zarr_format": 3, "dimension_names": ("y", "x", "band")}),
        ("cyx", {"zarr_format": 3, "dimension_names": ("C", "Y", "X")}),
        ("tcyx", {"zarr_format": 3, "dimension_names": ("time", "c", "y", "x"), "shards": (1, 3, 128, 128)}),
    ],
    ids=str,
)
def test_windows_of_arrays(tmp_path: Path, axes: str, options: dict[str, Any]) -> None:
    values = IMAGE.transpose(["yxc".index(axis) for axis in axes if axis != "t"])
    values = values[None] if "t" in axes else values
    write_array(
        tmp_path / "x.zarr", values, tuple({"y": 32, "x": 64, "c": 3, "t": 1}[axis] for axis in axes), **options
    )
    with open_raster(tmp_path / "x.zarr", RGB) as raster:
        assert isinstance(raster, ZarrRaster)
        assert raster.shape == IMAGE.shape
        for rows, columns in WINDOWS:
            assert np.array_equal(as_bands(raster.read(rows, columns), raster, RGB), IMAGE[rows, columns])


def test_grey_of_another_byte_order(tmp_path: Path) -> None:
    values = (IMAGE[..., 0].astype(np.uint16) * 251).astype(">u2")
    write_array(tmp_path / "x", values, (64, 64), zarr_format=2)  # found by its content, not by the name
    with open_raster(tmp_path / "x", RGB) as raster:
        assert (raster.shape, raster.dtype) == ((150, 201, 1), np.uint16)
        assert np.array_equal(raster.read(*WINDOWS[1])[..., 0], values[WINDOWS[1]])


def test_levels_of_ome_zarr(tmp_path: Path) -> None:
    image = stripes(700, 1111)
    write_zarr(tmp_path / "x.zarr", TiffImage(700, 1111, 3), iter(np.array_split(image, 5)))
    for level in range(3):
        with open_raster(tmp_path / "x.zarr", RGB, level) as raster:
            height, width, _ = raster.shape
            expected = image[:: 1 << level, :: 1 << level]
            assert np.array_equal(raster.read(slice(0, height), slice(0, width)), expected)
    with (
        pytest.raises(InputError, match=r"x\.zarr: level 3, but its levels are 0 to 2"),
        open_raster(tmp_path / "x.zarr", RGB, 3),
    ):
        pass


def test_a_folder_is_one_image(tmp_path: Path, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_array(tmp_path / "x.zarr", IMAGE, (64, 64, 3))
    done = cli("segment", "x.zarr", "--exact", "--out", "mask.npy")
    assert done.returncode == 0, done.stderr
    whole = foveal.load("efficientvit_b0.camvid", runtime="torch").segment(IMAGE)
    assert (np.load("mask.npy") == whole.mask).mean() > 0.9999


def test_errors_are_one_line(tmp_path: Path) -> None:
    write_array(tmp_path / "four.zarr", np.zeros((2, 3, 20, 20), np.uint8), (1, 3, 20, 20))
    write_array(tmp_path / "time.zarr", np.zeros((2, 20, 20), np.uint8), (1, 20, 20), dimension_names=("t", "y", "x"))
    write_array(tmp_path / "text.zarr", np.zeros((20, 20), "c8"), (20, 20))
    zarr.create_array(str(tmp_path / "huge.zarr"), shape=(1 << 20, 1 << 20), dtype="u1", chunks=(1 << 20, 1 << 20))
    zarr.create_group(str(tmp_path / "group.zarr"))
    (tmp_path / "empty.zarr").mkdir()
    write_array(tmp_path / "damaged.zarr", IMAGE, (64, 64, 3))
    chunk = next(path for path in (tmp_path / "damaged.zarr" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-9])
    for name, message in (
        ("four", r"an array of shape \(2, 3, 20, 20\): expected"),
        ("time", "an array with axes t of 2, y of 20, x of 20, where y, x and perhaps c"),
        ("text", "an array of complex64"),
        ("huge", "chunks of 1048576x1048576 values are too large"),
        ("group", "a group without an image"),
        ("empty", "not a Zarr image, or damaged"),
        ("damaged", "damaged or truncated"),
    ):
        with (
            pytest.raises(InputError, match=rf"{name}\.zarr: {message}"),
            open_raster(tmp_path / f"{name}.zarr", RGB) as raster,
        ):
            raster.read(slice(0, 150), slice(0, 201))
