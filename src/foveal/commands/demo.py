"""The verb ``demo``: run the bundled weights on the bundled photograph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .. import assets
from ..errors import ConfigError
from ..files import ensure_folder
from . import segment, upscale
from .console import ANY_ENGINE, Engines, Json, open_model, print_json, say
from .demo_page import serve_page
from .outputs import OVERLAY, Job, beside


def demo(
    *,
    out: Path = Path("foveal-demo"),
    page: Annotated[bool, Parameter(negative="")] = False,
    port: int | None = None,
    browser: bool = True,
    engine: Engines = ANY_ENGINE,
    json: Json = False,
) -> int:
    """Segment the bundled photograph, compare the mask with its hand-made coarse label, and double the image's size.

    With --page: a page in the browser instead, to cut out, label and enlarge photographs of your own.

    Parameters
    ----------
    out
        Folder for the mask, the overlay, the upscaled photograph, and its middle next to bicubic interpolation.
    page
        Open a page in the browser, with the bundled models on this machine, until Ctrl+C.
    port
        With --page: its port; default: any that is free.
    browser
        With --page: open it; --no-browser only prints its address.
    """
    if page:
        return serve_page(port or 0, browser)
    if port is not None or not browser:
        raise ConfigError("--port and --no-browser go with --page")
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
