"""What becomes of a network's output when an image is streamed, by task, and how files are written from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..files import atomic_write
from ..images.colours import palette_of
from ..images.polygons import Georeference, check_polygons, read_georeference, write_polygons
from ..images.rasters import Raster, TiffRaster
from ..images.tiff_writing import TiffImage, scaled_georeference, write_tiff
from ..images.writing import Canvas, write_picture
from ..images.zarr_writing import write_zarr
from ..info import IGNORE, ModelInfo
from ..streaming.geometry import ArrayOperation, only_map
from ..streaming.maps import DiskMap, KeptMap
from ..streaming.regions import Extent, Region
from .argmax import upsampled_argmax
from .results import class_names
from .streamed_bands import Rounding

_ROWS = 512  # of a band that is written at once
ZARR = ".zarr"
SUFFIXES = (".tif", ".tiff", ".png", ".npy", ZARR)


@dataclass(frozen=True)
class Finish:
    """What follows the network for a task.

    Attributes:
        operation: (H, W of the image) -> the last operation, which makes the result; ``None``: the network's outputs
            are the result.
        channels: of the result.
        dtype: of the result.
        blank: its value for pixels without data.
        counts: whether its values are classes, of which pixels are counted.
        plain: whether the image must be RGB of 8 bits without alpha, because the result is of the same kind.
        any_size: whether the network may see the image at another size than its description says.
        shape: of a result in memory, ``(C, H, W)`` as the network has it, the shape that is returned.
    """

    operation: Callable[[int, int], ArrayOperation] | None = None
    channels: int = 1
    dtype: str = "float32"
    blank: int = 0
    counts: bool = False
    plain: bool = False
    any_size: bool = False
    shape: Callable[[NDArray[Any]], NDArray[Any]] = lambda array: array


@dataclass(frozen=True)
class ClassMap:
    """The class of every pixel: argmax of the bilinearly upsampled logits.

    Attributes:
        height: of the image.
        width: of the image.
    """

    height: int
    width: int

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        stride = only_map(extents).stride
        return Extent(self.height, self.width, stride / stride)

    def _reads(self, out: Region, size: Extent) -> Region:
        step = int(size.stride)
        top, left = out.top // step - 1, out.left // step - 1
        return Region(top, -(-out.bottom // step) + 1, left, -(-out.right // step) + 1).clipped(size)

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        return [self._reads(out, only_map(extents))]

    def run_array(self, values: NDArray[Any], window: Region, out: Region, size: Extent) -> NDArray[Any]:
        reads, step = self._reads(out, size), int(size.stride)
        logits = np.ascontiguousarray(values[:, *reads.within(window)])
        # The pixels of all places that are read; those half a place from an edge inside the image are cut off again.
        covered = Region(*(step * side for side in reads))
        mask = upsampled_argmax(logits, (covered.height, covered.width), (1 / step, 1 / step))
        return np.ascontiguousarray(mask[out.within(covered)])[None]


#: By task.
FINISHES = {
    "segment": Finish(ClassMap, dtype="uint8", blank=IGNORE, counts=True, shape=lambda array: array[0]),
    "upscale": Finish(
        lambda height, width: Rounding(), 3, "uint8", plain=True, shape=lambda array: array.transpose(1, 2, 0)
    ),
    "classify": Finish(any_size=True, shape=lambda array: array[0]),
    "features": Finish(any_size=True),
}


@dataclass(frozen=True)
class Files:
    """Where results go.

    Attributes:
        result: file of the mask or image; ``None``: it stays in memory.
        polygons: file of the polygons of a mask; ``None``: none are made.
        georeference: of the polygons.
    """

    result: Path | None
    polygons: Path | None = None
    georeference: Georeference | None = None

    def check(self, finish: Finish) -> None:
        """Raise a ConfigError or a DependencyError if the results cannot be written to files of these names."""
        for path in filter(None, (self.result, self.polygons)):
            if finish.operation is None:
                raise ConfigError(f"{path}: only masks and images are written to files; leave out the file")
        if self.result is not None and self.result.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{self.result}: results of streaming are written as {', '.join(SUFFIXES)}")
        if self.polygons is not None:
            if not finish.counts:
                raise ConfigError(f"{self.polygons}: polygons are made of masks; leave them out")
            check_polygons(self.polygons)

    def located(self, raster: Raster) -> Files:
        """These files for the results of an image.

        Raises:
            ConfigError: its reference system cannot be written.
        """
        if self.polygons is None or not isinstance(raster, TiffRaster):
            return self
        georeference = read_georeference(raster.path, raster.shape[:2])
        check_polygons(self.polygons, georeference)
        return replace(self, georeference=georeference)

    def write_polygons(self, kept: KeptMap, info: ModelInfo, raster: Raster) -> None:
        """Write the polygons of a mask, if they are asked for."""
        if self.polygons is None:
            return
        height, width, _ = raster.shape
        write_polygons(
            self.polygons,
            (kept.read(Region(top, min(top + _ROWS, height), 0, width)) for top in range(0, height, _ROWS)),
            class_names(info.labels, info.num_classes),
            nodata=None if raster.nodata is None else IGNORE,
            georeference=self.georeference,
        )


def write_map(path: Path, kept: DiskMap, finish: Finish, info: ModelInfo, raster: Raster) -> NDArray[np.int64]:
    """Write a mask or an image band by band, and count the pixels of each class."""
    size = kept.extent
    counts = np.zeros(256 if finish.counts else 0, np.int64)

    def bands() -> Iterator[NDArray[Any]]:
        for top in range(0, size.height, _ROWS):
            band = kept.read(Region(top, min(top + _ROWS, size.height), 0, size.width))
            if finish.counts:
                counts[:] += np.bincount(band.ravel(), minlength=256)
            yield band

    palette = palette_of(info.labels, info.num_classes) if finish.counts else ()
    suffix = path.suffix.lower()
    if suffix == ".npy":
        _write_npy(path, (size.height, size.width, *[finish.channels][finish.channels == 1 :]), finish.dtype, bands())
    elif suffix == ".png":
        colours = b"".join(bytes(colour) for colour in palette)
        write_picture(path, Canvas(size.height, size.width, finish.channels, palette=colours), bands())
    else:
        scale = round(1 / size.stride)
        tags = scaled_georeference(raster.georeference, scale, scale) if isinstance(raster, TiffRaster) else {}
        nodata = None if raster.nodata is None else finish.blank
        image = TiffImage(size.height, size.width, finish.channels, palette=palette, tags=tags, nodata=nodata)
        (write_zarr if suffix == ZARR else write_tiff)(path, image, bands())
    if raster.nodata is not None and finish.counts:
        counts[finish.blank] = 0
    return counts


def _write_npy(path: Path, shape: tuple[int, ...], dtype: str, bands: Iterator[NDArray[Any]]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for band in bands:
            file.write(np.ascontiguousarray(band, dtype).tobytes())
