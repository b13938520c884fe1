"""The verb ``demo``: run the bundled weights on the bundled photograph."""

from __future__ import annotations

from pathlib import Path

from .. import assets
from ..files import ensure_folder
from . import segment, upscale
from .console import Device, DType, Json, open_model, print_json


def demo(*, out: Path = Path("foveal-demo"), device: Device = "auto", dtype: DType = "auto", json: Json = False) -> int:
    """Segment the bundled photograph, compare the mask with its hand-made coarse label, and double the image's size.

    Parameters
    ----------
    out
        Folder for the mask, the overlay, the upscaled photograph, and its middle next to bicubic interpolation.
    """
    photo, label = assets.FOLDER / "street.jpg", assets.FOLDER / "street.label.png"
    folder = ensure_folder(out)
    segmenter = open_model(assets.DEFAULTS["segment"], device, dtype, "segment")
    report = segment.segment_file(segmenter, photo, folder / "street.png", overlay=True, legend=True, label=label)
    if not json:
        segment.print_report(report)
        print()
    upscaler = open_model(f"{assets.DEFAULTS['upscale']}.x2", device, dtype, "upscale")
    upscaled = upscale.upscale_file(upscaler, photo, folder / "street.x2.png", compare=True)
    if json:
        print_json({**report, "upscaled": upscaled})
    else:
        upscale.print_report(upscaled)
    return 0
