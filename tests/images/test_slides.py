"""Slides, which OpenSlide reads, and their levels: values, places that were not scanned, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal.errors import InputError
from foveal.images.bands import RGB
from foveal.images.rasters import TiffRaster, as_bands, open_raster, valid_pixels
from foveal.images.slides import SlideRaster
from foveal.images.tiff import RawTag
from foveal.images.tiff_writing import GEO_KEYS, PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, scaled_georeference
from helpers.streams import predictor_for, segmenter, stripes

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
IMAGE = stripes(1300, 1100)
LEVELS = [IMAGE, IMAGE[::2, ::2], IMAGE[1::4, 1::4]]


def write_pyramid(path: Path, levels: list[NDArray[np.uint8]] = LEVELS) -> Path:
    """A pyramidal TIFF in tiles, which is a slide to OpenSlide."""
    with tifffile.TiffWriter(path) as file:
        for level in levels:
            file.write(
                level, photometric="rgb", tile=(256, 256), compression="deflate", subfiletype=level is not levels[0]
            )
    return path


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("name", ["x.svs", "x.tif"])
def test_windows_of_a_level(tmp_path: Path, name: str, level: int) -> None:
    """As tifffile and GDAL read them; a TIFF needs no OpenSlide."""
    path = write_pyramid(tmp_path / name)
    expected = tifffile.imread(path, key=level)
    with rasterio.open(path, overview_level=level - 1) if level else rasterio.open(path) as file:
        assert np.array_equal(file.read().transpose(1, 2, 0), expected)
    with open_raster(path, RGB, level) as raster:
        assert isinstance(raster, TiffRaster if name == "x.tif" else SlideRaster)
        assert raster.shape[:2] == expected.shape[:2]
        height, width = expected.shape[:2]
        for rows, columns in ((slice(0, height), slice(0, width)), (slice(100, 257), slice(200, 203))):
            window = raster.read(rows, columns)
            assert valid_pixels(window, raster.nodata).all()
            assert np.array_equal(as_bands(window, raster, RGB), expected[rows, columns])


def test_windows_do_not_depend_on_each_other(tmp_path: Path) -> None:
    """Also where a level is not a whole fraction of the largest, so that OpenSlide interpolates."""
    path = write_pyramid(tmp_path / "x.svs", [stripes(2100, 2300), stripes(1500, 1643)])
    with open_raster(path, RGB, 1) as raster:
        whole = raster.read(slice(0, 1500), slice(0, 1643))
    with open_raster(path, RGB, 1) as raster:
        for rows, columns in ((slice(1000, 1100), slice(1020, 1030)), (slice(7, 8), slice(0, 1643))):
            assert np.array_equal(raster.read(rows, columns), whole[rows, columns])


def test_places_that_were_not_scanned(tmp_path: Path) -> None:
    """Tiles that the file lacks have no data: they are nodata in the mask, and leave the rest as it is."""
    path = write_pyramid(tmp_path / "x.svs", [IMAGE])
    with tifffile.TiffFile(path, mode="r+b") as file:
        counts = list(file.pages[0].tags["TileByteCounts"].value)
        for missing in (0, 7):
            counts[missing] = 0
        file.pages[0].tags["TileByteCounts"].overwrite(counts)
    empty = np.zeros(IMAGE.shape[:2], bool)
    empty[:256, :256] = empty[256:512, 512:768] = True
    with open_raster(path, RGB) as raster:
        window = raster.read(slice(0, 1300), slice(0, 1100))
        assert np.array_equal(~valid_pixels(window, raster.nodata), empty)
        assert np.array_equal(window[~empty][:, :3], IMAGE[~empty])
    predictor = predictor_for(segmenter())
    foveal.stream(predictor, path, tmp_path / "slide.tif")
    with rasterio.open(tmp_path / "slide.tif") as file:
        assert file.nodata == 255
        mask = file.read(1)
    assert np.array_equal(mask == 255, empty)
    same = IMAGE.copy()
    same[empty] = 0
    written = tmp_path / "same.tif"
    tifffile.imwrite(written, same, photometric="rgb", tile=(256, 256), extratags=[(42113, "s", 0, "0", True)])
    foveal.stream(predictor, written, tmp_path / "same-mask.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "same-mask.tif", key=0), mask)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_has_the_georeference_and_nodata_of_its_file(tmp_path: Path, level: int) -> None:
    """In the mask and in polygons, as GDAL gives them for its overviews; one of odd size is not a whole fraction."""
    path = tmp_path / "cog.tif"
    values = IMAGE.transpose(2, 0, 1).copy()
    values[:, :600, :400] = 7
    profile = {"driver": "COG", "dtype": "uint8", "count": 3, "height": 1300, "width": 1100, "nodata": 7}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(0.5, 0, 600000, 0, -0.5, 5400000)}
    options = {"blocksize": 128, "compress": "deflate", "overview_resampling": "nearest"}
    with rasterio.open(path, "w", **profile, **place, **options) as file:
        file.write(values)
    foveal.stream(
        predictor_for(segmenter()), path, tmp_path / "mask.tif", level=level, polygons=tmp_path / "areas.gpkg"
    )
    with (
        rasterio.open(path, overview_level=level - 1) if level else rasterio.open(path) as expected,
        rasterio.open(tmp_path / "mask.tif") as mask,
    ):
        assert mask.shape == expected.shape
        assert mask.crs == expected.crs
        assert mask.transform.almost_equals(expected.transform)
        assert mask.nodata == 255
        empty = (expected.read() == 7).all(0)
        assert empty.any()
        assert np.array_equal(mask.read(1) == 255, empty)
        left, bottom, right, top = pyogrio.read_info(tmp_path / "areas.gpkg")["total_bounds"]
        assert (left, bottom, right, top) == pytest.approx(tuple(expected.bounds))


def doubles(*numbers: float) -> RawTag:
    return RawTag(12, len(numbers), np.array(numbers, "<f8").tobytes())


def raster_type(value: int) -> RawTag:
    """The directory of GeoKeys with one of them: 1 for RasterPixelIsArea, 2 for RasterPixelIsPoint."""
    return RawTag(3, 8, np.array([1, 1, 0, 1, 1025, 0, 1, value], "<u2").tobytes())


@pytest.mark.parametrize(
    ("keys", "half"), [({}, 0), ({GEO_KEYS: raster_type(1)}, 0), ({GEO_KEYS: raster_type(2)}, 0.5)]
)
def test_georeference_of_a_quarter_of_the_size(keys: dict[int, RawTag], half: float) -> None:
    """The upper left corner stays where it is, also if the tie point is the centre of a pixel."""
    tags = {PIXEL_SCALE: doubles(0.5, 0.5, 0), TIE_POINTS: doubles(0, 0, 0, 600_000, 5_400_000, 0), **keys}
    scaled = scaled_georeference(tags, 1 / 4, 1 / 4)
    tie = -0.375 if half else 0
    assert np.frombuffer(scaled[TIE_POINTS].data).tolist() == [tie, tie, 0, 600_000, 5_400_000, 0]
    assert np.frombuffer(scaled[PIXEL_SCALE].data).tolist() == [2, 2, 0]
    assert 600_000 + (-half - tie) * 2 == 600_000 - half * 0.5
    assert {key: scaled[key] for key in keys} == keys
    matrix = np.array([[0.5, 0.1, 0, 600_000], [0.1, -0.5, 0, 5_400_000], [0, 0, 0, 0], [0, 0, 0, 1]])
    scaled = scaled_georeference({TRANSFORMATION: doubles(*matrix.ravel()), **keys}, 1 / 4, 1 / 4)
    found = np.frombuffer(scaled[TRANSFORMATION].data).reshape(4, 4)
    np.testing.assert_allclose(found[:, :2], matrix[:, :2] * 4)
    corner = [-half, -half, 0, 1]
    np.testing.assert_allclose(found @ corner, matrix @ corner, rtol=0, atol=1e-6)


def test_a_level_is_segmented(tmp_path: Path) -> None:
    path, predictor = write_pyramid(tmp_path / "x.tif"), predictor_for(segmenter())
    foveal.stream(predictor, path, tmp_path / "mask.npy", level=2)
    whole = predictor.segment(LEVELS[2]).mask
    assert (np.load(tmp_path / "mask.npy") == whole).mean() > 0.9999


def test_errors_are_one_line(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "x.tif")
    with pytest.raises(InputError, match=r"x\.tif: level 3, but its levels are 0 to 2"), open_raster(path, RGB, 3):
        pass
    (tmp_path / "y.svs").write_bytes(b"no slide")
    with pytest.raises(InputError, match=r"y\.svs: OpenSlide cannot read it"), open_raster(tmp_path / "y.svs", RGB):
        pass
    with pytest.raises(InputError, match="level 1 of an image that is no file"), open_raster(IMAGE, RGB, 1):
        pass
    Image.fromarray(IMAGE).save(tmp_path / "x.png")
    with (
        pytest.raises(InputError, match=r"x\.png: level 1 of an image that is no"),
        open_raster(tmp_path / "x.png", RGB, 1),
    ):
        pass
    content = bytearray(write_pyramid(tmp_path / "z.svs").read_bytes())
    with tifffile.TiffFile(tmp_path / "z.svs") as file:
        start = file.pages[0].dataoffsets[3]
    content[start : start + 100] = bytes(100)
    (tmp_path / "z.svs").write_bytes(content)
    with (
        pytest.raises(InputError, match=r"z\.svs: damaged or truncated"),
        open_raster(tmp_path / "z.svs", RGB) as raster,
    ):
        raster.read(slice(0, 1300), slice(0, 1100))
