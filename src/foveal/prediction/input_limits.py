"""Exported files that take images of one size or up to a size, and how other images are fitted to them.

The limits stand in the description inside a file, so that every format states them in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..info import MAX_SIDE, ModelInfo
from ..task import find_task
from .tiles import tiled_logits

KEY = "input_limits"  #: of the notes of a description
MAX_BATCH = 1 << 16  #: largest number of images at once that a description may state

#: Runs a network: ``(B, C, H, W) -> output``.
RunNetwork: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class InputLimits:
    """What images a file takes.

    Attributes:
        size: (H, W) of the largest images, in pixels; ``None``: any size.
        batch: largest number of images at once; ``None``: any number.
        fixed: whether the file takes images of exactly this size only, and exactly this number of them.
    """

    size: tuple[int, int] | None = None
    batch: int | None = None
    fixed: bool = False

    def __str__(self) -> str:
        if self.size is None:
            return "images of any size"
        return f"images of {self.to_text()} (H x W)"

    def to_text(self) -> str:
        """The size for other programs: ``any``, ``512x1024`` or ``up to 512x1024``, height first."""
        if self.size is None:
            return "any"
        return f"{'' if self.fixed else 'up to '}{self.size[0]}x{self.size[1]}"

    def to_notes(self) -> dict[str, Any]:
        """What :meth:`of` reads from the notes of a description; nothing where any images are taken."""
        if self.size is None:
            return {}
        return {KEY: {"size": list(self.size), "batch": self.batch, "fixed": self.fixed}}

    @classmethod
    def of(cls, info: ModelInfo) -> InputLimits:
        """Read the limits from the description of a file.

        Raises:
            ConfigError: they are not what :meth:`to_notes` writes.
        """
        noted = info.notes.get(KEY)
        if noted is None:
            return cls()
        try:
            (height, width), batch, fixed = noted["size"], noted["batch"], noted["fixed"]
        except (TypeError, KeyError, ValueError):
            height, width, batch, fixed = 0, 0, 0, False
        sides = _in_range(height, MAX_SIDE) and _in_range(width, MAX_SIDE)
        if not sides or not (batch is None or _in_range(batch, MAX_BATCH)) or not isinstance(fixed, bool):
            raise ConfigError(f"the description cannot be read: {KEY}={noted!r:.80}")
        return cls((height, width), batch, fixed)

    def fits(self, height: int, width: int) -> bool:
        """Whether an image is not larger than the file takes."""
        return self.size is None or (height <= self.size[0] and width <= self.size[1])


ANY_IMAGES = InputLimits()  #: no limits


def fitted(run: RunNetwork, limits: InputLimits, info: ModelInfo | None) -> RunNetwork:
    """The function that runs a network of these limits on images of any size, as :class:`LimitedNetwork` does."""
    return run if limits.size is None or info is None else LimitedNetwork(run, limits, info)


class LimitedNetwork:
    """Runs a network with limits on other images and other numbers of them.

    Smaller images are padded at the bottom and right with their edge values, and the output is cut. Where the output
    has one position per pixel or group of pixels, larger images are cut into overlapping tiles of the file's size,
    whose outputs are blended. More images run in groups of the file's number; the last group is filled up.

    Args:
        run: the network.
        limits: of the network.
        info: description of the model.
    """

    def __init__(self, run: RunNetwork, limits: InputLimits, info: ModelInfo) -> None:
        self.run, self.limits, self.info = run, limits, info
        self.task = find_task(info.task)
        self.scale = info.options[self.task.option] if self.task.option else 1

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network on ``(B, C, H, W)``.

        Raises:
            InputError: images of a size that the model's task cannot fit to the file.
        """
        size, shape = self.limits.size, batch.shape[2:]
        assert size is not None
        if self.limits.fits(*shape):
            if self.limits.fixed and shape != size:
                return self._padded(batch, size)
            return self._grouped(batch)
        if not self.task.has_maps:
            advice = ": give tiles of that size" if self.task.option else ""
            raise InputError(f"an image of {shape[0]}x{shape[1]}: this file takes {self.limits}{advice}")
        return np.stack([self._tiled(image) for image in batch])

    def _padded(self, batch: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        height, width = batch.shape[2:]
        if not self.task.has_maps and not self.task.option:
            raise InputError(f"an image of {height}x{width}: this file takes {self.limits}")
        margins = ((0, 0), (0, 0), (0, size[0] - height), (0, size[1] - width))
        output = self._grouped(np.pad(batch, margins, mode="edge"))
        stride, scale = self.info.output_stride, self.scale
        return output[:, :, : -(-height // stride) * scale, : -(-width // stride) * scale]

    def _grouped(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        count, at_once = len(batch), self.limits.batch or len(batch)
        if count == at_once or (count < at_once and not self.limits.fixed):
            return self.run(batch)
        if self.limits.fixed and (missing := -count % at_once):
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        groups = [self.run(np.ascontiguousarray(batch[i : i + at_once])) for i in range(0, len(batch), at_once)]
        return np.concatenate(groups)[:count]

    def _tiled(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blended outputs of overlapping tiles of one image: ``(C, H, W)`` -> output without the batch."""
        assert self.limits.size is not None
        stride = self.info.output_stride
        if min(self.limits.size) < 2 * stride:
            height, width = image.shape[1:]
            raise InputError(f"an image of {height}x{width}: this file takes {self.limits}, too small for tiles")
        # Tiles begin on multiples of the stride: one that is moved there grows by less than the stride.
        height, width = (side - stride + 1 for side in self.limits.size)

        def network(window: NDArray[np.float32]) -> NDArray[np.float32]:
            return self(np.ascontiguousarray(window.transpose(2, 0, 1)[None]))[0]

        return tiled_logits(network, image.transpose(1, 2, 0), (height, width), min(height, width) // 3, stride)


def _in_range(value: Any, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest
