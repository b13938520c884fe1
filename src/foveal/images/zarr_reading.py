"""Images in Zarr folders: arrays, and OME-Zarr groups with levels, which the library zarr reads chunk by chunk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError, InputError
from .block_raster import BlockRaster

SUFFIX = ".zarr"
INSTALL = "pip install 'foveal[zarr]'"
_MARKERS = ("zarr.json", ".zarray", ".zgroup")
_SIDE = 512  # of the windows that are read at once, at least
_CHUNK_VALUES = 1 << 28
_AXES = {2: "yx", 3: "yxc"}  # of arrays that do not name theirs


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return path.is_dir() and (path.suffix.lower() == SUFFIX or any((path / name).is_file() for name in _MARKERS))


class ZarrRaster(BlockRaster):
    """The array of a Zarr folder, or a level of an OME-Zarr group.

    Arrays are ``(H, W)`` or ``(H, W, C)``, or have named axes: y, x, and c for bands, in any order; others must have a
    length of 1.

    Args:
        path: of the folder.
        level: of a group; 0 is the largest.
        name: of the folder, for messages.

    Raises:
        InputError: no image, an array of another kind, or without this level.
        DependencyError: zarr is not installed.
    """

    def __init__(self, path: Path, level: int, name: str) -> None:
        self._array, axes = _open(path, level, name)
        shape, chunks, dtype = self._array.shape, self._array.chunks, np.dtype(self._array.dtype)
        sizes = dict(zip(axes, shape, strict=True))
        if (
            len(sizes) < len(axes)
            or not {"y", "x"} <= sizes.keys()
            or any(sizes[axis] != 1 for axis in axes if axis not in "yxc")
        ):
            described = ", ".join(f"{axis} of {size}" for axis, size in sizes.items())
            raise InputError(f"{name}: an array with axes {described}, where y, x and perhaps c are expected")
        if 0 in shape or dtype.kind not in "uif":
            raise InputError(f"{name}: an array of {dtype} and shape {shape}; images are uint8, uint16 or float32")
        stored = dict(zip(axes, chunks, strict=True))
        block = tuple(min(sizes[axis], -(-_SIDE // stored[axis]) * stored[axis]) for axis in "yx")
        if max(math.prod(chunks), math.prod(block) * sizes.get("c", 1)) > _CHUNK_VALUES:
            raise InputError(f"{name}: chunks of {'x'.join(map(str, chunks))} values are too large: store smaller ones")
        self._axes = axes
        native = dtype.newbyteorder("=")
        super().__init__(name, (sizes["y"], sizes["x"], sizes.get("c", 1)), native, (block[0], block[1]))

    def decode(self, row: int, column: int) -> NDArray[Any]:
        """The values of a block, read from whole chunks."""
        high, wide = self._block_size
        places = {"y": slice(row * high, (row + 1) * high), "x": slice(column * wide, (column + 1) * wide)}
        index = tuple(places.get(axis, slice(None) if axis == "c" else 0) for axis in self._axes)
        try:
            values = np.asarray(self._array[index], self.dtype)
        except Exception as error:  # decompressors raise whatever they like
            raise OSError(str(error) or type(error).__name__) from error
        left = [axis for axis in self._axes if axis in "yxc"]
        values = values.transpose([left.index(axis) for axis in "yxc" if axis in left])
        return np.ascontiguousarray(values.reshape(*values.shape[:2], -1))


def _open(path: Path, level: int, name: str) -> tuple[Any, str]:
    """The array of a level, and the names of its axes, a letter each."""
    try:
        import zarr
    except ImportError as error:
        raise DependencyError(f"{name}: Zarr folders are read by the library zarr: {INSTALL}") from error
    try:
        found: Any = zarr.open(str(path), mode="r")
        if isinstance(found, zarr.Array):
            if level:
                raise InputError(f"{name}: level {level} of an array without levels")
            return found, _axes_of(found, name)
        attributes = dict(found.attrs)
        (image, *_) = attributes.get("ome", attributes).get("multiscales") or [None]
        if image is None:
            raise InputError(f"{name}: a group without an image: give one of its arrays ({', '.join(found)[:200]})")
        datasets = image["datasets"]
        if not 0 <= level < len(datasets):
            raise InputError(f"{name}: level {level}, but its levels are 0 to {len(datasets) - 1}")
        array = found[datasets[level]["path"]]
        axes = [axis if isinstance(axis, str) else axis["name"] for axis in image.get("axes") or _axes_of(array, name)]
    except InputError:
        raise
    except Exception as error:  # zarr raises whatever its parsers and the file system do
        raise InputError(f"{name}: not a Zarr image, or damaged ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(array, zarr.Array) or len(axes) != array.ndim:
        raise InputError(f"{name}: damaged, level {level} is not an array of {len(axes)} axes")
    return array, _letters(axes)


def _axes_of(array: Any, name: str) -> str:
    """The axes of an array by itself."""
    named = getattr(array.metadata, "dimension_names", None)
    if named and all(isinstance(axis, str) for axis in named):
        return _letters(named)
    if array.ndim not in _AXES:
        raise InputError(f"{name}: an array of shape {array.shape}: expected (H, W) or (H, W, C)")
    return _AXES[array.ndim]


def _letters(axes: Any) -> str:
    """One letter for each axis: y, x and c, whatever the case, or words such as "channel"."""
    letters = ""
    for axis in axes:
        letters += "c" if axis.lower() in ("band", "bands") else axis.lower()[:1]
    return letters
