"""Images with other bands than red, green and blue of 8 bits: read, resize and show them.

Bands are the channels of an image ``(H, W, C)``: infrared next to the colours, a height, 16 bits of grey. Their values
are uint8, uint16 or float32, as in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..info import PEAKS
from . import decoding, tiff
from .formats import check_pixels, detect_format, open_file, open_image, pixel_limit
from .npy import is_npy, npy_shape, read_npy
from .reading import read_image
from .sources import ImageLike, ImageSource, name_of, plain_source
from .tiff_pixels import read_page

MAX_BANDS = 1024
_LOSSLESS = ("int8", "int16", "float16", "float64")  # become float32 (float64 is rounded)
_SHOWN = (2, 98)  # percentiles of a band that are drawn in black and in white
_SAMPLED = 1 << 18  # pixels from which these are computed


@dataclass(frozen=True)
class Bands:
    """The images that a model takes.

    Attributes:
        count: number of bands; 0: any.
        dtype: type of their values, a key of :data:`foveal.info.PEAKS`; empty: any.
    """

    count: int = 3
    dtype: str = "uint8"

    def __str__(self) -> str:
        return f"{self.count} {'band' if self.count == 1 else 'bands'}{self.dtype and ' of '}{self.dtype}"

    def read(self, source: ImageLike, *, name: str = "") -> NDArray[Any]:
        """Read an image: as RGB of 8 bits by :func:`~foveal.images.reading.read_image`, else by :func:`read_bands`.

        Returns:
            ``(H, W, C)``.

        Raises:
            InputError: the image cannot be read, or has other bands.
        """
        if self == RGB:
            return read_image(source, name=name)
        image = read_bands(source, name=name)
        found = Bands(image.shape[2], str(image.dtype))
        if self.count not in (0, found.count) or self.dtype not in ("", found.dtype):
            name = "the array" if isinstance(source, np.ndarray) else name or name_of(source, "image")
            raise InputError(f"{name}: {found}, but the model takes {self}{_channels_first_hint(image, self.count)}")
        return image


RGB = Bands()  #: three bands of uint8: what every image is converted to unless a model takes others


def read_bands(
    source: ImageLike, *, name: str = "", max_pixels: int | None = None, finite: bool = True
) -> NDArray[Any]:
    """Read an image with all of its bands, unchanged: no alpha is composed, 16 bits stay 16 bits.

    TIFF (any number of bands, in one or in separate planes, in strips or tiles; the pages of a file are further bands),
    NPY (``(H, W, C)`` or ``(H, W)``), and every format of :func:`~foveal.images.reading.read_image`. The orientation is
    applied.

    Args:
        source: path, content of a file, Pillow image or array.
        name: name of the image in messages; default: the path, or "image".
        max_pixels: refuse an image with more pixels, or with more than four bytes for each of so many pixels; default
            as for ``read_image``.
        finite: whether to refuse NaN and infinite values.

    Returns:
        ``(H, W, C)`` uint8, uint16 or float32. Signed integers of up to 16 bits and other floating-point values become
        float32.

    Raises:
        InputError: the image cannot be read, is too large, or has values that are NaN, infinite or of another type.
    """
    name, plain = name or name_of(source, "image"), plain_source(source, name)
    if isinstance(plain, np.ndarray):
        return _checked(plain, "array", finite=finite)
    limit = pixel_limit() if max_pixels is None else max_pixels
    if is_npy(plain):
        return _checked(read_npy(plain, name, 4 * limit), name, limit, finite=finite)
    with decoding.one_line_errors(name):
        if not isinstance(plain, Image.Image) and (values := _read_tiff(plain, name, limit)) is not None:
            return _checked(values, name, finite=finite)
        with open_image(plain, name, max_pixels) as (image, file):
            raw = decoding.raw_mode(image)
            if raw in decoding.OTHER_BYTE_ORDER:
                decoding.decode(image, file, name, allow_truncated=False)
                with open_image(plain, name, max_pixels) as (again, _):
                    values = decoding.read_16_bit_colours(image, again)
            elif raw == "LA;16B":
                raise InputError(f"{name}: 16-bit grey with transparency; save it as TIFF or NPY")
            else:
                values = _decode(image, file, name)
            return _checked(decoding.apply_orientation(values, image), name, finite=finite)


def read_size(source: ImageSource, *, name: str = "", max_pixels: int | None = None) -> tuple[int, int]:
    """(H, W) of an upright image with any bands, from its header alone.

    The arguments are those of :func:`read_bands`.

    Raises:
        InputError: the image is missing or too large, or its header is damaged.
    """
    name, plain = name or name_of(source, "image"), plain_source(source, name)
    limit = pixel_limit() if max_pixels is None else max_pixels
    if isinstance(plain, np.ndarray):
        return plain.shape[0], plain.shape[1]
    with decoding.one_line_errors(name):
        if is_npy(plain):
            height, width = (*npy_shape(plain, name), 0, 0)[:2]
        elif not isinstance(plain, Image.Image) and (page := _first_page(plain, name)):
            (width, height), orientation = page.size, page.first(274, 1)
            height, width = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
        else:
            with open_image(plain, name, max_pixels) as (image, _):
                turned = decoding.orientation_of(image) in (5, 6, 7, 8)
                height, width = image.size if turned else image.size[::-1]
        check_pixels(name, (width, height), limit)
        return height, width


def _first_page(source: str | Path | bytes, name: str) -> tiff.Page | None:
    """The first page of a TIFF file; ``None`` for other files."""
    with open_file(source, name) as file:
        pages = tiff.pages(file, name, strict=False) if detect_format(file, name) == "TIFF" else []
    return pages[0] if pages else None


def _read_tiff(source: str | Path | bytes, name: str, limit: int) -> NDArray[Any] | None:
    """All bands of a TIFF file; ``None`` for other files, and for compressions and palettes that Pillow decodes."""
    with open_file(source, name) as file:
        if detect_format(file, name) != "TIFF":
            return None
        pages = tiff.pages(file, name)
        if not pages or not all(page.is_plain for page in pages):
            return None
        total = sum(page.bands for page in pages)
        check_pixels(name, pages[0].size, limit)
        _check_bytes(name, (*pages[0].size, total), np.dtype(pages[0].dtype).itemsize, limit)
        if any((page.size, page.dtype) != (pages[0].size, pages[0].dtype) for page in pages):
            raise InputError(f"{name}: {len(pages)} pages of different sizes or types; save each as a file of its own")
        content = file.read()
    values = [read_page(content, page, name) for page in pages]
    orientation = pages[0].first(274, 1)
    return decoding.upright(values[0] if len(values) == 1 else np.concatenate(values, axis=2), orientation)


def _decode(image: Image.Image, file: BinaryIO | None, name: str) -> NDArray[Any]:
    """The values of an opened image as Pillow has them; palettes and colour models other than RGB become RGB."""
    if file and image.format == "JPEG":
        rgb = decoding.decode_rgb(image, file, name, allow_truncated=False)
        return rgb[..., :1] if image.mode == "L" else rgb
    decoding.decode_colours(image, file, name, allow_truncated=False)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F", "L", "LA", "RGB", "RGBA", "RGBX"):
        return np.asarray(image)
    return np.asarray(image.convert("L" if image.mode == "1" else "RGB"))


def _check_bytes(name: str, shape: tuple[int, int, int], itemsize: int, limit: int) -> None:
    width, height, bands = shape
    if bands > MAX_BANDS:
        raise InputError(f"{name}: {bands} bands, above the limit of {MAX_BANDS}")
    if width * height * bands * itemsize > 4 * limit:
        raise InputError(
            f"{name}: {width}x{height} with {bands} bands of {8 * itemsize} bits is "
            f"{width * height * bands * itemsize / 1e6:.0f} MB, above the limit of {4 * limit / 1e6:.0f}: cut it into "
            "tiles, or raise the limit of pixels with the environment variable FOVEAL_MAX_PIXELS"
        )


def _checked(values: NDArray[Any], name: str, limit: int | None = None, *, finite: bool) -> NDArray[Any]:
    """``(H, W, C)`` in one of the types of :data:`foveal.info.PEAKS`; ``finite``: without NaN and infinite values."""
    if values.ndim not in (2, 3) or not values.size:
        raise InputError(f"{name} of shape {values.shape}: expected (H, W, C) or (H, W)")
    values = values[..., None] if values.ndim == 2 else values
    if limit is not None:
        check_pixels(name, (values.shape[1], values.shape[0]), limit)
    if values.shape[2] > MAX_BANDS:
        raise InputError(f"{name} of shape {values.shape}: at most {MAX_BANDS} bands are read{_hint(values.shape)}")
    if values.dtype.name in _LOSSLESS:
        with np.errstate(over="ignore"):  # the check below reports it
            values = values.astype(np.float32)
    elif values.dtype.name not in PEAKS:
        raise InputError(f"{name}: values of {values.dtype}; convert them to {', '.join(PEAKS)}")
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    if finite and values.dtype == np.float32 and (bad := int(np.count_nonzero(~np.isfinite(values)))):
        raise InputError(f"{name}: {bad} values are NaN or infinite; replace them, for example by the band's mean")
    return values


def _channels_first_hint(image: NDArray[Any], count: int) -> str:
    return _hint(image.shape) if count and image.shape[0] == count else ""


def _hint(shape: tuple[int, ...]) -> str:
    return f"; it seems to be (C, H, W): save it as (H, W, C), {(*shape[1:], shape[0])}"


def resized(
    image: NDArray[Any],
    size: tuple[int, int],
    kernel: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> NDArray[Any]:
    """Resize an image by Pillow, each band for itself unless it is RGB; the type stays.

    Args:
        image: ``(H, W, C)`` uint8, uint16 or float32.
        size: (W, H) of the result.
        kernel: filter.
        box: (left, top, right, bottom), the part of the image to resize; default: all of it.
    """
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize(size, kernel, box=box))
    out = np.empty((size[1], size[0], image.shape[2]), image.dtype)
    for band in range(image.shape[2]):
        values = image[..., band] if image.dtype == np.uint8 else image[..., band].astype(np.float32)
        part = np.asarray(Image.fromarray(np.ascontiguousarray(values)).resize(size, kernel, box=box))
        out[..., band] = np.rint(part).clip(0, PEAKS["uint16"]) if image.dtype == np.uint16 else part
    return out


def displayed(image: NDArray[Any]) -> NDArray[np.uint8]:
    """An image to look at, ``(H, W, 3)`` uint8: the first three bands, or the first in grey; RGB as it is.

    Values other than uint8 are scaled: all but the darkest and the brightest two percent of each band fill 0..255.
    """
    if image.shape[2] < 3:
        image = np.repeat(image[..., :1], 3, axis=2)
    image = image[..., :3]
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    step = max(1, round((image.shape[0] * image.shape[1] / _SAMPLED) ** 0.5))
    low, high = np.percentile(image[::step, ::step].reshape(-1, 3), _SHOWN, axis=0)
    scaled = (image - low) / np.where(high > low, high - low, 1)
    return (scaled.clip(0, 1) * 255 + 0.5).astype(np.uint8)
