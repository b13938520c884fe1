"""One window for all maps of a group of steps, for networks that pad a window as if it were a whole image.

At the border of the image this padding is right; elsewhere the places near the border of the window are wrong, but
nothing reads them: the window holds all that the results depend on. It begins and ends at multiples of the coarsest
stride, or at the end of the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import lcm

from .regions import Extent, Region, hull


def common_window(extents: Mapping[str, Extent], regions: Mapping[str, Region]) -> Region:
    """The window, in pixels of the image, that holds the regions of its maps.

    Args:
        extents: size of every map of the group.
        regions: of some of these maps, and perhaps of others.
    """
    coarsest = lcm(*(extent.stride.numerator for extent in extents.values()))
    needed = []
    for name, region in regions.items():
        if name in extents:
            top, bottom, left, right = (side * extents[name].stride for side in region)
            needed.append(Region(math.floor(top), math.ceil(bottom), math.floor(left), math.ceil(right)))
    whole = hull(needed)
    top, left = (side // coarsest * coarsest for side in (whole.top, whole.left))
    return Region(top, -(-whole.bottom // coarsest) * coarsest, left, -(-whole.right // coarsest) * coarsest)


def part_of(window: Region, extent: Extent) -> Region:
    """What a window is of a map."""
    return Region(*(int(side / extent.stride) for side in window)).clipped(extent)
