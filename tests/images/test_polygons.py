"""Polygons of masks, read by GDAL: areas and numbers per class are exact, whatever the bands, and memory is bounded."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely
import tifffile
from numpy.typing import NDArray
from rasterio.features import rasterize
from scipy.ndimage import label

import foveal
from foveal.errors import ConfigError
from foveal.images import polygons
from foveal.images.polygons import Georeference, read_georeference, write_polygons
from helpers.commands import Command
from helpers.memory import peak_growths
from helpers.streams import predictor_for, segmenter, stripes

NAMES = ("road", "tree", 'sign "a"')


def read(path: Path) -> tuple[dict[str, Any], NDArray[Any], dict[str, NDArray[Any]]]:
    """What GDAL knows of the file, its geometries, and its properties by name."""
    meta, _, geometry, values = pyogrio.raw.read(path)
    return meta, shapely.from_wkb(geometry), dict(zip(meta["fields"], values, strict=True))


def check(path: Path, mask: NDArray[Any], nodata: int | None = None) -> None:
    """The polygons are the areas of the mask: their pixels, their number, the sum for each class."""
    _, geometry, properties = read(path)
    assert shapely.is_valid(geometry).all()
    assert set(shapely.get_type_id(geometry)) == {3}  # polygons
    assert np.array_equal(shapely.area(geometry), properties["pixels"])
    values = [value for value in np.unique(mask) if value != nodata]
    sums: Counter[int] = Counter()
    for value, pixels in zip(properties["class"].tolist(), properties["pixels"].tolist(), strict=True):
        sums[value] += pixels
    assert sums == {int(value): int((mask == value).sum()) for value in values}
    assert len(geometry) == sum(label(mask == value)[1] for value in values)
    drawn = rasterize(zip(geometry, properties["class"].tolist(), strict=True), mask.shape, fill=255, dtype="uint8")
    assert np.array_equal(drawn, np.where(mask == nodata, 255, mask) if nodata is not None else mask)


@pytest.mark.parametrize(("suffix", "rows"), [(".geojson", 1), (".geojson", 2), (".geojson", 100), (".gpkg", 7)])
def test_areas_are_exact_whatever_the_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, rows: int
) -> None:
    """Random masks, in which areas touch at corners, enclose each other and reach over many bands."""
    monkeypatch.setattr(polygons, "_BAND_PIXELS", 1)
    monkeypatch.setattr(polygons, "_BATCH", 300)
    rng, path = np.random.default_rng(rows), tmp_path / f"x{suffix}"
    for size in [(40, 50)] if suffix == ".gpkg" else [(1, 1), (1, 9), (9, 1), (40, 50)]:
        for classes, nodata in ((2, None), (3, None), (3, 1)):
            mask = rng.integers(0, classes, size).astype(np.uint8)
            mask[0, 0] = 0
            bands = np.array_split(mask[..., None], range(rows, len(mask), rows))
            count = write_polygons(path, bands, NAMES, nodata=nodata)
            check(path, mask, nodata)
            assert count == len(read(path)[1])


def test_names_and_nesting(tmp_path: Path) -> None:
    mask = np.zeros((9, 9), np.int32)
    mask[2:7, 2:7], mask[4, 4] = 2, 0
    write_polygons(tmp_path / "x.geojson", [mask], NAMES)
    content = json.loads((tmp_path / "x.geojson").read_text())
    assert sorted((each["properties"]["name"], each["properties"]["pixels"]) for each in content["features"]) == [
        ("road", 1), ("road", 56), ('sign "a"', 24),
    ]  # fmt: skip
    (ring,) = (each for each in content["features"] if each["properties"]["pixels"] == 24)
    assert [len(outline) for outline in ring["geometry"]["coordinates"]] == [5, 5]
    assert "crs" not in content


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
def test_masks_without_data(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    assert write_polygons(path, [np.full((5, 5), 255, np.uint8)], NAMES, nodata=255) == 0
    assert pyogrio.read_info(path)["features"] == 0


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
def test_georeference(tmp_path: Path, suffix: str) -> None:
    """Of a streamed GeoTIFF: GDAL finds the polygons where it finds the mask."""
    source, path = tmp_path / "x.tif", tmp_path / f"x{suffix}"
    transform = rasterio.Affine(0.5, 0, 600000, 0, -0.5, 5200000)
    image = stripes(150, 201)
    image[60:, :120] = 0
    profile = {"driver": "GTiff", "height": 150, "width": 201, "count": 3, "dtype": "uint8"}
    with rasterio.open(source, "w", crs="EPSG:32632", transform=transform, nodata=0, **profile) as file:
        file.write(image.transpose(2, 0, 1))
    foveal.stream(predictor_for(segmenter()), source, tmp_path / "mask.tif", tile=96, polygons=path)
    meta, geometry, properties = read(path)
    assert meta["crs"] == "EPSG:32632"
    with rasterio.open(tmp_path / "mask.tif") as file:
        mask, place = file.read(1), file.transform
    pairs = zip(geometry, properties["class"].tolist(), strict=True)
    assert np.array_equal(rasterize(pairs, mask.shape, fill=255, transform=place, dtype="uint8"), mask)
    assert (mask == 255).any()
    assert np.allclose(shapely.area(geometry), properties["pixels"] / 4, rtol=1e-9)


def test_reference_systems(tmp_path: Path) -> None:
    own = Georeference((1, 0, 0, 0, -1, 0), 'LOCAL_CS["site",UNIT["metre",1]]')
    with pytest.raises(ConfigError, match=r"x\.geojson: GeoJSON cannot name the reference system .* write a \.gpkg"):
        write_polygons(tmp_path / "x.geojson", [np.zeros((2, 2), np.uint8)], NAMES, georeference=own)
    degrees = Georeference((1, 0, 7, 0, -1, 50), rasterio.CRS.from_epsg(4326).to_wkt(), "EPSG:4326")
    write_polygons(tmp_path / "y.geojson", [np.zeros((2, 2), np.uint8)], NAMES, georeference=degrees)
    assert "crs" not in json.loads((tmp_path / "y.geojson").read_text())
    assert read(tmp_path / "y.geojson")[1][0].bounds == (7, 48, 9, 50)
    tifffile.imwrite(tmp_path / "plain.tif", stripes(20, 20), photometric="rgb")
    assert read_georeference(tmp_path / "plain.tif") is None


def test_option_of_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Command) -> None:
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("a.tif", stripes(70, 99), photometric="rgb", tile=(64, 64))
    done = cli("segment", "a.tif", "--exact", "--out", "mask.npy", "--polygons", "exact.gpkg", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"][0]["files"] == ["mask.npy", "exact.gpkg"]
    check(tmp_path / "exact.gpkg", np.load("mask.npy"))
    properties = read(tmp_path / "exact.gpkg")[2]
    predictor = foveal.load("efficientvit_b0.camvid")
    assert [predictor.names[value] for value in properties["class"]] == properties["name"].tolist()
    Path("exact.gpkg").unlink()
    assert (
        cli("segment", "a.tif", "--exact", "--out", "mask.npy", "--polygons", "exact.gpkg", "--resume").returncode == 0
    )
    assert Path("exact.gpkg").exists()
    done = cli("segment", "a.tif", "--no-overlay", "--out", "mask.png", "--polygons", "plain.geojson")
    assert done.returncode == 0, done.stderr
    check(tmp_path / "plain.geojson", predictor.segment("a.tif").mask)
    for options, message in (
        (["a.tif", "--polygons", "x.shp"], "x.shp: polygons are written as .geojson or .gpkg"),
        (["a.tif", "--exact", "--polygons", "x.shp"], "x.shp: polygons are written as .geojson or .gpkg"),
        (["a.tif", "a.tif", "--polygons", "x.gpkg"], "--polygons is for a single image"),
        ([".", "--exact", "--polygons", "x.gpkg"], "--polygons is for a single image"),
    ):
        done = cli("segment", *options)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
        assert not Path("x.gpkg").exists()


def test_polygons_are_of_masks() -> None:
    with pytest.raises(ConfigError, match=r"x\.gpkg: polygons are made of masks"):
        foveal.stream("efficientvit_sr.x2", stripes(20, 20), polygons="x.gpkg")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    """Masks of 2, 8 and 32 megapixels with many small areas, in bands of one megapixel."""
    files = [tmp_path / f"{rows}.geojson" for rows in (2_048, 8_192, 32_768)]
    growths = peak_growths("helpers.stream_memory", "outline_tall", files)
    assert [message for message, _ in growths] == ["done"] * 3
    assert growths[2][1] < growths[1][1] + 20, growths  # MB, of 24 MB of pixels and 25,000 polygons
