"""Upscale an image exactly, piece by piece: equal to the whole image in one pass of the network within rounding."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..images.reading import Picture
from ..progress import Report
from ..streaming.geometry import only_map
from ..streaming.maps import MemoryState, StateFolder, check_disk, open_state
from ..streaming.regions import Extent, Region
from ..streaming.run import run
from .streamed_networks import HasRunner, described_steps, network_of, plan_pieces
from .tiles import interpolate_rows, quantise
from .torch_runner import TorchRunner

_IN_MEMORY = 256 << 20  # bytes of maps that are kept in memory rather than in a temporary folder
_ROWS = 256  # of the small image in a band


@dataclass(frozen=True)
class Rounding:
    """Whole pixel values from the network's image of 0..1.

    Attributes:
        peak: largest value.
        grey: whether the three channels are to be equal.
    """

    peak: int = 255
    grey: bool = False

    def extent(self, extents: Sequence[Extent | None]) -> Extent:
        return only_map(extents)

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        return [out]

    def run_array(self, values: NDArray[Any], window: Region, out: Region, size: Extent) -> NDArray[Any]:
        colours = np.asarray(values[:, *out.within(window)], np.float32)
        if self.grey:
            colours = np.broadcast_to(colours.mean(axis=0, keepdims=True), colours.shape)
        return (colours * np.float32(self.peak)).round().clip(0, self.peak).astype(np.int32)


class PixelInput:
    """An image as networks that upscale see it, from 0 to 1; see :class:`foveal.streaming.run.Image`."""

    has_gaps = False

    def __init__(self, pixels: NDArray[Any]) -> None:
        self.pixels = pixels

    def read(self, region: Region) -> NDArray[np.float32]:
        window = self.pixels[region.top : region.bottom, region.left : region.right]
        return (window.astype(np.float32) / np.float32(np.iinfo(window.dtype).max)).transpose(2, 0, 1)[None]

    def valid(self, region: Region) -> NDArray[np.bool_]:
        return np.ones((region.height, region.width), bool)


def exact_bands(
    predictor: HasRunner, picture: Picture, scale: int, tile: int | None, report: Report | None = None
) -> Iterator[NDArray[Any]]:
    """Upscale an image exactly and yield bands of it, as :func:`~.tiles.enlarged_bands` does.

    Args:
        predictor: of the network.
        picture: the image.
        scale: of the network.
        tile: side of the pieces; default: what fits into the cache.
        report: told the share of the pieces that are done.

    Raises:
        ConfigError: a network that cannot be computed in pieces, or an exported file.
        InputError: a tile that cannot be used, or too little room for temporary files.
    """
    if not isinstance(predictor.runner, TorchRunner) and described_steps(predictor.runner) is None:
        raise ConfigError(
            "exact tiles need a torch model of Foveal's: foveal.load(REF, runtime='torch') of a checkpoint or a name; "
            "without torch, weights of the package with runtime='onnxruntime'"
        )
    network, pixels = network_of(predictor), picture.pixels
    height, width, dtype = *pixels.shape[:2], pixels.dtype.name
    operation = Rounding(np.iinfo(dtype).max, picture.grey)
    program = network.program(height, width).followed_by(operation, channels=3, dtype=dtype)
    divided = plan_pieces(program, tile, network)
    with _state(divided.disk_bytes("float32")) as state:
        (kept,) = run(divided, PixelInput(pixels), state, report=report, executor=network.executor(divided)).kept()
        for top in range(0, height, _ROWS):
            bottom = min(top + _ROWS, height)
            band = kept.read(Region(scale * top, scale * bottom, 0, scale * width))
            if picture.alpha is not None:
                alpha = interpolate_rows(picture.alpha, top, bottom, scale)[..., None].astype(np.float32)
                band = np.concatenate([band, quantise(alpha, pixels.dtype)], axis=2)
            yield band


@contextmanager
def _state(size: int) -> Iterator[MemoryState | StateFolder]:
    """Room for maps of ``size`` bytes together: in memory if they are few, else in a temporary folder."""
    if size <= _IN_MEMORY:
        yield MemoryState()
        return
    with tempfile.TemporaryDirectory(prefix="foveal-") as name:
        try:
            check_disk(Path(name), size)
        except InputError as error:
            raise InputError(f"{error}; the environment variable TMPDIR names another folder") from error
        with open_state(Path(name), {}, resume=False) as state:
            yield state
