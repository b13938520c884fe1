"""Images with other bands than RGB are read whole, and no band is dropped without an error."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from foveal.errors import InputError
from foveal.images.bands import RGB, Bands, displayed, read_bands, read_size, resized
from foveal.images.formats import BandsError
from foveal.images.preparing import prepare
from foveal.images.rasters import TiffRaster, as_bands, open_raster, valid_pixels
from foveal.images.reading import read_image, read_mask, read_picture
from foveal.info import Preprocess

RNG = np.random.default_rng(0)


def values(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return (RNG.random(shape) * 250).astype(dtype)


def tiff(array: np.ndarray, **options) -> bytes:
    """An independent writer; arrays of separate planes come as ``(H, W, C)`` too."""
    file = io.BytesIO()
    if options.get("planarconfig") == "separate":
        array = np.moveaxis(array, 2, 0)
    tifffile.imwrite(file, array, **{"photometric": "minisblack", "planarconfig": "contig", **options})
    return file.getvalue()


LAYOUTS = {
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (16, 32)},
    "separate": {"planarconfig": "separate", "rowsperstrip": 8},
    "separate tiles": {"planarconfig": "separate", "tile": (32, 16), "compression": "zlib", "predictor": 2},
    "deflate": {"compression": "zlib", "rowsperstrip": 9},
    "differences": {"compression": "zlib", "predictor": 2, "byteorder": ">"},
    "lzma": {"compression": "lzma"},
    "big": {"bigtiff": True, "byteorder": ">"},
}


@pytest.mark.parametrize("bands", [2, 4, 7])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiff_with_any_number_of_bands(layout: str, dtype: str, bands: int) -> None:
    options = dict(LAYOUTS[layout])
    if dtype == "float32":
        options.pop("predictor", 0)
    array = values((37, 45, bands), dtype)
    content = tiff(array, **options)
    read = read_bands(content)
    assert read.dtype == dtype
    assert (read == array).all()
    for read_rgb in (read_image, read_picture):
        with pytest.raises(InputError, match=f"in_chans={bands}" if dtype != "float32" else "bands"):
            read_rgb(content)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(("bands", "extra", "lost"), [(4, 0, True), (4, 1, False), (4, 2, False), (5, 2, True)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_alpha_is_composed_and_other_bands_are_refused(
    planar: str, bands: int, extra: int, lost: bool, dtype: str
) -> None:
    lost |= planar == "separate" and extra == 1  # Pillow does not read it
    extras = [extra] + [0] * (bands - 4)
    array = values((20, 24, bands), dtype)
    content = tiff(array, photometric="rgb", planarconfig=planar, extrasamples=extras)
    assert (read_bands(content) == array).all()
    if lost:
        with pytest.raises(BandsError, match=rf"{bands} bands \(red, green, blue and {bands - 3} more\)"):
            read_image(content)
    else:
        assert read_image(content).shape == (20, 24, 3)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd"])
def test_compressions_of_libtiff(compression: str) -> None:
    array, file = values((30, 33, 4), "uint8"), io.BytesIO()
    Image.fromarray(array, "RGBA").save(file, "TIFF", compression=compression)
    assert (read_bands(file.getvalue()) == array).all()


@pytest.mark.parametrize("order", "<>")
def test_differences_of_floating_point_bytes(order: str) -> None:
    """Predictor 3 by its definition: bytes of a row by significance, each minus the byte one pixel to the left."""
    array = values((12, 16, 3), "float32")
    rows = []
    for row in array.astype(">f4"):
        by_byte = np.frombuffer(row.tobytes(), np.uint8).reshape(-1, 4).T.ravel()
        differences = by_byte.copy()
        differences[3:] -= by_byte[:-3]
        rows.append(differences.tobytes())
    file = io.BytesIO()
    options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}
    options |= {"dtype": f"{order}f4", "byteorder": order, "extratags": [(65000, 3, 1, 3, True)], "metadata": None}
    tifffile.imwrite(file, iter([zlib.compress(b"".join(rows))]), shape=array.shape, rowsperstrip=12, **options)
    kind, renamed = struct.Struct(f"{order}HH"), file.getvalue()  # the writer lacks this predictor
    renamed = renamed.replace(kind.pack(65000, 3), kind.pack(317, 3))
    assert (read_bands(renamed) == array).all()


def test_pages_are_bands(tmp_path: Path) -> None:
    array = values((5, 20, 24), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    assert (read_bands(tmp_path / "a.tif") == np.moveaxis(array, 0, 2)).all()
    with pytest.raises(BandsError, match="5 pages of one band each"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_of_tiff(orientation: int) -> None:
    array = values((6, 9, 4), "uint8")
    content = tiff(array, extratags=[(274, 3, 1, orientation, True)])
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    assert (read_bands(content) == np.rot90(array, turns)).all()


@pytest.mark.parametrize(
    ("stored", "read_as"),
    [("uint8", "uint8"), (">u2", "uint16"), ("float32", "float32"), ("float64", "float32"), ("int16", "float32")],
)
def test_npy(tmp_path: Path, stored: str, read_as: str) -> None:
    array = values((20, 24, 5), stored)
    np.save(tmp_path / "a.npy", array)
    read = read_bands(tmp_path / "a.npy")
    assert read.dtype == read_as
    assert (read == array.astype(read_as)).all()
    np.save(tmp_path / "grey.npy", np.asfortranarray(array[..., 0]))
    assert (read_bands((tmp_path / "grey.npy").read_bytes()) == read[..., :1]).all()
    with pytest.raises(BandsError, match="5 bands"):
        read_image(tmp_path / "a.npy")


def test_npy_as_rgb_and_as_mask(tmp_path: Path) -> None:
    rgb, ids = values((20, 24, 3), "uint8"), RNG.integers(0, 9, (20, 24))
    np.save(tmp_path / "a.npy", rgb)
    np.save(tmp_path / "m.npy", ids)
    assert (read_image(tmp_path / "a.npy") == rgb).all()
    assert (read_mask(tmp_path / "m.npy") == ids).all()
    with pytest.raises(InputError, match="mask of integers"):
        read_mask(tmp_path / "a.npy")


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


HOSTILE = {
    "huge": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (100000, 100000, 9)}"), "above the limit"),
    "short": (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (100, 100)}", bytes(99)), "truncated"),
    "objects": (npy("{'descr': '|O', 'fortran_order': False, 'shape': (3, 3)}", b"cos\nsystem"), "array of object"),
    "no shape": (npy("{'descr': '|u1'}"), "not an NPY file, or damaged"),
    "no end": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1"), "damaged"),
    "negative": (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4)}", bytes(9)), "damaged"),
    "32 bits": (npy("{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1)}", bytes(4)), "convert them to uint8"),
    "NaN": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1)}", b"\0\0\xc0\x7f"), "1 values are NaN"),
    "tags": (
        b"II*\0" + struct.pack("<IH", 8, 999) + struct.pack("<HHII", 700, 1, 900_000, 0) * 999 + bytes(1_000_000),
        "claim far more data",
    ),
    "bands": (tiff(values((4, 4, 1100), "uint8")), "1100 bands"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str) -> None:
    content, message = HOSTILE[case]
    with pytest.raises(InputError, match=message):
        read_bands(content, name="x")


def test_sizes_from_the_header(tmp_path: Path) -> None:
    array = values((20, 24, 5), "uint8")
    np.save(tmp_path / "a.npy", array)
    (tmp_path / "a.tif").write_bytes(tiff(array, extratags=[(274, 3, 1, 6, True)]))
    tagged = Image.Exif()
    tagged[0x0112] = 8
    for suffix, more in ((".jpg", {"exif": tagged}), (".png", {"exif": tagged}), (".webp", {})):
        Image.fromarray(array[..., :3]).save(tmp_path / f"a{suffix}", **more)
    Image.fromarray(array[..., 0]).save(tmp_path / "b.tif", exif=tagged)
    for file in sorted(tmp_path.iterdir()):
        assert read_size(file) == read_bands(file).shape[:2], file.name
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0")
    with pytest.raises(InputError, match="damaged"):
        read_size(tmp_path / "a.npy")


def test_the_size_of_all_bands_is_limited() -> None:
    content = tiff(values((40, 50, 9), "uint16"))
    assert read_bands(content, max_pixels=9000).shape == (40, 50, 9)
    with pytest.raises(InputError, match="9 bands of 16 bits"):
        read_bands(content, max_pixels=8999)
    with pytest.raises(InputError, match="megapixels"):
        read_bands(content, max_pixels=1999)


def test_truncated_strips_are_refused() -> None:
    content = tiff(values((40, 50, 6), "uint16"))
    with pytest.raises(InputError, match="damaged or truncated"):
        read_bands(content[:-3000])


@pytest.mark.parametrize(("mode", "bands", "dtype"), [("I;16", 1, "uint16"), ("L", 1, "uint8"), ("RGBA", 4, "uint8")])
def test_png_keeps_its_bands(tmp_path: Path, mode: str, bands: int, dtype: str) -> None:
    array = values((20, 24, bands), dtype) * (np.uint16(200) if dtype == "uint16" else np.uint8(1))
    Image.fromarray(array[..., 0] if bands == 1 else array).save(tmp_path / "a.png")
    read = Bands(bands, dtype).read(tmp_path / "a.png")
    assert read.dtype == dtype
    assert (read == array).all()


def test_other_bands_than_the_model_takes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values((5, 40, 48), "uint8"))
    with pytest.raises(InputError, match=r"48 bands of uint8, but the model takes 5 bands of uint16.*\(40, 48, 5\)"):
        Bands(5, "uint16").read(tmp_path / "a.npy")
    with pytest.raises(InputError, match="the array: 1 band of uint8, but the model takes 1 band of uint16"):
        Bands(1, "uint16").read(values((8, 8), "uint8"))
    assert RGB.read(values((8, 8), "uint8")).shape == (8, 8, 3)


def test_bands_are_resized_like_grey_images() -> None:
    array = values((20, 24, 5), "uint8")
    expected = [np.asarray(Image.fromarray(array[..., i]).resize((9, 7), Image.Resampling.BICUBIC)) for i in range(5)]
    assert (resized(array, (9, 7), Image.Resampling.BICUBIC) == np.stack(expected, 2)).all()
    wide = resized(array.astype(np.uint16), (9, 7), Image.Resampling.BICUBIC)
    assert wide.dtype == np.uint16
    assert np.abs(wide.astype(int) - np.stack(expected, 2)).max() <= 1


@pytest.mark.parametrize(("dtype", "peak"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_bands_are_normalised_on_their_own_scale(dtype: str, peak: int) -> None:
    array = values((33, 40, 2), dtype)
    out = prepare(array, Preprocess((0.1, 0.2), (0.5, 2.0), dtype=dtype))
    expected = (array / peak - [0.1, 0.2]) / [0.5, 2.0]
    np.testing.assert_allclose(out[0].transpose(1, 2, 0), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("bands", "dtype"), [(1, "uint16"), (2, "float32"), (5, "uint8"), (5, "float32")])
def test_shown_as_rgb(bands: int, dtype: str) -> None:
    shown = displayed(values((20, 24, bands), dtype))
    assert (shown.shape, shown.dtype) == ((20, 24, 3), np.uint8)
    if dtype != "uint8":
        assert (shown.min(), shown.max()) == (0, 255)


def png(rows: bytes, *chunks: tuple[bytes, bytes], colour: int = 3, size: tuple[int, int] = (40, 30)) -> bytes:
    head = struct.pack(">IIBBBBB", *size, 8, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


INDICES = b"".join(b"\0" + bytes(range(40)) for _ in range(30))


@pytest.mark.parametrize(
    ("palette", "message"),
    [(None, "without a palette"), (b"", "palette of 0 bytes"), (bytes(7), "palette of 7 bytes")],
)
def test_palette_images_without_a_palette(palette: bytes | None, message: str) -> None:
    content = png(INDICES, *([] if palette is None else [(b"PLTE", palette)]))
    for read in (read_image, read_mask, read_picture, read_bands):
        with pytest.raises(InputError, match=message):
            read(content)


def test_a_palette_with_too_few_colours() -> None:
    content = png(INDICES, (b"PLTE", bytes(30)))
    for read in (read_image, read_picture):
        with pytest.raises(InputError, match="index 39 in a palette of 10 colours"):
            read(content)
    assert read_mask(content)[0].tolist() == list(range(40))  # ids need no colours


def exif(tags: int) -> bytes:
    return b"II*\0" + struct.pack("<IH", 8, tags) + struct.pack("<HHII", 700, 1, 400_000, 0) * tags + bytes(400_000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(bytes(4), (b"eXIf", exif(900)), colour=2, size=(1, 1)), "EXIF data claim"),
        (png(bytes(4), *[(b"tEXt", b"a\0b")] * 200_001, colour=2, size=(1, 1)), "more than 200000 chunks"),
    ],
    ids=["exif", "chunks"],
)
def test_png_bombs(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_image(content)


@pytest.mark.parametrize(("size", "length", "message"), [((9000, 9000), 4, "cannot hold"), ((10, 10), 3 << 20, "MiB")])
def test_run_lengths_of_bmp(size: tuple[int, int], length: int, message: str) -> None:
    head = struct.pack("<IiiHHIIiiII", 40, *size, 1, 8, 1, length, 0, 0, 256, 0)
    content = b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + head + bytes(range(256)) * 4 + b"\xff\1" * (length // 2)
    with pytest.raises(InputError, match=message):
        read_image(content)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_windows_of_pages_have_all_bands(tmp_path: Path, dtype: str) -> None:
    """The first page alone is not the image."""
    array = values((5, 20, 24), dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    with open_raster(tmp_path / "a.tif", Bands(5, dtype)) as raster:
        assert raster.shape == (20, 24, 5)
        assert (raster.read(slice(3, 9), slice(2, 24)) == np.moveaxis(array, 0, 2)[3:9, 2:]).all()
    for bands in (RGB, Bands(1, dtype)):
        with pytest.raises(InputError, match=r"5 (pages|bands) of"), open_raster(tmp_path / "a.tif", bands):
            pass


def strips(path: Path, *, places: int = 4, unwritten: int | None = None) -> np.ndarray:
    """Write a TIFF of four strips: only the first ones have a place in the file, or one was never written."""
    array = values((40, 50, 3), "uint8")
    path.write_bytes(tiff(array, photometric="rgb", rowsperstrip=10, extratags=[(42113, "s", 0, "251", True)]))
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("StripOffsets", "StripByteCounts"):
            tag = file.pages[0].tags[name]
            tag.overwrite([0 if index == unwritten else value for index, value in enumerate(tag.value[:places])])
    return array


def test_strips_without_a_place_are_refused(tmp_path: Path) -> None:
    """Decoders read them as black, or as other bytes of the file."""
    path = tmp_path / "a.tif"
    strips(path, places=2)
    for read in (read_image, read_picture, read_bands):
        with pytest.raises(InputError, match=r"a\.tif: damaged \(the places of its pixels are missing\)"):
            read(path)
    with pytest.raises(InputError, match=r"a\.tif: damaged \(the places of"), open_raster(path, RGB):
        pass


def test_a_strip_that_was_never_written(tmp_path: Path) -> None:
    """Windows have the value of pixels without data there; a whole image without data does not exist."""
    path = tmp_path / "a.tif"
    array = strips(path, unwritten=1)
    for read in (read_image, read_picture, read_bands):
        with pytest.raises(InputError, match=r"a\.tif: some of its blocks were never written"):
            read(path)
    with open_raster(path, RGB) as raster:
        window = raster.read(slice(0, 40), slice(0, 50))
        valid = valid_pixels(window, raster.nodata)
    assert (window[10:20] == 251).all()
    assert not valid[10:20].any()
    written = np.r_[0:10, 20:40]
    assert valid[written].all()
    assert (window[written] == array[written]).all()


@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_windows_with_associated_alpha(tmp_path: Path, layout: str) -> None:
    """Colours that the file has multiplied by alpha are not multiplied again."""
    alpha = RNG.integers(0, 256, (37, 45, 1)).astype(np.uint8)
    multiplied = (values((37, 45, 3), "int32") * alpha // 255).astype(np.uint8)
    path = tmp_path / "a.tif"
    options = {"photometric": "rgb", "extrasamples": ["assocalpha"], **LAYOUTS[layout]}
    path.write_bytes(tiff(np.dstack([multiplied, alpha]), **options))
    with open_raster(path, RGB) as raster:
        assert isinstance(raster, TiffRaster)
        window = as_bands(raster.read(slice(5, 30), slice(3, 45)), raster, RGB).astype(int)
    assert np.abs(window - read_image(path)[5:30, 3:]).max() <= 1
    over_white = multiplied.astype(int) + 255 - alpha
    assert np.abs(window - over_white[5:30, 3:]).max() <= 2


def test_windows_of_npy_in_the_other_byte_order(tmp_path: Path) -> None:
    array = values((20, 24, 2), "uint16") * np.uint16(200)
    for stored in (array, array[..., 0]):
        np.save(tmp_path / "a.npy", np.ascontiguousarray(stored, ">u2"))
        with open_raster(tmp_path / "a.npy", Bands(0, "uint16")) as raster:
            window = raster.read(slice(3, 9), slice(2, 24))
            assert raster.dtype == window.dtype == np.dtype("uint16")
            assert (window == stored.reshape(20, 24, -1)[3:9, 2:]).all()


@pytest.mark.parametrize("shape", [(5,), (2, 4, 5, 3), (0, 5, 3), (4, 0)])
def test_windows_of_arrays_that_are_no_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.uint8)
    np.save(tmp_path / "a.npy", array)
    for source in (array, tmp_path / "a.npy"):
        with pytest.raises(InputError, match=r"array of shape \(.*\): expected \(H, W, C\)"), open_raster(source, RGB):
            pass
