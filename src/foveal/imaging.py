"""Pixels in and out, with numpy and Pillow alone: reading, preparing for a network, tiling, colouring.

Every road through Foveal (training, prediction, export, evaluation) reads and prepares images here, so that they
cannot drift apart.
"""

from __future__ import annotations

import math
import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import InputError
from .info import Preprocess

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")
MAX_PIXELS = 100_000_000  #: larger images are refused before decoding, unless the caller raises the limit
MAX_FILE_BYTES = 512 << 20
_BAND = 16  # rows that prepare() works on at a time

# What Pillow's decoders and readers of metadata raise on files that somebody has broken.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, ZeroDivisionError,
    MemoryError, struct.error,
)  # fmt: skip

ImageLike = str | Path | Image.Image | NDArray[np.uint8]


def read_image(source: ImageLike, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image as the eye sees it: upright, 8 bits, RGB.

    Orientation tags are applied. 16-bit greys are scaled to 8 bits, not clipped. Transparency is composed over white.
    Animated files give their first frame. CMYK, palettes, grey and 1-bit images become RGB.

    Args:
        source: path, Pillow image, or uint8 array ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``.
        max_pixels: refuse images with more pixels, from the header alone.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        InputError: missing, unreadable, truncated, too large, of an unsupported format, or floating point.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    name = source if isinstance(source, str | Path) else "image"
    with _opened(source, max_pixels) as image:
        try:
            return _to_rgb(image, str(name))
        except _DAMAGE as error:
            raise InputError(f"{name}: damaged or truncated image ({error})") from error


def read_mask(source: str | Path | Image.Image, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """Read an index mask, ``(H, W)`` int32: one class id per pixel, orientation tags applied.

    Raises:
        InputError: unreadable, or a colour image where indices are expected.
    """
    with _opened(source, max_pixels) as image:
        if image.mode not in ("L", "P", "I;16", "I;16B", "I", "1"):
            raise InputError(f"{source}: a {image.mode} image where a mask of class indices is expected")
        try:
            upright = ImageOps.exif_transpose(image)
            return np.asarray(upright).astype(np.int32)
        except _DAMAGE as error:
            raise InputError(f"{source}: damaged or truncated mask ({error})") from error


def _opened(source: str | Path | Image.Image, max_pixels: int) -> Image.Image:
    """Open lazily and check format and size from the header, before anything is decoded."""
    if isinstance(source, Image.Image):
        _check_pixels("image", source.size, max_pixels)
        try:
            return source.copy()  # the caller's own stays open
        except _DAMAGE as error:
            raise InputError(f"image: damaged or truncated ({error})") from error
    path = Path(source)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"{path}: a folder where an image is expected")
        if size == 0:
            raise InputError(f"{path}: empty file")
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path}: {size >> 20} MiB file is above the limit of {MAX_FILE_BYTES >> 20} MiB")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            image = Image.open(path, formats=FORMATS)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file or folder") from error
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS[:5])
        raise InputError(f"{path}: not an image of a known format ({known}), or damaged") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, ValueError, SyntaxError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path}: {reason}") from error
    try:
        _check_pixels(path, image.size, max_pixels)
    except InputError:
        image.close()
        raise
    return image


def _check_pixels(name: str | Path, size: tuple[int, int], max_pixels: int) -> None:
    pixels = size[0] * size[1]
    if pixels > max_pixels:
        raise InputError(
            f"{name}: {size[0]}x{size[1]} is {pixels / 1e6:.0f} megapixels, "
            f"above the limit of {max_pixels / 1e6:.0f} for one image: shrink it or cut it up"
        )
    if pixels == 0:
        raise InputError(f"{name}: {size[0]}x{size[1]}, an image without pixels")


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise InputError(f"{name}: floating-point image; its range is unknown, convert it to 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise InputError(f"{name}: 32-bit image with values beyond 0..65535; convert it to 8 or 16 bits")
        grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


def _from_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise InputError(f"array of {array.dtype}: expected uint8 with values 0..255")
    if array.size == 0:
        raise InputError(f"array of shape {array.shape}: no pixels")
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    if array.ndim == 3 and array.shape[2] in (3, 4):
        return _to_rgb(Image.fromarray(array), "array") if array.shape[2] == 4 else array
    raise InputError(f"array of shape {array.shape}: expected (H, W), (H, W, 3) or (H, W, 4)")


def list_images(source: str | Path) -> list[Path]:
    """The image files below a folder in sorted order (hidden ones left out), or the one file that ``source`` is.

    Raises:
        InputError: nothing there.
    """
    source = Path(source)
    if source.is_dir():
        found = sorted(p for p in source.rglob("*") if is_image(p) and p.is_file())
        if not found:
            raise InputError(f"{source}: no images ({', '.join(SUFFIXES)}) in this folder")
        return found
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    return [source]


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image; ``.name`` and ``._name`` (macOS) are not."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def prepare(image: NDArray[np.uint8], preprocess: Preprocess, min_size: int = 1) -> NDArray[np.float32]:
    """Turn an image into a network's input.

    Args:
        image: ``(H, W, 3)`` uint8.
        preprocess: resize, mean and std.
        min_size: smaller sides are replicate-padded at the right and bottom to this many pixels.

    Returns:
        ``(1, 3, h, w)`` float32, contiguous.

    Raises:
        InputError: unknown resampling filter.
    """
    image = _resized(image, preprocess)
    height, width = image.shape[:2]
    if height < min_size or width < min_size:
        image = np.pad(image, ((0, max(0, min_size - height)), (0, max(0, min_size - width)), (0, 0)), mode="edge")
    gain = np.array([1 / (255 * std) for std in preprocess.std], np.float32)[:, None, None]
    shift = np.array([m / s for m, s in zip(preprocess.mean, preprocess.std, strict=True)], np.float32)[:, None, None]
    out = np.empty((1, 3, *image.shape[:2]), np.float32)
    for top in range(0, image.shape[0], _BAND):  # small enough to stay in cache between the three passes
        band = out[0, :, top : top + _BAND]
        band[...] = image[top : top + _BAND].transpose(2, 0, 1)
        band *= gain
        band -= shift
    return out


def network_size(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """(H, W) that an image of ``height`` x ``width`` has when the network sees it, before padding."""
    if preprocess.size is not None:
        return preprocess.size
    if preprocess.max_side is None or max(height, width) <= preprocess.max_side:
        return height, width
    scale = preprocess.max_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(image: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    height, width = network_size(image.shape[0], image.shape[1], preprocess)
    cropped = preprocess.crop_ratio > 0 and preprocess.size is not None
    if image.shape[:2] == (height, width) and not cropped:
        return image
    try:
        kernel = Image.Resampling[preprocess.resample.upper()]
    except KeyError:
        raise InputError(
            f"unknown resampling filter {preprocess.resample!r}: use bicubic, bilinear or nearest"
        ) from None
    picture = Image.fromarray(image)
    if cropped:
        # Rounded as torchvision's Resize and CenterCrop do, with which the published classifiers were evaluated.
        short = math.ceil(min(height, width) / preprocess.crop_ratio)
        wide, high = (short * side // min(picture.size) for side in picture.size)
        picture = picture.resize((max(width, wide), max(height, high)), kernel)
        left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
        return np.asarray(picture.crop((left, top, left + width, top + height)))
    return np.asarray(picture.resize((width, height), kernel))


def resize_cubic(array: NDArray, length: int, axis: int) -> NDArray[np.float32]:
    """Resize one axis to ``length`` by :func:`cubic_samples` at the centres of the new pixels."""
    return cubic_samples(array, (np.arange(length) + 0.5) * (array.shape[axis] / length) - 0.5, axis)


def cubic_samples(array: NDArray, positions: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Values between the samples of one axis by cubic convolution with a = -0.75, edges repeated, no smoothing.

    That is OpenCV's INTER_CUBIC and torch's "bicubic" without ``antialias``; Pillow's has a = -0.5 and smooths.

    Source: Keys, "Cubic convolution interpolation for digital image processing", 1981.
    """
    first = np.floor(positions).astype(np.intp) - 1
    out = np.zeros((*array.shape[:axis], len(positions), *array.shape[axis + 1 :]), np.float32)
    for index in (first + tap for tap in range(4)):
        weight = _cubic_kernel(np.abs(positions - index)).astype(np.float32)
        weight = weight.reshape(-1, *[1] * (array.ndim - axis - 1))
        out += np.take(array, np.clip(index, 0, array.shape[axis] - 1), axis) * weight
    return out


def _cubic_kernel(distance: NDArray[np.float64], a: float = -0.75) -> NDArray[np.float64]:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Start of each of the fewest evenly spread windows of ``tile`` that cover ``length`` with at least ``overlap``."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def raised_cosine(length: int, ramp: int) -> NDArray[np.float32]:
    """Weights of one window, ``(length,)``: a raised-cosine rise and fall over ``ramp`` positions, never 0."""
    position = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return (0.5 - 0.5 * np.cos(np.pi * np.minimum(position / max(ramp, 1), 1.0))).astype(np.float32)


def distinct_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours for classes without a palette: hues a golden angle apart, so that neighbours differ."""
    import colorsys

    hues = ((0.11 + i * 0.618033988749895) % 1 for i in range(count))
    tones = (colorsys.hsv_to_rgb(hue, 0.65 + 0.35 * (i % 2), 0.95 - 0.3 * (i % 3 == 2)) for i, hue in enumerate(hues))
    return tuple((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in tones)
