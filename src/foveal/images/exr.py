"""OpenEXR files with maps of values, by the library OpenEXR of the format's authors."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError, InputError
from ..files import atomic_write
from .formats import check_pixels, pixel_limit

SUFFIX = ".exr"
INSTALL = "pip install 'foveal[exr]'"
_MAX_CHANNELS = 64
_ORDER = ("R", "G", "B", "A", "X", "Y", "Z")  # of channels with these names; others follow in alphabetical order
_NAMES = {1: ("Y",), 2: ("X", "Y"), 3: ("R", "G", "B"), 4: ("R", "G", "B", "A")}  # of written files


def import_openexr(name: object) -> Any:
    """Import the library OpenEXR; ``name``: of the file, for the message.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import OpenEXR  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise DependencyError(f"{name}: EXR files need the library OpenEXR: {INSTALL}") from error
    return OpenEXR


def read_exr(path: Path) -> NDArray[np.float32]:
    """Read all channels of a file with one part: red, green, blue, alpha, x, y, z, then the others by name.

    Returns:
        ``(H, W, C)``, with NaN and infinite values as they are.

    Raises:
        InputError: missing, damaged, too large, several parts, or channels of different sizes.
        DependencyError: OpenEXR is not installed.
    """
    library = import_openexr(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    try:
        header = _open(library, content, header_only=True)
        _check_header(path, header)
        channels = _open(library, content, header_only=False).channels()
    except InputError:
        raise
    except Exception as error:  # the library raises errors of several kinds, none of its own
        raise InputError(f"{path}: damaged EXR file ({' '.join(str(error).split())[:200]})") from error
    names = sorted(channels, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    maps = [np.asarray(channels[name].pixels) for name in names]
    if not maps or len({each.shape for each in maps}) > 1 or maps[0].ndim != 2:
        raise InputError(f"{path}: channels of different sizes; save all at the size of the image")
    return np.stack(maps, axis=2).astype(np.float32)


def _open(library: Any, content: bytes, *, header_only: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about colours, which maps of values do not have
        return library.File(io.BytesIO(content), separate_channels=True, header_only=header_only, num_threads=0)


def _check_header(path: Path, file: Any) -> None:
    """Check size and number of channels before pixels are read."""
    if len(file.parts) != 1:
        raise InputError(f"{path}: {len(file.parts)} parts; save each as a file of its own")
    header = file.header()
    low, high = header["dataWindow"]
    width, height = (int(high[axis]) - int(low[axis]) + 1 for axis in (0, 1))
    if min(width, height) < 1:
        raise InputError(f"{path}: an EXR file without pixels")
    check_pixels(str(path), (width, height), pixel_limit())
    count = len(header["channels"])
    if not 1 <= count <= _MAX_CHANNELS or width * height * count > pixel_limit():
        raise InputError(f"{path}: {count} channels of {width}x{height} are above the limits: save fewer per file")


def write_exr(path: Path, values: NDArray[np.float32]) -> None:
    """Write ``(H, W, C)`` as float32 with lossless compression.

    Channels are named Y, XY, RGB or RGBA by their number; from five on "000", "001", ...

    Raises:
        InputError: the file cannot be written.
        DependencyError: OpenEXR is not installed.
    """
    library = import_openexr(path)
    count = values.shape[2]
    names = _NAMES.get(count) or tuple(f"{index:03}" for index in range(count))
    channels = {name: np.ascontiguousarray(values[..., index], np.float32) for index, name in enumerate(names)}
    header = {"compression": library.ZIP_COMPRESSION, "type": library.scanlineimage}
    with atomic_write(path) as temporary:
        library.File(header, channels).write(str(temporary))
