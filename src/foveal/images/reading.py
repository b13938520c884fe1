"""Read images, masks and pictures from files, bytes and arrays.

Training, prediction, export and evaluation all read images with these functions, so that they agree on every pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from . import decoding
from .formats import BandsError, open_image, pixel_limit
from .npy import is_npy, read_npy
from .sources import ImageLike as ImageLike
from .sources import ImageSource, array_problem, name_of, plain_source

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I;16", "I;16L", "I;16B")
_MASK_MODES = ("L", "P", "I;16", "I;16B", "I", "1")


def read_image(
    source: ImageLike, *, name: str = "", max_pixels: int | None = None, allow_truncated: bool = False
) -> NDArray[np.uint8]:
    """Read an image as a viewer shows it: upright, RGB, 8 bits per channel.

    EXIF orientation is applied. 16-bit greys are scaled to 8 bits, not clipped. Transparent images are composed over
    white. Of an animated file or a file with several pages, the first frame is read. CMYK, palette, grey and 1-bit
    images are converted to RGB. The format (JPEG, PNG, WebP, TIFF, BMP) is detected from the content, not from the
    file name; NPY files have the suffix ``.npy``. :func:`foveal.images.bands.read_bands` reads every band as it is.

    Args:
        source: path, content of a file, open binary file (read from its start, and not closed), Pillow image, or uint8
            array ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)``.
        name: name of the image in messages; default: the path, or "image".
        max_pixels: refuse an image with more pixels, from its header alone; default: the environment variable
            ``FOVEAL_MAX_PIXELS`` if it is set, else 100 million.
        allow_truncated: decode what a truncated or damaged file still contains, and log a warning; missing pixels are
            black or grey.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        InputError: the image is missing, unreadable, damaged, truncated or too large, has an unsupported format, has
            values of unknown range (floating point, 32-bit integers), or has further bands; or ``source`` is something
            else.
    """
    name, plain = name or name_of(source, "image"), plain_source(source, name)
    if isinstance(plain, np.ndarray):
        return _image_from_array(plain, "")
    if is_npy(plain):
        return _image_from_array(_read_npy(plain, name, max_pixels), name)
    with decoding.one_line_errors(name), open_image(plain, name, max_pixels) as (image, file):
        _check_mode(image, name)
        return decoding.apply_orientation(decoding.decode_rgb(image, file, name, allow_truncated), image)


@dataclass(frozen=True)
class Picture:
    """An image with everything that is needed to write it again, upright.

    Attributes:
        pixels: ``(H, W, 3)`` uint8 or uint16; a grey image has three equal channels.
        alpha: ``(H, W)`` of the same type; ``None`` if the image is opaque.
        icc: colour profile; empty if there is none.
        grey: whether the image was grey.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None = None
    icc: bytes = b""
    grey: bool = False


def read_picture(source: ImageLike, *, name: str = "", max_pixels: int | None = None) -> Picture:
    """Read an image that will be changed and written again: keep 16 bits, alpha, grey and the colour profile.

    The arguments are those of :func:`read_image`; arrays may also be uint16.

    Raises:
        InputError: as :func:`read_image`, and for images that cannot be written again as they were: several images in
            one file, CMYK with a profile, 16-bit grey with transparency.
    """
    name, plain = name or name_of(source, "image"), plain_source(source, name)
    if isinstance(plain, np.ndarray):
        return _picture_from_array(plain, "")
    if is_npy(plain):
        return _picture_from_array(_read_npy(plain, name, max_pixels), name)
    with decoding.one_line_errors(name), open_image(plain, name, max_pixels) as (image, file):
        _check_mode(image, name)
        raw = decoding.raw_mode(image)
        wide_grey, icc = image.mode.startswith("I"), image.info.get("icc_profile") or b""
        grey = wide_grey or image.mode in ("1", "L", "LA")
        _check_writable_again(image, name, raw)
        if raw in decoding.OTHER_BYTE_ORDER:
            decoding.decode(image, file, name, allow_truncated=False)
            with open_image(plain, name, max_pixels) as (again, _):
                pixels = decoding.read_16_bit_colours(image, again)
        else:
            pixels = _decode_picture(image, file, name, wide_grey)
        return _split_alpha(decoding.apply_orientation(pixels, image), icc, grey)


def read_mask(source: ImageSource, *, name: str = "", max_pixels: int | None = None) -> NDArray[np.int32]:
    """Read an index mask, ``(H, W)`` int32: one class id per pixel, EXIF orientation applied.

    The arguments are those of :func:`read_image`.

    Raises:
        InputError: the mask is unreadable, is a colour image, or is a JPEG, whose compression changes indices.
    """
    name, plain = name or name_of(source, "mask"), plain_source(source, name)
    if isinstance(plain, np.ndarray):
        raise InputError(f"{name}: an array of {plain.dtype}, not a file; it needs no reading")
    if is_npy(plain):
        return _mask_from_array(_read_npy(plain, name, max_pixels), name)
    with decoding.one_line_errors(name), open_image(plain, name, max_pixels) as (image, file):
        if image.mode not in _MASK_MODES:
            advice = "; save the ids as PNG of 8 or 16 bits" if image.mode == "F" else ""
            raise InputError(f"{name}: a {image.mode} image where a mask of class indices is expected{advice}")
        if image.format == "JPEG":
            raise InputError(f"{name}: JPEG alters class indices; store masks as PNG")
        step = decoding.grey_step(image)
        decoding.decode(image, file, name, allow_truncated=False)
        return decoding.apply_orientation(np.asarray(image).astype(np.int32) // step, image)


def orientation_tag(path: Path) -> int:
    """The orientation tag of an image file, 1 to 8; 1 (upright) if it has none or cannot be read."""
    if is_npy(path):
        return 1
    try:
        with decoding.one_line_errors(str(path)), open_image(path, str(path), None) as (image, _):
            orientation = decoding.orientation_of(image)
    except InputError:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _check_mode(image: Image.Image, name: str) -> None:
    if image.mode == "F":
        raise BandsError(
            f"{name}: floating-point image; its range is unknown: convert it to 8 or 16 bits, or take a model for "
            "images of other bands (docs/bands.md)"
        )
    if image.mode == "RGBX":
        raise BandsError(f"{name}: 4 bands, of which the last is not alpha: take a model with in_chans=4, or drop it")
    if image.mode == "I" and image.format != "PNG":  # older Pillow uses this mode for 16-bit PNG files
        raise InputError(f"{name}: 32-bit image; its range is unknown, convert it to 8 or 16 bits")
    if image.mode not in (*_MODES, "I"):
        raise InputError(f"{name}: a {image.mode} image; convert it to RGB")


def _check_writable_again(image: Image.Image, name: str, raw: str) -> None:
    """Refuse an image from which :class:`Picture` would lose something."""
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise InputError(f"{name}: {frames} pictures in one file; save each as a file of its own")
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        raise InputError(f"{name}: CMYK with a colour profile; convert it to RGB by that profile first")
    if raw == "LA;16B" or (image.mode.startswith("I") and "transparency" in image.info):
        raise InputError(f"{name}: 16-bit grey with transparency; convert it to 16-bit RGBA first")


def _decode_picture(image: Image.Image, file: BinaryIO | None, name: str, wide_grey: bool) -> NDArray[Any]:
    """``(H, W, 3)``, or ``(H, W, 4)`` if the image has transparency; uint16 if it is a 16-bit grey."""
    if file and image.format == "JPEG":
        return decoding.decode_rgb(image, file, name, allow_truncated=False)
    decoding.decode_colours(image, file, name, allow_truncated=False)
    if wide_grey:
        return decoding.wide_grey_to_rgb(image)
    return np.asarray(image.convert("RGBA")) if image.has_transparency_data else decoding.to_rgb(image)


def _split_alpha(pixels: NDArray[Any], icc: bytes, grey: bool) -> Picture:
    if pixels.shape[2] == 3:
        return Picture(pixels, None, icc, grey)
    return Picture(np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3]), icc, grey)


def _read_npy(source: Any, name: str, max_pixels: int | None) -> NDArray[Any]:
    array = read_npy(source, name, 4 * (pixel_limit() if max_pixels is None else max_pixels))
    if array.ndim == 3 and array.shape[2] not in (1, 3):
        raise BandsError(
            f"{name}: {array.shape[2]} bands (shape {array.shape}), of which an RGB image would lose some: take a "
            f"model with in_chans={array.shape[2]} (docs/bands.md), or save the bands to use as (H, W, 3)"
        )
    return array


def _image_from_array(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    _check_array(array, name, ("uint8",))
    if array.ndim == 2 or array.shape[2] == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return decoding.to_rgb(Image.fromarray(array)) if array.shape[2] == 4 else array


def _picture_from_array(array: NDArray[Any], name: str) -> Picture:
    _check_array(array, name, ("uint8", "uint16"))
    if array.ndim == 2 or array.shape[2] == 1:
        return Picture(np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2), grey=True)
    return _split_alpha(array, b"", False)


def _mask_from_array(array: NDArray[Any], name: str) -> NDArray[np.int32]:
    if array.ndim != 2 or array.dtype.kind not in "ui" or not array.size:
        raise InputError(f"{name}: {array.dtype} of shape {array.shape}, where a mask of integers (H, W) is expected")
    if array.min() < -(1 << 31) or array.max() >= 1 << 31:
        raise InputError(f"{name}: ids up to {array.max()}, which are no class indices")
    return array.astype(np.int32)


def _check_array(array: NDArray[Any], name: str, dtypes: tuple[str, ...]) -> None:
    if problem := array_problem(array, dtypes):
        raise BandsError(f"{name}: {problem}" if name else problem)
