"""Upscale an image exactly, piece by piece: equal to the whole image in one pass of the network within rounding."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.reading import Picture
from ..progress import Report
from ..streaming.maps import MemoryState, StateFolder, check_disk, open_state
from ..streaming.regions import Extent, Region
from .tiles import interpolate_rows, quantise

if TYPE_CHECKING:
    from torch import Tensor

    from ..streaming.operations import Operation, Value
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
        (size,) = extents
        assert size is not None
        return size

    def needs(self, out: Region, extents: Sequence[Extent | None]) -> list[Region | None]:
        return [out]

    def run(self, values: Sequence[Value], out: Region, extents: Sequence[Extent | None]) -> Tensor:
        import torch

        (window,) = values
        assert not isinstance(window, torch.Tensor)
        colours = window.cut(out).float()
        if self.grey:
            colours = colours.mean(1, keepdim=True).expand_as(colours)
        return (colours * self.peak).round().clamp(0, self.peak).to(torch.int32)


class PixelInput:
    """An image as networks that upscale see it, from 0 to 1; see :class:`foveal.streaming.run.Image`."""

    has_gaps = False

    def __init__(self, pixels: NDArray[Any], device: Any) -> None:
        self.pixels, self.device = pixels, device

    def read(self, region: Region) -> Tensor:
        import torch

        window = self.pixels[region.top : region.bottom, region.left : region.right]
        scaled = window.astype(np.float32) / np.float32(np.iinfo(window.dtype).max)
        return torch.from_numpy(scaled.transpose(2, 0, 1)[None]).to(self.device)

    def valid(self, region: Region) -> NDArray[np.bool_]:
        return np.ones((region.height, region.width), bool)


def exact_bands(
    runner: TorchRunner, picture: Picture, scale: int, tile: int | None, report: Report | None = None
) -> Iterator[NDArray[Any]]:
    """Upscale an image exactly and yield bands of it, as :func:`~.tiles.enlarged_bands` does.

    Args:
        runner: the network.
        picture: the image.
        scale: of the network.
        tile: side of the pieces; default: what fits into the cache.
        report: told the share of the pieces that are done.

    Raises:
        ConfigError: a network that cannot be computed in pieces.
        InputError: a tile that cannot be used, or too little room for temporary files.
    """
    from ..streaming.passes import plan
    from ..streaming.run import run
    from ..streaming.trace import derive

    pixels = picture.pixels
    height, width, dtype = *pixels.shape[:2], pixels.dtype.name
    operation: Operation = Rounding(np.iinfo(dtype).max, picture.grey)
    program = derive(runner.model, height, width).followed_by(operation, channels=3, dtype=dtype)
    divided = plan(program, side=tile)
    with _state(divided.disk_bytes("float32")) as state:
        (kept,) = run(divided, PixelInput(pixels, runner.device), state, report=report).kept()
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
