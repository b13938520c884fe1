"""Images from files and results in files: windows of them, georeference, areas without data, memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import torch
import zarr
from numpy.typing import NDArray
from PIL import Image, ImageCms

import foveal
from foveal.errors import ConfigError, InputError
from foveal.images.bands import RGB, Bands
from foveal.images.preparing import prepare
from foveal.images.rasters import ArrayRaster, TiffRaster, as_bands, open_raster
from foveal.images.reading import read_image
from foveal.images.tiff import RawTag, pages
from foveal.images.tiff_writing import TiffImage, write_tiff
from foveal.images.writing import Canvas, write_picture
from foveal.images.zarr_writing import write_zarr
from foveal.info import Preprocess, attach, info_of
from foveal.prediction import streamed
from helpers.memory import peak_growths
from helpers.streams import predictor_for, randomised, segmenter, stripes

IMAGE = stripes(150, 201)


def written(path: Path, values: NDArray[Any] = IMAGE, **options: Any) -> Path:
    tifffile.imwrite(path, values, **({"photometric": "rgb"} | options))
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (32, 48)},
        {"rowsperstrip": 7, "compression": "deflate", "predictor": True},
        {"bigtiff": True, "byteorder": ">", "tile": (64, 64), "compression": "deflate"},
        {"tile": (64, 64), "planarconfig": "separate", "values": IMAGE.transpose(2, 0, 1)},
        {"values": IMAGE[..., 0], "photometric": "miniswhite", "rowsperstrip": 150},
        {"values": IMAGE[..., 0].astype(np.uint16) * 251 + 77, "photometric": "minisblack", "tile": (64, 64)},
        {"values": IMAGE.astype(np.uint16) * 251 + 77, "tile": (64, 64)},
        {"values": np.dstack([IMAGE, IMAGE[..., 1]]), "extrasamples": ["unassalpha"], "rowsperstrip": 11},
    ],
    ids=str,
)
def test_windows_are_what_the_whole_image_is(tmp_path: Path, options: dict[str, Any]) -> None:
    path = written(tmp_path / "x.tif", **options)
    whole = IMAGE if "byteorder" in options else read_image(path)  # which Pillow cannot read
    with open_raster(path, RGB) as raster:
        assert isinstance(raster, TiffRaster)
        for rows, columns in (
            (slice(0, 150), slice(0, 201)),
            (slice(31, 33), slice(5, 150)),
            (slice(149, 150), slice(200, 201)),
        ):
            assert np.array_equal(as_bands(raster.read(rows, columns), raster, RGB), whole[rows, columns])


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_one_strip_without_compression_is_read_in_parts(tmp_path: Path, planar: str) -> None:
    """Pillow and tifffile store images so, of any size."""
    image = np.random.default_rng(0).integers(0, 65536, (2100, 1101, 3), np.uint16)
    values = image if planar == "contig" else image.transpose(2, 0, 1)
    path = written(tmp_path / "x.tif", values, planarconfig=planar, rowsperstrip=2100)
    with open_raster(path, Bands(3, "uint16")) as raster:
        assert isinstance(raster, TiffRaster)
        assert 0 < raster._block_size[0] < 2100
        for rows, columns in ((slice(0, 2100), slice(0, 1101)), (slice(990, 1011), slice(5, 150))):
            assert np.array_equal(raster.read(rows, columns), image[rows, columns])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="damaged or truncated"), open_raster(path, Bands(3, "uint16")) as raster:
        raster.read(slice(0, 2100), slice(0, 1101))


@pytest.mark.parametrize("mode", ["RGB", "L", "YCbCr"])
def test_windows_of_jpeg(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(IMAGE).convert(mode).save(path, compression="jpeg", quality=90, tiffinfo={278: 16})
    whole = read_image(path)
    with open_raster(path, RGB) as raster:
        assert isinstance(raster, TiffRaster)
        assert np.array_equal(as_bands(raster.read(slice(20, 150), slice(7, 201)), raster, RGB), whole[20:, 7:])


def test_other_files_are_decoded_as_a_whole(tmp_path: Path) -> None:
    written(tmp_path / "x.tif", extratags=[(274, "H", 1, 6, False)])
    Image.fromarray(IMAGE).quantize().save(tmp_path / "p.tif")
    Image.fromarray(IMAGE).save(tmp_path / "x.png")
    Image.fromarray(IMAGE).convert("CMYK").save(tmp_path / "c.tif")
    shapes = {"x.tif": (201, 150, 3), "p.tif": (150, 201, 3), "x.png": (150, 201, 3), "c.tif": (150, 201, 3)}
    for name, shape in shapes.items():
        with open_raster(tmp_path / name, RGB) as raster:
            assert isinstance(raster, ArrayRaster)
            assert raster.shape == shape
            assert np.array_equal(raster.read(slice(0, shape[0]), slice(0, shape[1])), read_image(tmp_path / name))
    lab = ImageCms.profileToProfile(
        Image.fromarray(IMAGE), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(tmp_path / "lab.tif")
    with pytest.raises(InputError, match=r"lab\.tif: a LAB image"), open_raster(tmp_path / "lab.tif", RGB):
        pass


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    predictor = predictor_for(segmenter())
    with pytest.raises(InputError, match=r"none\.tif: no such file"):
        foveal.stream(predictor, tmp_path / "none.tif")
    five = written(tmp_path / "five.tif", np.dstack([IMAGE, IMAGE[..., :2]]), tile=(64, 64))
    with pytest.raises(InputError, match=r"five\.tif: 5 bands of uint8, but the model takes 3 bands of uint8"):
        foveal.stream(predictor, five)
    cut = written(tmp_path / "cut.tif", tile=(64, 64))
    cut.write_bytes(cut.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"cut\.tif: .*(damaged|truncated)"):
        foveal.stream(predictor, cut, tmp_path / "mask.png")
    np.save(tmp_path / "f.npy", np.asfortranarray(IMAGE))
    with pytest.raises(InputError, match=r"f\.npy: an array in Fortran's order"):
        foveal.stream(predictor, tmp_path / "f.npy")
    with pytest.raises(ConfigError, match=r"mask\.jpg: results of streaming are written as"):
        foveal.stream(predictor, IMAGE, tmp_path / "mask.jpg")
    with pytest.raises(InputError, match=r"tile=70: .* multiples of 16 pixels: give 64"):
        foveal.stream(predictor, IMAGE, tile=70)
    with pytest.raises(ConfigError, match="needs the torch runtime"):
        foveal.stream(foveal.load("bicubic.x2"), IMAGE)


def test_masks_in_every_format_are_that_of_the_whole_image(tmp_path: Path) -> None:
    predictor, source = predictor_for(segmenter()), written(tmp_path / "x.tif", tile=(64, 64))
    whole = predictor.segment(IMAGE)
    assert len(np.unique(whole.mask)) > 2
    for name, tile in (("m.zarr", 48), ("m.tif", 96), ("m.png", 80), ("m.npy", None)):
        result = foveal.stream(predictor, source, tmp_path / name, tile=tile)
        assert result.path == tmp_path / name
        if name.endswith(".zarr"):
            chunk = zlib.decompress((tmp_path / name / "0" / "0" / "0").read_bytes())
            mask = np.frombuffer(chunk, np.uint8).reshape(512, 512)[:150, :201]
        else:
            mask = np.load(result.path) if name.endswith("npy") else np.asarray(Image.open(result.path))
        assert (mask == whole.mask).mean() > 0.9999
        assert result.size == (150, 201)
        assert [name for name, _ in result.shares] == [name for name, _, _ in whole.shares()]
    palette = Image.open(tmp_path / "m.tif").getpalette()
    assert palette is not None
    assert [tuple(palette[3 * i : 3 * i + 3]) for i in range(5)] == list(whole.palette)


@pytest.mark.parametrize("channels", [1, 3])
def test_tiled_tiff_with_overviews(tmp_path: Path, channels: int) -> None:
    """Read by an independent reader: values of all levels; and the order of a cloud-optimised file."""
    image = stripes(1300, 1111)[..., :channels]
    palette = tuple((i, i // 2, 255 - i) for i in range(256)) if channels == 1 else ()
    path = tmp_path / "x.tif"
    write_tiff(path, TiffImage(1300, 1111, channels, palette=palette, nodata=7), iter(np.array_split(image, 5)))
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        levels = [page.asarray().reshape(*page.shape[:2], channels) for page in file.pages]
        starts = [page.dataoffsets[0] for page in file.pages]
        assert file.pages[0].is_tiled
        assert file.pages[0].nodata == 7
    assert [level.shape[:2] for level in levels] == [(1300, 1111), (650, 556), (325, 278)]
    for power, level in enumerate(levels):
        assert np.array_equal(level, image[:: 1 << power, :: 1 << power])
    assert starts == sorted(starts, reverse=True)
    with path.open("rb") as file:
        assert [page.size for page in pages(file, "x")] == [(1111, 1300)]
    with open_raster(path, RGB) as raster:
        expected = np.array(palette, np.uint8)[image[..., 0]] if palette else image
        assert np.array_equal(raster.read(slice(500, 700), slice(1000, 1111)), expected[500:700, 1000:])


@pytest.mark.parametrize("channels", [1, 3])
def test_zarr_with_levels(tmp_path: Path, channels: int) -> None:
    image = stripes(700, 1111)[..., :channels]
    path = tmp_path / "x.zarr"
    write_zarr(path, TiffImage(700, 1111, channels, palette=((1, 2, 3),)), iter(np.array_split(image, 5)))
    (multiscales,) = json.loads((path / ".zattrs").read_text())["multiscales"]
    assert [each["path"] for each in multiscales["datasets"]] == ["0", "1", "2"]
    assert [axis["name"] for axis in multiscales["axes"]] == list("cyx")[-2 - (channels > 1) :]
    for power in range(3):
        described = json.loads((path / str(power) / ".zarray").read_text())
        level = image[:: 1 << power, :: 1 << power]
        expected = level[..., 0] if channels == 1 else level.transpose(2, 0, 1)
        assert described["shape"] == list(expected.shape)
        found = np.zeros((channels, *level.shape[:2]), described["dtype"])
        for row in range(0, level.shape[0], 512):
            for column in range(0, level.shape[1], 512):
                part = path / str(power) / ("0" if channels > 1 else "") / str(row // 512) / str(column // 512)
                chunk = np.frombuffer(zlib.decompress(part.read_bytes()), np.uint8).reshape(channels, 512, 512)
                place = found[:, row : row + 512, column : column + 512]
                place[:] = chunk[:, : place.shape[1], : place.shape[2]]
        assert np.array_equal(found.reshape(expected.shape), expected)


def test_independent_readers_of_zarr_and_geotiff(tmp_path: Path) -> None:
    """The library zarr, and GDAL, which also checks the georeference and the overviews."""
    image = stripes(1300, 700)[..., :1] % 5
    tags = {33550: np.array([2.0, 2.0, 0]), 33922: np.array([0, 0, 0, 600000.0, 5200000.0, 0])}
    keys = np.array([1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32632], "<u2")
    raw = {number: RawTag(12, len(values), values.astype("<f8").tobytes()) for number, values in tags.items()}
    raw[34735] = RawTag(3, len(keys), keys.tobytes())
    palette = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9))
    whole = TiffImage(1300, 700, 1, palette=palette, tags=raw, nodata=255)
    write_tiff(tmp_path / "x.tif", whole, [image])
    with rasterio.open(tmp_path / "x.tif") as file:
        assert np.array_equal(file.read(1), image[..., 0])
        assert (file.crs.to_epsg(), file.nodata, file.overviews(1)) == (32632, 255, [2, 4])
        assert file.transform.to_gdal() == (600000, 2, 0, 5200000, 0, -2)
        assert file.colormap(1)[3] == (0, 0, 255, 255)
        assert (file.profile["tiled"], file.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION")) == (True, "DEFLATE")
    write_zarr(tmp_path / "x.zarr", whole, [image])
    group: Any = zarr.open_group(str(tmp_path / "x.zarr"), mode="r")
    assert np.array_equal(group["0"][:], image[..., 0])
    assert np.array_equal(group["1"][:], image[::2, ::2, 0])


def test_png_with_a_palette_is_written_in_bands(tmp_path: Path) -> None:
    mask = stripes(90, 70)[..., :1] % 3
    write_picture(tmp_path / "x.png", Canvas(90, 70, 1, palette=bytes(range(9))), np.array_split(mask, 7))
    picture = Image.open(tmp_path / "x.png")
    assert np.array_equal(np.asarray(picture), mask[..., 0])
    assert (picture.getpalette() or [])[:9] == list(range(9))


def test_georeference_is_kept(tmp_path: Path) -> None:
    tags = [
        (33550, "d", 3, (0.5, 0.5, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 600000.0, 5200000.0, 0.0), True),
        (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32632), True),
        (34737, "s", 0, "WGS 84 / UTM zone 32N|", True),
    ]
    source = written(tmp_path / "x.tif", extratags=tags, tile=(64, 64))
    foveal.stream(predictor_for(segmenter()), source, tmp_path / "mask.tif", tile=96)
    with tifffile.TiffFile(tmp_path / "mask.tif") as file:
        found = file.pages[0].tags
        for number, _, _, value, _ in tags:
            assert found[number].value == value or found[number].value.startswith(value)


def test_areas_without_data(tmp_path: Path) -> None:
    """They are nodata in the mask and no part of the sums, whatever the pieces; the rest does not depend on them."""
    image = stripes(150, 201)
    image[60:, :120] = 0
    image[:, 180:] = 0
    empty = (image == 0).all(2)
    other = np.where(empty[..., None], np.uint8(9), image)
    assert np.array_equal((other == 9).all(2), empty)
    predictor = predictor_for(segmenter())
    sources = [
        written(tmp_path / f"{nodata}.tif", values, tile=(64, 64), extratags=[(42113, "s", 0, f"{nodata}", True)])
        for nodata, values in ((0, image), (9, other))
    ]
    masks = []
    for tile in (16, 48, None):
        results = []
        for source in sources:
            result = foveal.stream(predictor, source, tmp_path / "mask.tif", tile=tile)
            with tifffile.TiffFile(tmp_path / "mask.tif") as file:
                results.append((file.pages[0].asarray(), result.shares))
                assert file.pages[0].nodata == 255
        (mask, shares), (same, same_shares) = results
        assert np.array_equal(mask, same)
        assert shares == same_shares
        assert np.array_equal(mask == 255, empty)
        assert sum(share for _, share in shares) == pytest.approx(1)
        masks.append(mask)
    for mask in masks:
        assert (mask == masks[0]).mean() > 0.9999


def test_pieces_without_data_are_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    image[:60, :60] = stripes(60, 60)
    source = written(tmp_path / "x.tif", image, tile=(64, 64), extratags=[(42113, "s", 0, "0", True)])
    seen, regions = streamed._Input.read, []
    monkeypatch.setattr(streamed._Input, "read", lambda self, region: regions.append(region) or seen(self, region))
    foveal.stream(predictor_for(segmenter()), source, tmp_path / "mask.tif", tile=64)
    assert len(regions) == 1


def test_gaps_that_are_not_numbers(tmp_path: Path) -> None:
    """Values of floating point, of which NaN stands for no data."""
    image = stripes(64, 80).astype(np.float32) / 255
    image[10:40, 20:] = np.nan
    source = written(tmp_path / "x.tif", image, extratags=[(42113, "s", 0, "nan", True)], tile=(32, 32))
    model = segmenter()
    preprocess = Preprocess((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), dtype="float32")
    attach(model, dataclasses.replace(info_of(model), preprocess=preprocess))
    foveal.stream(predictor_for(model), source, tmp_path / "m.npy", tile=32)
    assert np.array_equal(np.load(tmp_path / "m.npy") == 255, np.isnan(image[..., 0]))


def test_classifiers_and_backbones_see_the_image_at_its_full_size() -> None:
    torch.manual_seed(0)
    image = stripes(90, 131)
    x = torch.from_numpy(prepare(image, Preprocess()))
    for options in ({"num_classes": 7}, {"features_only": True}):
        model = randomised(foveal.create_model("mobilenetv3_small_100", **options))
        with torch.inference_mode():
            expected = model(x)
        expected = [each[0].numpy() for each in (expected if isinstance(expected, list) else [expected])]
        found = foveal.stream(predictor_for(model), image, tile=64).outputs
        for value, truth in zip(found, expected, strict=True):
            assert np.abs(value - truth).max() <= 1e-5 * np.abs(truth).max()


def test_an_image_is_not_replaced(tmp_path: Path) -> None:
    source = written(tmp_path / "x.tif")
    with pytest.raises(ConfigError, match="would overwrite the image"):
        foveal.stream(predictor_for(segmenter()), source, source)


def test_upscaled_image_in_a_file(tmp_path: Path) -> None:
    predictor = foveal.load("efficientvit_sr.x2", runtime="torch")
    image = stripes(40, 51)
    whole = predictor.upscale(image).image
    source = written(tmp_path / "x.tif", image, extratags=[(33550, "d", 3, (0.5, 0.5, 0.0), True)])
    foveal.stream(predictor, source, tmp_path / "y.tif")
    with tifffile.TiffFile(tmp_path / "y.tif") as file:
        assert np.abs(file.pages[0].asarray().astype(int) - whole).max() <= 1
        assert file.pages[0].tags[33550].value == (0.25, 0.25, 0)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    heights = [512, 2048, 8192]
    growths = peak_growths("helpers.stream_memory", "stream_tall", [tmp_path / str(height) for height in heights])
    assert [message for message, _ in growths] == ["done"] * 3
    sizes = [growth for _, growth in growths]
    assert sizes[2] < sizes[1] + 6, sizes  # MB, of 6 MB of pixels and 12 MB of maps


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_a_large_image_in_two_gigabytes(tmp_path: Path) -> None:
    """The command of the documentation on 268 megapixels: the peak memory of the process, libraries included."""
    script = Path(__file__).parents[2] / "benchmarks" / "large_images.py"
    command = [sys.executable, str(script), "--side", "16384", "--ways", "stream", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("| `--exact`"))
    memory, _, equal = (cell.strip() for cell in row.strip("|").split("|")[3:])
    assert float(memory.removesuffix(" GB")) <= 2, row
    assert equal == "100.00%"
