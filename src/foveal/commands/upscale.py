"""The verb ``upscale``: photographs made larger, or repaired at their own size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from .. import assets
from ..errors import ConfigError, InputError
from .console import Images, Json, Overlap, Tile, print_json
from .outputs import jobs_of

if TYPE_CHECKING:
    from ..images.reading import Picture
    from ..prediction.predictor import Predictor

Format = Literal["png", "jpg", "webp", "tif"]


def upscale(
    images: Images,
    /,
    *,
    scale: int | None = None,
    model: str | None = None,
    out: Path = Path("foveal-out"),
    format: Format = "png",
    compare: Annotated[bool, Parameter(negative="")] = False,
    tile: Tile = None,
    overlap: Overlap = None,
    exact: Annotated[bool, Parameter(negative="")] = False,
    check_tiles: Annotated[bool, Parameter(negative="")] = False,
    resume: bool = False,
    json: Json = False,
) -> int:
    """Enlarge photographs. Alpha, 16 bits, grey and the colour profile are kept; large images go window by window.

    Parameters
    ----------
    scale
        How many times larger each side becomes; default: the model's own, else 2.
    model
        Bundled name, checkpoint, exported file or training run; "bicubic" or "lanczos" interpolate.
    out
        Folder for the results, or the file of a single one.
    format
        Of the results. All but png are written from memory, and have no 16 bits (jpg no alpha either).
    compare
        Write a picture of the middle beside it too: bicubic left, the model right.
    exact
        Windows give what the whole image would: attention reads it in passes of its own. Two to three times the time.
    check_tiles
        Also enlarge the image as a whole, and print how close the windows come (a single image; takes its memory).
    resume
        Leave out images whose result exists.
    """
    from ..prediction.load import load

    predictor = load(_reference(model, scale))
    if predictor.info.task != "upscale":
        raise ConfigError(f"{model} is for {predictor.info.task!r}; use foveal {predictor.info.task}")
    if scale not in (None, predictor.info.options["scale"]):
        raise ConfigError(f"--scale {scale}: {model} enlarges {predictor.info.options['scale']} times")
    return run(predictor, images, out, format, compare, tile, overlap, exact, check_tiles, resume, json)


def _reference(model: str | None, scale: int | None) -> str:
    """A bare name means its weights for the scale."""
    name = model or assets.DEFAULTS["upscale"]
    bare = name in ("bicubic", "lanczos") or any(ref.startswith(f"{name}.x") for ref in assets.WEIGHTS)
    return f"{name}.x{scale or 2}" if bare or model is None else name


def run(
    predictor: Predictor,
    images: list[Path],
    out: Path,
    suffix: str = "png",
    compare: bool = False,
    tile: int | None = None,
    overlap: int | None = None,
    exact: bool = False,
    check_tiles: bool = False,
    resume: bool = False,
    as_json: bool = False,
) -> int:
    """Enlarge with a predictor at hand; the exit code is 1 where some of several images failed."""
    from ..measuring import machine
    from ..prediction.tiles import check_tiles as checked
    from ..progress import Progress

    checked(tile, overlap)
    windows = {"tile": tile, "overlap": overlap, "exact": exact}
    jobs, many = jobs_of(images, out, f".{suffix}")
    if check_tiles and many:
        raise ConfigError("--check-tiles looks at a single image")
    if resume:
        jobs = [(source, target) for source, target in jobs if not target.exists()]
    progress = Progress()
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    with progress.bar("upscale", len(jobs)) as bar:
        for source, target in jobs:
            try:
                done.append(enlarged(predictor, source, target, compare, windows, check_tiles))
            except InputError as error:
                if not many:
                    raise
                failed.append({"image": str(source), "error": str(error)})
                progress.note(str(error))
            bar.advance()
    model = predictor.info.ref
    if as_json:
        about = {"model": model, "runtime": predictor.runtime, "machine": machine.describe()}
        print_json({**about, "images": done, "failed": failed})
        return 1 if failed else 0
    for image in done:
        say_enlarged(image)
    print(f"{len(done)} of {len(jobs)} images with {model}, {predictor.runtime}, on {machine.one_line()}")
    for failure in failed:
        print(f"failed: {failure['error']}")
    return 1 if failed else 0


def say_enlarged(report: dict[str, Any]) -> None:
    """Print what :func:`enlarged` tells."""
    (height, width), (old_height, old_width) = report["size"], report["from"]
    print(f"{report['image']}  {old_width}x{old_height} -> {width}x{height}  {report['seconds']:.2f} s  ", end="")
    print(*report["files"], sep="  ")
    if "tiles_psnr" in report:
        apart = report["tiles_psnr"]
        print(f"windows against the whole image: {'equal' if apart is None else f'{apart:.1f} dB'}")


def enlarged(
    predictor: Predictor,
    source: Path,
    target: Path,
    compare: bool,
    windows: dict[str, Any],
    check_tiles: bool = False,
) -> dict[str, Any]:
    """Enlarge one image, write what is to be written, and tell how it went."""
    from ..images.reading import read_picture
    from ..images.writing import Canvas, stored_channels, write_picture

    started = time.perf_counter()
    picture = read_picture(source)
    scale: int = predictor.info.options["scale"]
    height, width = picture.pixels.shape[:2]
    channels = (1 if picture.grey else 3) + (picture.alpha is not None)
    canvas = Canvas(scale * height, scale * width, channels, 8 * picture.pixels.itemsize, picture.icc)
    canvas.check(target)
    bands = predictor.upscaled_bands(picture, **windows)
    write_picture(target, canvas, (stored_channels(band, picture.grey) for band in bands))
    report: dict[str, Any] = {
        "image": str(source),
        "from": [height, width],
        "size": [canvas.height, canvas.width],
        "seconds": round(time.perf_counter() - started, 3),
        "files": [str(target)],
    }
    if compare:
        beside = target.with_name(f"{target.stem}.compare.png")
        _write_comparison(predictor, picture, beside)
        report["files"].append(str(beside))
    if check_tiles:
        report["tiles_psnr"] = _tiles_psnr(predictor, picture, windows)
    return report


_SHOWN = 240  # pixels of the small image in a comparison


def _write_comparison(predictor: Predictor, picture: Picture, path: Path) -> None:
    """The middle of the picture, interpolated and enlarged, side by side in 8 bits."""
    import numpy as np
    from PIL import Image

    from ..images.reading import Picture
    from ..images.writing import save_picture
    from ..prediction.interpolation import interpolation

    scale = predictor.info.options["scale"]
    height, width = picture.pixels.shape[:2]
    top, left = max(0, (height - _SHOWN) // 2), max(0, (width - _SHOWN) // 2)
    cut = picture.pixels[top : top + _SHOWN, left : left + _SHOWN]
    middle = Picture((cut >> 8).astype(np.uint8) if cut.dtype == np.uint16 else cut)
    reference = interpolation(f"bicubic.x{scale}")
    assert reference is not None
    halves = [np.concatenate(list(p.upscaled_bands(middle))) for p in (reference, predictor)]
    gap = np.full((len(halves[0]), 4, 3), 255, np.uint8)
    save_picture(Image.fromarray(np.concatenate([halves[0], gap, halves[1]], axis=1)), path)


def _tiles_psnr(predictor: Predictor, picture: Picture, windows: dict[str, Any]) -> float | None:
    """How close the windows come to the image as a whole, in dB over all channels."""
    import numpy as np

    from ..evaluation.fidelity import for_json, psnr
    from ..prediction.tiles import TILE

    side = max(64, -(-max(picture.pixels.shape) // 8) * 8)
    as_one: dict[str, Any] = {"tile": side, "overlap": 0, "exact": False}
    whole, cut = (
        np.concatenate(list(predictor.upscaled_bands(picture, **how)))
        for how in (as_one, {**windows, "tile": windows["tile"] or TILE})
    )
    peak = np.iinfo(whole.dtype).max / 255
    return for_json(psnr(whole / peak, cut / peak))
