"""Maps of values in files: read them in their unit with a mask of valid pixels, and store values in 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from ..images import exr
from ..images.bands import read_bands
from ..info import Target
from .layout import FILE

SUFFIXES = (".png", ".tif", ".tiff", ".npy", exr.SUFFIX)  #: of files with maps
_LENGTHS = (0.9, 1.1)  # of vectors that count as unit vectors: 8 bits round them
_SIGNED = ("normals",)  # kinds whose integer files hold -1..1
_RELATIVE = ("alpha", *_SIGNED)  # kinds whose integer files use the range of their type


def read_target(path: Path, target: Target, mask: Path | None = None) -> NDArray[np.float32]:
    """Read a map of values: integers times the scale of the target, or floating-point values as they are.

    Args:
        path: PNG of 8 or 16 bits, TIFF, NPY or EXR.
        target: what it holds.
        mask: an image of the same size whose pixels are above 0 where the map is valid; ``None``: pixels are valid
            where their stored value is finite and not ``target.invalid``.

    Returns:
        ``(H, W, C)``, NaN in all channels of pixels that are not valid.

    Raises:
        DataError: a file cannot be read, the sizes differ, or valid pixels have values that the kind does not have.
    """
    try:
        stored = exr.read_exr(path) if path.suffix.lower() == exr.SUFFIX else read_bands(path, finite=False)
        allowed: NDArray[np.bool_] | None = None if mask is None else np.any(read_bands(mask) > 0, axis=2)
    except InputError as error:
        raise DataError(str(error)) from error
    valid: NDArray[np.bool_] = np.all(np.isfinite(stored), axis=2)
    if target.invalid is not None:
        valid &= (stored != target.invalid).any(2)
    if allowed is not None:
        if allowed.shape != valid.shape:
            raise DataError(f"{mask}: {_size(allowed)}, but {path.name} is {_size(valid)}: give a mask of its size")
        if missing := int(np.count_nonzero(allowed & ~valid)):
            raise DataError(f"{path}: {missing} pixels that {mask} marks as valid are NaN, infinite or 'invalid'")
        valid = allowed
    values = _scaled(stored, target)
    values[~valid] = np.nan
    _check(path, values[valid], target)
    if target.kind == "normals":
        values /= np.linalg.norm(values, axis=2, keepdims=True)
    return values


def _size(array: NDArray[Any]) -> str:
    return f"{array.shape[1]}x{array.shape[0]} (W x H)"


def _scaled(stored: NDArray[Any], target: Target) -> NDArray[np.float32]:
    if stored.dtype.kind == "f":
        return stored.astype(np.float32)
    values = stored.astype(np.float64) * step_of(target, stored.dtype)
    return (values - 1 if target.kind in _SIGNED else values).astype(np.float32)


def step_of(target: Target, dtype: np.dtype[Any]) -> float:
    """The value of one step of an integer file."""
    if target.scale or target.kind not in _RELATIVE:
        return target.scale or 1.0
    return (2.0 if target.kind in _SIGNED else 1.0) / np.iinfo(dtype).max


def _check(path: Path, values: NDArray[np.float32], target: Target) -> None:
    """Check the values of the valid pixels, ``(N, C)``."""
    if target.kind == "depth":
        wrong, what = values <= 0, "are not above 0, and depths are"
    elif target.kind == "alpha":
        wrong, what = (values < 0) | (values > 1), "are not within 0 to 1"
    elif target.kind == "normals":
        lengths = np.linalg.norm(values, axis=1)
        wrong, what = (lengths < _LENGTHS[0]) | (lengths > _LENGTHS[1]), "are no vectors of length 1"
    else:
        return
    if values.shape[1:] != ((3,) if target.kind == "normals" else (1,)):
        raise DataError(f"{path}: {values.shape[1]} channels; {target.kind} has {3 if target.kind == 'normals' else 1}")
    if count := int(np.count_nonzero(wrong)):
        raise DataError(
            f"{path}: {count} of {len(values)} pixels {what}; if these have no measurement, write "
            f"'target: {{kind: {target.kind}, invalid: VALUE}}' into {FILE}"
        )


def stored_values(values: NDArray[np.float32], target: Target) -> tuple[NDArray[np.uint16], int]:
    """Store values in 16 bits, as :func:`read_target` reads them.

    Args:
        values: ``(H, W, C)``, finite.
        target: its scale is the value of one step.

    Returns:
        ``(H, W, C)`` uint16, and the number of pixels that had to be clipped: to the range of 16 bits, or away from the
        stored value of pixels without a measurement.

    Raises:
        InputError: values are not finite, or the target has no scale.
    """
    if bad := int(np.count_nonzero(~np.isfinite(values))):
        raise InputError(f"{bad} values are NaN or infinite: they cannot be stored as integers")
    if not target.scale and target.kind not in _RELATIVE:
        raise InputError("16 bits need the value of one step: give scale, for example 0.001, or write .tif, .npy, .exr")
    most = np.iinfo(np.uint16).max
    wide = values.astype(np.float64) + (1 if target.kind in _SIGNED else 0)
    steps = np.rint(wide / step_of(target, np.dtype(np.uint16)))
    stored = steps.clip(0, most)
    clipped = (steps != stored).any(2)
    if target.invalid is not None and target.invalid == int(target.invalid) and 0 <= target.invalid <= most:
        reserved = (stored == target.invalid).all(2)
        stored[reserved] += 1 if target.invalid < most else -1
        clipped |= reserved
    return stored.astype(np.uint16), int(np.count_nonzero(clipped))
