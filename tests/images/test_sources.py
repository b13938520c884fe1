"""What may be given as an image, and the one line for everything else."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.errors import InputError
from foveal.images.reading import read_image, read_mask, read_picture
from foveal.images.sources import check_images, is_batch
from helpers.pictures import PICTURE


def content(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "PNG", **options)
    return file.getvalue()


class Stream(io.RawIOBase):
    """A file that cannot go back, as that of a network connection."""

    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        return self.data.readinto(buffer)


@pytest.mark.parametrize(
    "make", [bytes, bytearray, memoryview, io.BytesIO, lambda data: io.BufferedReader(Stream(data))]
)
def test_contents_and_open_files(make: Callable[[bytes], Any]) -> None:
    """Upright, and read from the start."""
    exif = Image.Exif()
    exif[0x0112] = 6
    source = make(content(exif=exif))
    if isinstance(source, io.BytesIO):
        source.seek(100)
    assert (read_image(source) == np.rot90(PICTURE, -1)).all()
    if hasattr(source, "read"):
        assert not source.closed


def test_files_in_folders_and_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "b.png")
    with path.open("rb") as file, zipfile.ZipFile(tmp_path / "a.zip") as archive, archive.open("b.png") as member:
        for source in (file, member):
            assert (read_picture(source).pixels == PICTURE).all()
            assert (read_image(source) == PICTURE).all()
    Image.fromarray(PICTURE[..., 0]).save(path)
    with path.open("rb") as file:
        assert (read_mask(file) == PICTURE[..., 0]).all()


def test_the_limits_hold_for_open_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="megapixels, above the limit"):
        read_image(io.BytesIO(content()), max_pixels=100)
    (tmp_path / "half.png").write_bytes(content()[:200])
    with (
        (tmp_path / "half.png").open("rb") as file,
        pytest.raises(InputError, match=r"half\.png: damaged or truncated"),
    ):
        read_image(file)


def test_grey_with_a_channel() -> None:
    assert (read_image(PICTURE[..., :1]) == PICTURE[..., :1]).all()
    assert read_picture(PICTURE[..., :1]).grey


CLOSED = io.BytesIO()
CLOSED.close()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "None where an image is expected: give a path, bytes, an open binary file, a Pillow image or a uint8"),
        (3, "an int where an image is expected"),
        ([PICTURE], r"a list where an image is expected: .*; several images: predictor\(list\)"),
        (iter([PICTURE]), r"a list_iterator where an image is expected: .*; several images: predictor\(list\)"),
        ({"image": PICTURE}, "a dict where an image is expected"),
        (np.uint8(3), r"a numpy.uint8 of uint8 and shape \(\)"),
        (torch.zeros(3, 4, 5), r"a torch.Tensor of torch.float32 and shape \(3, 4, 5\) where an image is expected"),
        (np.zeros((3, 40, 56), np.uint8), r"\(3, 40, 56\): .* channels come first, give array\.transpose\(1, 2, 0\)"),
        (np.zeros((2, 40, 56, 3), np.uint8), r"\(2, 40, 56, 3\): .*for a batch of 2 give list\(array\)"),
        (PICTURE / 255, r"array of float64: expected uint8 .* shape \(40, 56, 3\); .*\(255 \* array\)\.round\(\)"),
        (np.zeros((4, 5), bool), r"array of bool: .*255 \* array"),
        (io.StringIO("text"), r"file: its read\(\) returns a str instead of bytes: open it with mode 'rb'"),
        (CLOSED, "file: cannot be read .*closed file"),
        ("https://example.org/a.jpg", r"https://example\.org/a\.jpg: an address; images are not downloaded"),
        (Path("http://example.org/a.jpg"), "an address; images are not downloaded"),
        ("data:image/png;base64," + base64.b64encode(content()).decode(), r"a data URI: give its bytes, base64\.b64"),
        (base64.b64encode(content()).decode(), r"no such file; if this is the content in base64, give base64\.b64"),
        ("none.jpg", r"none\.jpg: no such file or folder$"),
    ],
)
def test_what_is_no_image_is_named(source: Any, message: str) -> None:
    for read in (read_image, read_picture):
        with pytest.raises(InputError, match=message) as caught:
            read(source)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_batches() -> None:
    file = io.BytesIO(content())  # iterates over lines, but is one image
    assert [is_batch(x) for x in ([], (), iter([]), file, "a.jpg", PICTURE, None)] == [True] * 3 + [False] * 4
    check_images(np.stack([PICTURE, PICTURE]))
    for single in ("a.jpg", b"content", file, PICTURE, Path("a.jpg"), None, 3):
        with pytest.raises(InputError, match="where several images are expected: give a list or an iterator"):
            check_images(single)
