"""What callers give as an image: paths, contents, open files, Pillow images, arrays; anything else is one error."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError

#: Path of a file, its content, a file that is open for reading bytes, or a Pillow image.
ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image
ImageLike = ImageSource | NDArray[np.uint8] | NDArray[np.uint16]  # 16 bits: only to upscale

MAX_FILE_BYTES = 2 << 30
_EXPECTED = "give a path, bytes, an open binary file, a Pillow image or a uint8 array (H, W, 3)"
_URL = re.compile(r"(https?|ftp|s3|gs|hf|file):/", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s_-]{100,}={0,2}\s*")
_SHOWN = 80  # characters of a long text in a message


def is_batch(images: object) -> bool:
    """Whether a predictor's argument stands for several images: a list, a tuple, or an iterator that is no file."""
    return isinstance(images, list | tuple) or (isinstance(images, Iterator) and not hasattr(images, "read"))


def check_images(images: object) -> None:
    """Refuse a single image where several are expected: iterating over a path or an array would give its parts.

    Raises:
        InputError: ``images`` cannot be iterated over, or is a path, a file, bytes, or an array of one image.
    """
    single = isinstance(images, str | bytes | bytearray | memoryview | dict) or hasattr(images, "read")
    if single or not isinstance(images, Iterable) or (isinstance(images, np.ndarray) and images.ndim < 4):
        raise InputError(f"{_describe(images)} where several images are expected: give a list or an iterator of images")


def plain_source(source: Any, name: str = "") -> str | Path | bytes | Image.Image | NDArray[Any]:
    """Reduce what a caller gives as an image to a path, the content of a file, a Pillow image or an array.

    An open file is read from its start, if it has one, and stays open.

    Raises:
        InputError: something else, or a file that cannot be read or is too large.
    """
    if isinstance(source, str | Path | bytes | Image.Image | np.ndarray):
        return source
    if isinstance(source, os.PathLike) and isinstance(path := os.fspath(source), str):
        return path
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if hasattr(source, "read"):
        return _read_file(source, name or name_of(source, "file"))
    several = "; several images: predictor(list)" if isinstance(source, Iterable) and is_batch(source) else ""
    raise InputError(
        f"{name + ': ' if name else ''}{_describe(source)} where an image is expected: {_EXPECTED}{several}"
    )


def name_of(source: Any, default: str) -> str:
    """Name of an image in messages: its path, that of an open file, or ``default``."""
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    text = str(name) if isinstance(name, str | os.PathLike) and str(name) else default
    return text if len(text) <= 4 * _SHOWN else f"{text[:_SHOWN]}..."


def why_missing(source: str | os.PathLike[str]) -> str:
    """Why there is no file of this name."""
    text = str(source)
    if _URL.match(text):
        return "an address; images are not downloaded: download it, then give the path or the bytes"
    if text[:5].lower() == "data:":
        return "a data URI: give its bytes, base64.b64decode(text.partition(',')[2])"
    if _BASE64.fullmatch(text):
        return "no such file; if this is the content in base64, give base64.b64decode(text)"
    return "no such file or folder"


def array_problem(array: NDArray[Any], dtypes: tuple[str, ...]) -> str:
    """What is wrong with an array as an image, and what to give; empty if it is ``(H, W)`` or ``(H, W, 1, 3 or 4)``."""
    shape = array.shape
    if array.dtype.name not in dtypes:
        hints = {
            "f": "values of 0..1 become that with (255 * array).round().astype('uint8')",
            "b": "masks become that with 255 * array.astype('uint8')",
        }
        hint = hints.get(array.dtype.kind, "convert it with array.astype('uint8') if its values fit")
        return f"array of {array.dtype}: expected {' or '.join(dtypes)} with values 0..255, for shape {shape}; {hint}"
    if array.size == 0:
        return f"array of shape {shape}: no pixels"
    if array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4)):
        return ""
    if array.ndim == 3 and shape[0] in (1, 3, 4):
        hint = "its channels come first, give array.transpose(1, 2, 0)"
    elif array.ndim == 4:
        hint = f"for a batch of {shape[0]} give list(array)" if shape[3] in (1, 3, 4) else "give a list of images"
    else:
        hint = "other numbers of channels have no meaning as a picture"
    return f"array of shape {shape}: expected (H, W), (H, W, 3) or (H, W, 4); {hint}"


def _read_file(file: Any, name: str) -> bytes:
    try:
        if callable(seekable := getattr(file, "seekable", None)) and seekable():
            file.seek(0)
        content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError, TypeError) as error:  # ValueError: closed, or not UTF-8 in a file of text
        raise InputError(f"{name}: cannot be read ({' '.join(str(error).split())}): {_EXPECTED}") from error
    if isinstance(content, bytearray | memoryview):
        content = bytes(content)
    if not isinstance(content, bytes):
        hint = "open it with mode 'rb'" if isinstance(content, str) else _EXPECTED
        raise InputError(f"{name}: its read() returns {_describe(content)} instead of bytes: {hint}")
    return content


def _describe(value: object) -> str:
    """Type of a value in words, with shape and dtype where it has them."""
    if value is None:
        return "None"
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    article = "an" if name[0].lower() in "aeiou" else "a"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"{article} {name} of {dtype} and shape {tuple(shape)}"
    return f"{article} {name}"
