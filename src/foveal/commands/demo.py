"""The verb ``demo``: run the bundled weights on the bundled photograph, or serve them to the page in the browser."""

from __future__ import annotations

import sys
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .. import assets
from ..errors import ConfigError
from ..files import beside, ensure_folder
from . import segment, upscale
from .console import ANY_ENGINE, Engine, Engines, Json, open_model, print_json, say
from .outputs import OVERLAY, Job

_HOST = "127.0.0.1"  # for this machine only
_SECONDS = 600  # for a request: one visitor, and maybe a slow machine


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
        With --page: port of the page; default: any free port.
    browser
        With --page: open it; --no-browser only prints its address.
    """
    if page:
        return _serve_page(port or 0, browser, engine)
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


def _serve_page(port: int, browser: bool, engine: Engine) -> int:
    """Serve the page with the bundled models until the user stops it."""
    from ..serving.limits import Limits
    from ..serving.models import default_refs
    from ..serving.names import names_of
    from ..serving.server import address_of, bind, serve
    from ..serving.service import Settings

    with bind(_HOST, port) as bound:
        address = f"{address_of(bound)}/"

        def say_ready(_: object) -> None:
            say(f"{address}  the page is open until you press Ctrl+C; photographs stay on this machine")
            sys.stdout.flush()  # a program that started this one waits for the line
            if browser:  # in a thread, since some browsers return when they are closed
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        settings = Settings(Limits(seconds=_SECONDS), names=names_of(bound, _HOST))
        serve(default_refs(), settings, bound, engine.options(), say_ready, log_requests=False)
    return 0
