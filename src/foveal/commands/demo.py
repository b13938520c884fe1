"""The verb ``demo``: what the weights in the package make of the photograph in the package."""

from __future__ import annotations

from pathlib import Path

from .. import assets
from ..files import ensure_folder
from .console import Json, print_json
from .segment import say_segmented, segmented
from .upscale import enlarged, say_enlarged


def demo(*, out: Path = Path("foveal-demo"), json: Json = False) -> int:
    """Segment the bundled photograph, compare with its hand-made coarse label, and double its size.

    Parameters
    ----------
    out
        Folder for mask, overlay, the larger photograph, and its middle beside plain interpolation.
    """
    from ..prediction.load import load

    photo, label = assets.FOLDER / "street.jpg", assets.FOLDER / "street.label.png"
    folder = ensure_folder(out)
    report = segmented(load(assets.DEFAULTS["segment"]), photo, folder / "street.png", True, label)
    if not json:
        say_segmented(report)
        print()
    larger = enlarged(load(f"{assets.DEFAULTS['upscale']}.x2"), photo, folder / "street.x2.png", True, {})
    if json:
        print_json({**report, "upscaled": larger})
    else:
        say_enlarged(larger)
    return 0
