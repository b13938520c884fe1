"""Which places of maps have data, for images in which some pixels have none.

A place has data if one of its pixels has. Places without data are zero in every map that is kept, and are left out of
every sum; pieces without data are not computed at all. None of this depends on the size of the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from .maps import KeptMap
from .passes import Pass, Plan, map_extent
from .regions import Extent, Region

Mask = NDArray[np.bool_]


class Validity:
    """The places with data of every map of a plan.

    Args:
        plan: the passes.
        pixels: region of the image -> which of its pixels have data.
        open_map: name and extent -> a map on disk.
    """

    def __init__(
        self, plan: Plan, pixels: Callable[[Region], Mask], open_map: Callable[[str, Extent], KeptMap]
    ) -> None:
        self.image, self._pixels = plan.program.image, pixels
        strides = {map_extent(plan.program.steps, name).stride for part in plan.passes for name in part.targets}
        self._maps: dict[Fraction, tuple[Extent, KeptMap]] = {}
        for stride in sorted(stride for stride in strides if stride > 1):
            extent = Extent(-(-self.image.height // stride), -(-self.image.width // stride), stride)
            self._maps[stride] = extent, open_map(f"valid-{stride}", extent)

    def prepare(self, part: Pass, index: int) -> None:
        """Compute what piece ``index`` of the first pass is in the maps of coarser strides."""
        pixels = self._pixels(part.grid.piece(index, self.image))
        for stride, (extent, kept) in self._maps.items():
            region = part.grid.piece(index, extent)
            if region.is_empty:
                continue
            step = int(stride)
            padded = np.zeros((region.height * step, region.width * step), bool)
            padded[: pixels.shape[0], : pixels.shape[1]] = pixels
            blocks = padded.reshape(region.height, step, region.width, step)
            kept.write(region, np.asarray(blocks.any(axis=(1, 3)), np.uint8)[..., None])

    def places(self, region: Region, stride: Fraction) -> Mask:
        """Which places of a region have data; places beyond the image are as the nearest one in it."""
        extent, kept = self._maps.get(stride, (self.image, None))
        factor = 1 if kept is not None else int(1 / stride)  # places of a map that is larger than the image
        rows = np.clip(np.arange(region.top, region.bottom) // factor, 0, extent.height - 1)
        columns = np.clip(np.arange(region.left, region.right) // factor, 0, extent.width - 1)
        inside = Region(rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
        inside = Region(*map(int, inside))
        found: Mask = self._pixels(inside) if kept is None else kept.read(inside)[..., 0].astype(bool)
        return found[np.ix_(rows - inside.top, columns - inside.left)]

    def lacks(self, part: Pass, index: int, extents: Iterable[Extent]) -> bool:
        """Whether a piece has no data in any of the maps that are computed."""
        regions = {(part.grid.piece(index, extent), extent.stride) for extent in extents}
        return not any(self.places(region, stride).any() for region, stride in regions if not region.is_empty)
