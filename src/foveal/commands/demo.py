"""The verb ``demo``: run the bundled weights on the bundled photograph."""

from __future__ import annotations

from pathlib import Path

from .. import assets
from ..files import ensure_folder
from . import segment, upscale
from .console import ANY_ENGINE, Engines, Json, open_model, print_json, say
from .outputs import OVERLAY, Job, beside


def demo(*, out: Path = Path("foveal-demo"), engine: Engines = ANY_ENGINE, json: Json = False) -> int:
    """Segment the bundled photograph, compare the mask with its hand-made coarse label, and double the image's size.

    Parameters
    ----------
    out
        Folder for the mask, the overlay, the upscaled photograph, and its middle next to bicubic interpolation.
    """
    photo, label = assets.FOLDER / "street.jpg", assets.FOLDER / "street.label.png"
    folder = ensure_folder(out)
    segmenter = open_model(assets.DEFAULTS["segment"], engine, "segment")
    mask, large = folder / "street.png", folder / "street.x2.png"
    drawing = {"contours": True, "legend": True}
    report = segment.segment_file(segmenter, Job(photo, mask, beside(mask, OVERLAY)), drawing, label)
    if not json:
        segment.print_report(report)
        say()
    upscaler = open_model(f"{assets.DEFAULTS['upscale']}.x2", engine, "upscale")
    upscaled = upscale.upscale_file(upscaler, Job(photo, large, beside(large, upscale.COMPARISON)))
    if json:
        print_json({**report, "upscaled": upscaled})
    else:
        upscale.print_report(upscaled)
    return 0
