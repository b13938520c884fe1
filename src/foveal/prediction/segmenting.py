"""Segment one image: as a whole or in tiles, once or as the mean over mirrored and resized copies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..images.preparing import network_size, prepare
from ..info import ModelInfo, Preprocess
from ..progress import Report
from .batching import Prepared
from .options import Options
from .tiles import MIN_SIZE, tiled_logits

_LEAST = 1e-12  # probability that stands for less, so that its logarithm is finite

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]  #: (1, C, h, w) -> checked logits (classes, h', w')


def prepare_map(
    pixels: NDArray[Any],
    runner: Network,
    check: Network,
    info: ModelInfo,
    options: Options,
    overlap: int,
    result: Callable[..., Any],
) -> Prepared:
    """Prepare an image for a network whose output is a map at its stride.

    Args:
        pixels: the image, ``(H, W, C)``.
        runner: the network.
        check: checks the network's output and takes the batch off.
        info: of the model.
        options: with ``tile``, ``flip`` or ``scales``, the network runs several times.
        overlap: checked pixels that neighbouring tiles share.
        result: makes the result of the pixels, the map ``(C, h, w)``, and its positions per pixel.
    """
    if options.tile is not None or options.augmented:

        def finish(_: Any) -> Any:
            return result(pixels, *segment_views(pixels, lambda x: check(runner(x)), info, options, overlap))

        return Prepared(None, finish, pixels.nbytes)
    (height, width), stride = pixels.shape[:2], info.output_stride
    size = network_size(height, width, info.preprocess)
    scale = (size[0] / (height * stride), size[1] / (width * stride))
    prepared = prepare(pixels, info.preprocess, MIN_SIZE)
    return Prepared(prepared, lambda output: result(pixels, check(output), scale), pixels.nbytes + prepared.nbytes)


def segment_views(
    pixels: NDArray[Any], network: Network, info: ModelInfo, options: Options, overlap: int
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Logits of an image in tiles, or of the mean over copies of it.

    The probabilities of the copies are averaged on the grid of the largest one, each read bilinearly at the places of
    that grid; the logits are the logarithm of the mean.

    Args:
        pixels: the image, ``(H, W, C)``.
        network: of one prepared image.
        info: of the model.
        options: with ``tile``, ``flip`` or ``scales``.
        overlap: checked pixels that neighbouring tiles share.

    Returns:
        Logits ``(classes, h, w)``, and logit positions per image pixel, (vertical, horizontal).
    """
    scales = sorted(options.scales, reverse=True)
    views = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if options.flip else (False,))]
    total: NDArray[np.float32] | None = None
    grid, ratio = (0, 0), (1.0, 1.0)
    for number, (scale, mirrored) in enumerate(views):
        report = options.report and _part(options.report, number, len(views))
        view = pixels[:, ::-1] if mirrored else pixels
        logits, own = _logits(view, network, info, options.tile, overlap, scale, report)
        if not options.augmented:
            return logits, own
        if total is None:
            total, grid, ratio = np.zeros_like(logits), (logits.shape[1], logits.shape[2]), own
        total += _on_grid(_softmax(logits), own, grid, ratio, pixels.shape[1] if mirrored else None)
    assert total is not None
    return np.log(np.maximum(total / len(views), _LEAST)), ratio


def _logits(
    pixels: NDArray[Any],
    network: Network,
    info: ModelInfo,
    tile: int | None,
    overlap: int,
    scale: float,
    report: Report | None,
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Logits of one copy of the image, and their positions per pixel of the image."""
    stride, own = info.output_stride, info.preprocess
    full = dataclasses.replace(own, size=None, max_side=None, crop_ratio=0.0)
    height, width = pixels.shape[:2]
    usual = (height, width) if tile is not None else network_size(height, width, own)  # tiles see the full resolution
    size = max(1, round(usual[0] * scale)), max(1, round(usual[1] * scale))
    if tile is None:
        logits = network(prepare(pixels, dataclasses.replace(full, size=size), MIN_SIZE))
        if report is not None:
            report(1.0, "")
    else:
        view = _resized(pixels, size, own)
        logits = tiled_logits(
            lambda window: network(prepare(window, full, MIN_SIZE)), view, tile, overlap, stride, report
        )
    return logits, (size[0] / (height * stride), size[1] / (width * stride))


def _resized(pixels: NDArray[Any], size: tuple[int, int], preprocess: Preprocess) -> NDArray[Any]:
    from PIL import Image

    from ..images.bands import resized

    if pixels.shape[:2] == size:
        return pixels
    kernels = {each.name.lower(): each for each in Image.Resampling}
    if preprocess.resample not in kernels:
        raise InputError(f"unknown resampling filter {preprocess.resample!r}: use bicubic, bilinear or nearest")
    return resized(pixels, (size[1], size[0]), kernels[preprocess.resample])


def _part(report: Report, number: int, count: int) -> Report:
    """The report of one of several copies."""
    return lambda share, text: report((number + share) / count, f"copy {number + 1} of {count} {text}".rstrip())


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(0))
    return shifted / shifted.sum(0)


def _on_grid(
    values: NDArray[np.float32],
    own: tuple[float, float],
    grid: tuple[int, int],
    ratio: tuple[float, float],
    mirrored_width: int | None,
) -> NDArray[np.float32]:
    """Values ``(C, h, w)`` read at the positions of another grid; those of a mirror image in its place.

    Args:
        values: of one copy.
        own: their positions per pixel.
        grid: (h, w) of the other grid.
        ratio: its positions per pixel.
        mirrored_width: of the image in pixels, if the copy is its mirror image.
    """
    for axis, (length, scale, positions) in enumerate(zip(grid, own, ratio, strict=True), 1):
        pixel = (np.arange(length) + 0.5) / positions
        if axis == 2 and mirrored_width is not None:
            pixel = mirrored_width - pixel
        values = _linear_samples(values, pixel * scale - 0.5, axis)
    return values


def _linear_samples(values: NDArray[np.float32], position: NDArray[np.floating[Any]], axis: int) -> NDArray[np.float32]:
    """Linear interpolation along one axis; beyond the ends the values stay the same."""
    last = values.shape[axis] - 1
    position = np.clip(position, 0, last)
    below = np.floor(position).astype(np.intp)
    weight = (position - below).astype(np.float32)
    if not weight.any() and len(below) == last + 1 and (np.diff(below) == 1).all():
        return values
    shape = [1] * values.ndim
    shape[axis] = math.prod(weight.shape)
    lower, upper = values.take(below, axis), values.take(np.minimum(below + 1, last), axis)
    return np.asarray(lower + weight.reshape(shape) * (upper - lower), np.float32)
