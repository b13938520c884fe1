"""PNG and JPEG files row by row: the values of the whole image, damage, rotation, and bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.errors import InputError
from foveal.images import jpeg_rows, png_rows, rasters
from foveal.images.bands import RGB, Bands
from foveal.images.rasters import ArrayRaster, open_raster
from foveal.images.row_raster import RowRaster
from foveal.images.writing import Canvas, write_picture
from helpers.memory import peak_growths
from helpers.pngs import chunk, header
from helpers.streams import stripes

IMAGE = stripes(150, 201)
ANY = Bands(0, "")
ROTATED = Image.Exif()
ROTATED[274] = 6


@pytest.fixture(autouse=True)
def _many_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images are read in rows, too, in bands of a few of them."""
    monkeypatch.setattr(rasters, "_AT_ONCE", 0)
    monkeypatch.setattr(png_rows, "BAND_BYTES", 6000)
    monkeypatch.setattr(jpeg_rows, "BAND_BYTES", 6000)


def check_windows(path: Path, bands: Bands) -> None:
    """Windows, also one above the last, are those of the whole image."""
    whole = bands.read(path)
    with open_raster(path, bands) as raster:
        assert isinstance(raster, RowRaster)
        assert (raster.shape, raster.dtype) == (whole.shape, whole.dtype)
        for top, bottom, left, right in (
            (0, 50, 3, 200), (0, 50, 7, 9), (40, 90, 0, 201), (140, 150, 9, 10), (20, 30, 3, 200), (0, 150, 0, 201),
        ):  # fmt: skip
            window = raster.read(slice(top, bottom), slice(left, right))
            assert np.array_equal(window, whole[top:bottom, left:right])


def _save(image: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: image.save(path, **options)


def _save_16_bits(channels: int) -> Callable[[Path], None]:
    wide = np.dstack([IMAGE, IMAGE[..., 1]])[..., :channels].astype(np.uint16) * 251 + 77
    return lambda path: write_picture(path, Canvas(150, 201, channels, 16), [wide])


@pytest.mark.parametrize("bands", [RGB, ANY], ids=["as RGB", "as it is"])
@pytest.mark.parametrize(
    "write",
    [
        pytest.param(_save(Image.fromarray(IMAGE)), id="RGB"),
        pytest.param(_save(Image.fromarray(IMAGE), transparency=(0, 0, 0)), id="RGB with a transparent colour"),
        pytest.param(_save(Image.fromarray(IMAGE[..., 0])), id="grey"),
        pytest.param(_save(Image.fromarray(IMAGE[..., :2], "LA")), id="grey with alpha"),
        pytest.param(_save(Image.fromarray(np.dstack([IMAGE, IMAGE[..., 0]]))), id="RGBA"),
        pytest.param(_save(Image.fromarray(IMAGE).quantize(200), transparency=3), id="palette"),
        pytest.param(_save(Image.fromarray(IMAGE).quantize(11), bits=4), id="palette of 4 bits"),
        pytest.param(_save(Image.fromarray(IMAGE).convert("1")), id="1 bit"),
        pytest.param(_save(Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 251 + 7)), id="grey of 16 bits"),
        pytest.param(_save_16_bits(3), id="RGB of 16 bits"),
        pytest.param(_save_16_bits(4), id="RGBA of 16 bits"),
    ],
)
def test_windows_of_png(tmp_path: Path, write: Callable[[Path], None], bands: Bands) -> None:
    write(tmp_path / "x.png")
    check_windows(tmp_path / "x.png", bands)


@pytest.mark.parametrize("bands", [RGB, ANY], ids=["as RGB", "as it is"])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"quality": 95, "subsampling": 0}),
        ("RGB", {"subsampling": 1, "restart_marker_blocks": 3}),
        ("RGB", {"keep_rgb": True}),
        ("L", {"optimize": True}),
    ],
    ids=str,
)
def test_windows_of_jpeg(tmp_path: Path, mode: str, options: dict[str, Any], bands: Bands) -> None:
    Image.fromarray(IMAGE).convert(mode).save(tmp_path / "x.jpg", **options)
    check_windows(tmp_path / "x.jpg", bands)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("x.jpg", {"exif": ROTATED}, "rotated or mirrored"),
        ("x.png", {"exif": ROTATED}, "rotated or mirrored"),
        ("x.jpg", {"progressive": True}, "progressive"),
        ("c.jpg", {}, "CMYK"),
        ("a.png", {"save_all": True, "append_images": [Image.fromarray(IMAGE[::-1])]}, "animated"),
    ],
    ids=("rotated jpg", "rotated png", "progressive", "CMYK", "animated"),
)
def test_files_that_must_be_decoded_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], reason: str
) -> None:
    """They are, upright, up to the limit of pixels; above it the error says why."""
    path = tmp_path / name
    Image.fromarray(IMAGE).convert("CMYK" if name == "c.jpg" else "RGB").save(path, **options)
    with open_raster(path, RGB) as raster:
        assert isinstance(raster, ArrayRaster)
        assert raster.shape == ((201, 150, 3) if "exif" in options else (150, 201, 3))
        assert np.array_equal(raster.values, RGB.read(path))
    monkeypatch.setenv("FOVEAL_MAX_PIXELS", "1000")
    with (
        pytest.raises(InputError, match=rf"above the limit.*it cannot be read in parts: .*{reason}"),
        open_raster(path, RGB),
    ):
        pass


def test_interlaced_png_is_named(tmp_path: Path) -> None:
    content = header(50_000, 50_000, 8, 2, interlaced=True) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=r"2500 megapixels.*it is interlaced"), open_raster(tmp_path / "x.png", RGB):
        pass


def test_without_libvips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_rows, "is_installed", lambda: False)
    Image.fromarray(IMAGE).save(tmp_path / "x.jpg")
    with open_raster(tmp_path / "x.jpg", RGB) as raster:
        assert isinstance(raster, ArrayRaster)
    monkeypatch.setenv("FOVEAL_MAX_PIXELS", "1000")
    with (
        pytest.raises(InputError, match=r"needs libvips: pip install 'foveal\[jpeg\]'"),
        open_raster(tmp_path / "x.jpg", RGB),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in ("x.png", "x.jpg") for damage in ("cut", "pixels", "size")]
    + [("x.png", "checksum of the last pixels")],
)
def test_damage_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    Image.fromarray(IMAGE).save(path)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "pixels":
        content[len(content) // 2 :] = content[len(content) // 2 : -500] + b"\xff\xd9"
    elif damage == "size":
        start = content.index(b"\xff\xc0") + 5 if name == "x.jpg" else 16
        content[start : start + 4] = bytes(4)
    else:
        content[-13] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: "), open_raster(path, RGB) as raster:
        raster.read(slice(0, 150), slice(0, 201))


def test_other_bands_are_refused(tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg"):
        Image.fromarray(IMAGE).save(tmp_path / name)
        with (
            pytest.raises(InputError, match=rf"{name}: 3 bands of uint8, but the model takes 5"),
            open_raster(tmp_path / name, Bands(5, "uint8")),
        ):
            pass


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    """Files of 12 and 48 megapixels, 36 and 144 MB of pixels, in pieces of 256 pixels; libraries are loaded before."""
    files = [tmp_path / f"{rows}.{suffix}" for rows in (1_024, 4_096, 16_384) for suffix in ("png", "jpg")]
    growths = peak_growths("helpers.stream_memory", "read_tall", files)
    assert [message for message, _ in growths] == ["done"] * 6
    low_png, low_jpeg, high_png, high_jpeg = (growth for _, growth in growths[2:])
    assert high_png < low_png + 30, growths
    assert high_jpeg < low_jpeg + 30, growths
    assert max(high_png, high_jpeg) < 80, growths
