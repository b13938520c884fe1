"""Upscale one image: in one run of the network, in blended tiles, or exactly in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..images.reading import Picture
from ..info import ModelInfo
from .batching import Prepared
from .input_limits import InputLimits
from .options import Options
from .results import UpscaleResult
from .runner import Runner
from .tiles import MIN_SIZE, WHOLE, check_upscale_tiles, enlarged_bands, upscale_window


@dataclass
class Enlarger:
    """A network that enlarges images.

    Attributes:
        runner: runs the network.
        info: description of the model.
        runtime: name of what computes it.
        limits: of the images that the network takes.
    """

    runner: Runner
    info: ModelInfo
    runtime: str
    limits: InputLimits

    @property
    def scale(self) -> int:
        """Side of the network's output over side of its input."""
        return self.info.options["scale"]

    def bands(self, picture: Picture, options: Options) -> Iterator[NDArray[Any]]:
        """Bands of the enlarged image from top to bottom; nothing runs before the first one is asked for.

        Args:
            picture: the image.
            options: ``tile``, ``overlap``, ``exact`` and ``report``.

        Raises:
            ConfigError: ``exact`` with ``overlap``, with a network that cannot be computed in pieces, or with an
                exported file (except weights of the package in ONNX Runtime).
            InputError: tiles that cannot be used.
        """
        if not options.exact:
            tile, overlap, largest = options.tile, options.overlap, self.limits.size
            yield from enlarged_bands(
                self._enlarge, picture, self.scale, tile, overlap, largest=largest, report=options.report
            )
            return
        if options.overlap is not None:
            raise ConfigError(f"overlap={options.overlap}: exact tiles overlap by what the network needs; leave it out")
        check_upscale_tiles(options.tile, None)
        from .streamed_bands import exact_bands

        yield from exact_bands(self, picture, self.scale, options.tile, options.report)

    def _enlarge(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        return upscale_window(self.runner, window, self.scale)


def prepare_picture(picture: Picture, network: Enlarger, options: Options) -> Prepared:
    """Prepare an image for a network that enlarges it.

    Args:
        picture: the image.
        network: runs once on a small image, and several times on a large one or if ``options`` say so.
        options: ``tile``, ``overlap``, ``exact`` and ``report``.
    """
    scale, pixels = network.scale, picture.pixels
    height, width = pixels.shape[:2]
    small = height * width <= WHOLE and network.limits.fits(height, width)
    if options.tile is not None or options.exact or not small or min(height, width) < MIN_SIZE:
        return Prepared(None, lambda _: _join(picture, scale, network.bands(picture, options)), pixels.nbytes)

    def finish(output: NDArray[np.float32]) -> UpscaleResult:
        def enlarge(window: NDArray[np.float32]) -> NDArray[np.float32]:
            return upscale_window(lambda _: output, window, scale)

        return _join(picture, scale, enlarged_bands(enlarge, picture, scale, None, options.overlap))

    window = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    prepared = np.ascontiguousarray(window.transpose(2, 0, 1)[None])
    return Prepared(prepared, finish, pixels.nbytes + prepared.nbytes)


def _join(picture: Picture, scale: int, bands: Iterable[NDArray[Any]]) -> UpscaleResult:
    return UpscaleResult(np.concatenate(list(bands)), scale, picture.icc, picture.grey)
