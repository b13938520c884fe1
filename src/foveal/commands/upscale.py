"""The verb ``upscale``: larger images, or restored ones of the same size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from .. import assets
from ..errors import ConfigError
from ..progress import Report
from .console import ANY_ENGINE, Engines, Images, Json, Tiles, open_model, say
from .exact import check_options, open_exact, run_exact
from .handover import consume_in_thread
from .outputs import FOLDER, Job, Request, print_images, require_images, run_jobs

if TYPE_CHECKING:
    from ..images.reading import Picture
    from ..prediction.predictor import Predictor

Format = Literal["png", "jpg", "webp", "tif"]
Tile = Annotated[
    int | None,
    Parameter(
        help="Side of the tiles, in pixels, a multiple of 8 from 64 up. Default: images of up to half a megapixel are "
        "upscaled whole, larger ones in tiles of that size."
    ),
]
Overlap = Annotated[
    int | None, Parameter(help="Pixels that neighbouring tiles share; default: 32, at most a quarter of --tile.")
]
COMPARISON = ".compare.png"  #: end of the name of what --compare writes
_SHOWN = 240  # side of the part of the small image that --compare shows, in pixels


def upscale(
    images: Images,
    /,
    *,
    scale: int | None = None,
    model: str | None = None,
    out: Path = FOLDER,
    format: Format = "png",
    compare: Annotated[bool, Parameter(negative="")] = False,
    tile: Tile = None,
    overlap: Overlap = None,
    exact: Annotated[bool, Parameter(negative="")] = False,
    check_tiles: Annotated[bool, Parameter(negative="")] = False,
    resume: bool = False,
    engine: Engines = ANY_ENGINE,
    json: Json = False,
) -> int:
    """Upscale images. Alpha, 16 bits, grey and the colour profile are kept; large images are processed in tiles.

    Parameters
    ----------
    scale
        Factor for each side; default: the model's own, else 2. With 1, the default model repairs noise and JPEG
        artefacts.
    model
        Bundled name, checkpoint, exported file or training run; "bicubic" or "lanczos" interpolate.
    out
        Folder for the results, or the file of a single result.
    format
        Format of the results. All but png are held in memory and have 8 bits; jpg has no alpha.
    compare
        Also write the middle of the image next to its bicubic interpolation: bicubic left, the model right, with names.
    exact
        Tiles give the result of the whole image in one pass of the network; maps are kept in temporary files. With
        --format tif, images may be larger than memory, and --resume continues an interrupted one.
    check_tiles
        Also upscale the image as a whole and print how close the tiles come (for a single image; needs its memory).
    resume
        Skip images whose result, and comparison if one is asked for, exist.
    """
    ref = _reference(model, scale)
    require_images(images)
    if exact and format == "tif":
        engine = check_options(engine, overlap=overlap, compare=compare, check_tiles=check_tiles)
        request = Request(images, out, tiles=Tiles(tile), resume=resume, as_json=json)
        return run_exact(ref, engine, "upscale", request, scale=scale)
    if exact and engine.runtime == "native":
        raise ConfigError("--exact --runtime native needs --format tif: add it, or leave out --runtime")
    predictor = open_exact(ref, check_options(engine), "upscale") if exact else open_model(ref, engine, "upscale")
    own = predictor.info.options["scale"]
    if scale not in (None, own):
        raise ConfigError(f"--scale {scale}: {ref} enlarges {own} times; leave out --scale, or give another --model")
    request = Request(images, out, None, Tiles(tile, overlap), resume, json)
    return run(predictor, request, format, compare, exact, check_tiles)


def _reference(model: str | None, scale: int | None) -> str:
    """The reference of the model: a name without a tag means its weights for the scale.

    Raises:
        ConfigError: the name has no weights for the scale.
    """
    from ..prediction.interpolation import KERNELS, SCALES

    name = model or assets.DEFAULTS["upscale"]
    tag = f"{name}.x"
    scales = SCALES if name in KERNELS else [int(ref[len(tag) :]) for ref in assets.WEIGHTS if ref.startswith(tag)]
    if not scales:
        return name
    chosen = 2 if scale is None else scale
    if chosen not in scales:
        interpolated = f"{SCALES[0]} to {SCALES[-1]} times"
        if name in KERNELS:
            raise ConfigError(f"--scale {scale}: {name} enlarges {interpolated}")
        times = " or ".join(filter(None, [", ".join(map(str, scales[:-1])), str(scales[-1])]))
        raise ConfigError(
            f"--scale {scale}: {name} has weights for scale {times}; --model {KERNELS[0]} enlarges {interpolated}"
        )
    return f"{tag}{chosen}"


def run(
    predictor: Predictor,
    request: Request,
    suffix: str = "png",
    compare: bool = False,
    exact: bool = False,
    check_tiles: bool = False,
) -> int:
    """Upscale the requested images; the exit code is 1 if some of many failed."""
    from ..prediction.tiles import check_upscale_tiles

    request.refuse_batches("images to upscale run")
    request.refuse_table("upscaled images have")
    check_upscale_tiles(request.tiles.tile, request.tiles.overlap)
    tiles = {**request.tiles.options(), "exact": exact}
    if request.overlay:
        raise ConfigError("--overlay is for masks: leave it out")
    if check_tiles and request.resume:
        raise ConfigError("--check-tiles compares what is computed: leave out --resume")
    if check_tiles and request.many:
        raise ConfigError("--check-tiles is for a single image: give one, or leave out --check-tiles")
    plan = request.plan(f".{suffix}", COMPARISON if compare else "")

    def work(job: Job, progress: Report) -> dict[str, Any]:
        return upscale_file(predictor, job, {**tiles, "progress": progress}, check_tiles)

    done, failed = run_jobs("upscale", plan, work, request.many)
    about = {"model": predictor.info.ref, "runtime": predictor.runtime}
    return print_images(request, plan, done, failed, about, print_report)


def print_report(report: dict[str, Any]) -> None:
    """Print a report of :func:`upscale_file` as text."""
    (height, width), (old_height, old_width) = report["size"], report["from"]
    sizes = f"{old_width}x{old_height} -> {width}x{height}"
    say("  ".join([report["image"], sizes, f"{report['seconds']:.2f} s", *report["files"]]))
    if "tiles_psnr" in report:
        similarity = report["tiles_psnr"]
        say(f"tiles compared with the whole image: {'equal' if similarity is None else f'{similarity:.1f} dB'}")


def upscale_file(
    predictor: Predictor, job: Job, tiles: dict[str, Any] | None = None, check_tiles: bool = False
) -> dict[str, Any]:
    """Upscale one image, write the result, and return the report that ``--json`` prints."""
    from ..images.reading import read_picture
    from ..images.writing import Canvas, stored_channels, write_picture

    started = time.perf_counter()
    picture = read_picture(job.source)
    scale: int = predictor.info.options["scale"]
    height, width = picture.pixels.shape[:2]
    channels = (1 if picture.grey else 3) + (picture.alpha is not None)
    canvas = Canvas(scale * height, scale * width, channels, 8 * picture.pixels.itemsize, picture.icc)
    canvas.check(job.target)
    if check_tiles and predictor.limits.size is not None and _whole_side(picture) + 7 > min(predictor.limits.size):
        raise ConfigError(f"--check-tiles needs the whole image, and this file takes {predictor.limits}: leave it out")
    tiles = tiles or {}
    bands = predictor.upscaled_bands(picture, **tiles)
    stored = (stored_channels(band, picture.grey) for band in bands)
    consume_in_thread(stored, lambda received: write_picture(job.target, canvas, received))
    report: dict[str, Any] = {
        "image": str(job.source),
        "from": [height, width],
        "size": [canvas.height, canvas.width],
        "seconds": round(time.perf_counter() - started, 3),
        "files": [str(file) for file in job.files],
    }
    if job.picture is not None:
        _write_comparison(predictor, picture, job.picture)
    if check_tiles:
        report["tiles_psnr"] = _tiles_psnr(predictor, picture, tiles)
    return report


def _write_comparison(predictor: Predictor, picture: Picture, path: Path) -> None:
    """Write the middle of the image, interpolated on the left and upscaled on the right, with names, in 8 bits."""
    import numpy as np
    from PIL import Image

    from ..images.overlay import draw_name
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
    halves = [
        np.asarray(draw_name(Image.fromarray(np.concatenate(list(each.upscaled_bands(middle)))), name))
        for each, name in ((reference, "bicubic"), (predictor, predictor.info.ref))
    ]
    gap = np.full((len(halves[0]), 4, 3), 255, np.uint8)
    save_picture(Image.fromarray(np.concatenate([halves[0], gap, halves[1]], axis=1)), path)


def _whole_side(picture: Picture) -> int:
    """Side of a tile that has the whole image; tiles begin at multiples of 8."""
    return max(64, -(-max(picture.pixels.shape) // 8) * 8)


def _tiles_psnr(predictor: Predictor, picture: Picture, tiles: dict[str, Any]) -> float | None:
    """PSNR of the image upscaled in tiles against the image upscaled as a whole, in dB; ``None``: they are equal."""
    import numpy as np

    from ..evaluation.fidelity import for_json, psnr

    one_tile: dict[str, Any] = {"tile": _whole_side(picture), "overlap": 0, "exact": False}
    whole, tiled = (np.concatenate(list(predictor.upscaled_bands(picture, **options))) for options in (one_tile, tiles))
    peak = np.iinfo(whole.dtype).max / 255
    return for_json(psnr(whole / peak, tiled / peak))
