"""Write the areas of a mask as polygons: GeoJSON (RFC 7946) or GeoPackage (OGC 12-128).

A mask arrives in bands of rows. An area is complete as soon as no pixel of it lies in the last row of a band; until
then its parts are kept, so that memory grows with the outlines of the areas that reach from band to band, and not with
the mask. Pixels belong to one area if they have the same class and a common edge.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DependencyError, InputError
from ..files import atomic_write

SUFFIXES = (".geojson", ".gpkg")
INSTALL = "pip install 'foveal[geo]'"
_BATCH = 5000  # polygons that are written at once
_BAND_PIXELS = 1 << 25  # of the mask that are outlined at once: merging what reaches from band to band takes time
_LAYER = "segmentation"


@dataclass(frozen=True)
class Georeference:
    """Where the pixels of an image are.

    Attributes:
        matrix: a, b, c, d, e, f: column x and row y are at (a x + b y + c, d x + e y + f).
        crs: the coordinate reference system as WKT.
        name: the same as authority and code, ``"EPSG:32632"``; empty if it has none.
    """

    matrix: tuple[float, float, float, float, float, float]
    crs: str
    name: str = ""


def check_polygons(path: Path, georeference: Georeference | None = None) -> None:
    """Check that polygons can be written to a file of this name, before the work whose result they are.

    Raises:
        ConfigError: another suffix, or a reference system that GeoJSON cannot name.
        DependencyError: a library is not installed.
    """
    if georeference is not None and not georeference.name and path.suffix.lower() != ".gpkg":
        raise ConfigError(f"{path}: GeoJSON cannot name the reference system of the image: write a .gpkg")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: polygons are written as {' or '.join(SUFFIXES)}")
    _libraries()


def read_georeference(path: Path, size: tuple[int, int] | None = None) -> Georeference | None:
    """The georeference of a TIFF file; ``None`` if it has none, or only one without a reference system.

    Args:
        path: of the file.
        size: (H, W) of a smaller version of the image, whose georeference is returned.
    """
    rasterio, _, _ = _libraries()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            with rasterio.open(path, driver="GTiff") as file:
                if file.crs is None or file.transform.is_identity:
                    return None
                authority = file.crs.to_authority()
                name = "" if authority is None else ":".join(authority)
                height, width = size or file.shape
                across, down = file.width / width, file.height / height
                a, b, c, d, e, f, *_ = file.transform
                return Georeference((a * across, b * down, c, d * across, e * down, f), file.crs.to_wkt(), name)
        except rasterio.errors.RasterioError:  # a file that our reader reads and GDAL does not
            return None


def write_polygons(
    path: str | Path,
    bands: Iterable[NDArray[Any]],
    names: Sequence[str],
    *,
    nodata: int | None = None,
    georeference: Georeference | None = None,
) -> int:
    """Write a polygon for each area of a mask, with the properties class, name and pixels.

    Coordinates are those of the georeference, or columns and rows of the image, (0, 0) at its top left corner.

    Args:
        path: a .geojson or .gpkg file. If writing fails, no partial file is left.
        bands: the mask from top to bottom, ``(rows, W)`` or ``(rows, W, 1)`` integers each.
        names: of the classes.
        nodata: value of pixels that get no polygon.
        georeference: of the image.

    Returns:
        The number of polygons.

    Raises:
        ConfigError: another suffix, or a reference system that GeoJSON cannot name.
        InputError: the file cannot be written.
        DependencyError: a library is not installed.
    """
    path = Path(path)
    check_polygons(path, georeference)
    count = 0
    with _WRITERS[path.suffix.lower()](path, georeference) as write:
        batch: list[tuple[Any, int]] = []
        for area in areas_of(bands, nodata):
            batch.append(area)
            count += 1
            if len(batch) == _BATCH:
                write(_features(batch, names, georeference))
                batch = []
        write(_features(batch, names, georeference))
    return count


def feature_collection(mask: NDArray[Any], names: Sequence[str], nodata: int | None = None) -> dict[str, Any]:
    """A polygon for each area of a mask that is in memory, as GeoJSON.

    Args:
        mask: ``(H, W)`` integers.
        names: of the classes.
        nodata: value of pixels that get no polygon.

    Returns:
        A FeatureCollection with the properties and coordinates of :func:`write_polygons`.

    Raises:
        DependencyError: a library is not installed.
    """
    _libraries()
    from shapely.geometry import mapping

    features = _features(list(areas_of([mask], nodata)), names, None)
    rows = zip(features.classes.tolist(), features.names, features.pixels.tolist(), strict=True)
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {"class": number, "name": name, "pixels": pixels},
                "geometry": mapping(geometry),
            }
            for geometry, (number, name, pixels) in zip(features.geometry, rows, strict=True)
        ],
    }


@dataclass
class _Features:
    """Polygons with their properties, in arrays of one length."""

    geometry: NDArray[Any]
    classes: NDArray[np.int32]
    names: NDArray[Any]
    pixels: NDArray[np.int64]


def _features(areas: list[tuple[Any, int]], names: Sequence[str], georeference: Georeference | None) -> _Features:
    import shapely

    geometry = np.array([polygon for polygon, _ in areas], object)
    classes = np.array([value for _, value in areas], np.int32)
    pixels = np.rint(shapely.area(geometry)).astype(np.int64)
    if georeference is not None:
        a, b, c, d, e, f = georeference.matrix
        geometry = shapely.transform(geometry, lambda xy: xy @ np.array([[a, d], [b, e]]) + np.array([c, f]))
    labels = np.array([names[value] if value < len(names) else str(value) for value in classes], object)
    return _Features(shapely.orient_polygons(geometry), classes, labels, pixels)


# ---- areas


@dataclass
class _Seam:
    """The areas that reach to the last row of a band.

    Attributes:
        classes: of the pixels of that row.
        owners: number of the area of each of them; -1 for none.
        parts: by number, the class and the polygons so far of areas that are not complete.
        joined: by number, the area that it was found to be a part of.
    """

    classes: NDArray[Any]
    owners: NDArray[np.int64]
    parts: dict[int, tuple[int, list[Any]]] = field(default_factory=dict)
    joined: dict[int, int] = field(default_factory=dict)

    def root(self, number: int) -> int:
        while number in self.joined:
            number = self.joined[number]
        return number

    def join(self, first: int, second: int) -> None:
        """Make two areas one."""
        first, second = self.root(first), self.root(second)
        if first != second:
            low, high = sorted((first, second))
            self.parts[low][1].extend(self.parts.pop(high)[1])
            self.joined[high] = low


def areas_of(bands: Iterable[NDArray[Any]], nodata: int | None = None) -> Iterator[tuple[Any, int]]:
    """The polygons of a mask in columns and rows, each with its class, as soon as they are complete.

    Raises:
        DependencyError: a library is not installed.
    """
    seam: _Seam | None = None
    top, number = 0, 0
    for mask in _higher(bands):
        first, last = (np.full(mask.shape[1], -1, np.int64) for _ in range(2))
        parts = {} if seam is None else seam.parts
        for polygon, value in _polygons_of(mask, top, nodata):
            _, low, _, high = polygon.bounds
            if low > top and high < top + len(mask):
                yield polygon, value
                continue
            for row, owners in ((top, first), (top + len(mask), last)):
                if row in (low, high):
                    for start, end in _edges_along(polygon, row):
                        owners[start:end] = number
            parts[number] = value, [polygon]
            number += 1
        joined = _Seam(mask[-1], last, parts)
        if seam is not None:
            touching = (seam.classes == mask[0]) & (seam.owners >= 0) & (first >= 0)
            for pair in np.unique(np.stack([seam.owners[touching], first[touching]]), axis=1).T:
                joined.join(*pair.tolist())
        seam, top = _without_joins(joined), top + len(mask)
        yield from _complete(seam, set(np.unique(seam.owners).tolist()))
    if seam is not None:
        yield from _complete(seam, set())


def _higher(bands: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Bands ``(rows, W)`` of :data:`_BAND_PIXELS` or more, but for the last."""
    waiting: list[NDArray[Any]] = []
    for band in bands:
        waiting.append(band.reshape(band.shape[:2]))
        if sum(each.size for each in waiting) >= _BAND_PIXELS:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _without_joins(seam: _Seam) -> _Seam:
    """The same areas, all under the numbers that are left."""
    found, inverse = np.unique(seam.owners, return_inverse=True)
    owners = np.array([seam.root(number) for number in found.tolist()], np.int64)[inverse]
    return _Seam(seam.classes, owners, seam.parts)


def _complete(seam: _Seam, open_areas: set[int]) -> Iterator[tuple[Any, int]]:
    """Take out and merge the areas that are not in ``open_areas``."""
    import shapely

    for number in [number for number in seam.parts if number not in open_areas]:
        value, polygons = seam.parts.pop(number)
        yield (polygons[0] if len(polygons) == 1 else shapely.union_all(polygons)), value


def _polygons_of(mask: NDArray[Any], top: int, nodata: int | None) -> Iterator[tuple[Any, int]]:
    """The areas of a band whose first row is ``top``."""
    _, features, shape = _libraries()
    from rasterio.transform import Affine

    values = mask if mask.dtype in (np.uint8, np.uint16, np.int16) else mask.astype(np.int32)
    chosen = None if nodata is None else values != nodata
    for geometry, value in features.shapes(
        np.ascontiguousarray(values), chosen, connectivity=4, transform=Affine.translation(0, top)
    ):
        yield shape(geometry), int(value)


def _edges_along(polygon: Any, row: int) -> Iterator[tuple[int, int]]:
    """The columns where the outline of a polygon runs along the upper edge of a row."""
    outline = np.asarray(polygon.exterior.coords)
    along = (outline[:-1, 1] == row) & (outline[1:, 1] == row)
    for ends in np.sort(np.stack([outline[:-1][along, 0], outline[1:][along, 0]], axis=1), axis=1):
        yield int(ends[0]), int(ends[1])


# ---- files

_Write = Callable[[_Features], None]


@contextmanager
def _write_geojson(path: Path, georeference: Georeference | None) -> Iterator[_Write]:
    """Write GeoJSON. Coordinates are not converted to degrees, so the reference system is named, as GDAL does it."""
    import shapely

    head: dict[str, Any] = {"type": "FeatureCollection", "name": _LAYER}
    if georeference is not None and georeference.name not in ("EPSG:4326", "OGC:CRS84"):
        authority, _, code = georeference.name.partition(":")
        name = f"urn:ogc:def:crs:{authority}::{code}"
        head["crs"] = {"type": "name", "properties": {"name": name}}
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "features": [')
        begun = False

        def write(features: _Features) -> None:
            nonlocal begun
            for geometry, number, name, pixels in zip(
                shapely.to_geojson(features.geometry).tolist(),
                features.classes.tolist(),
                features.names,
                features.pixels.tolist(),
                strict=True,
            ):
                properties = json.dumps({"class": number, "name": name, "pixels": pixels})
                separator = ",\n" if begun else "\n"
                file.write(f'{separator}{{"type": "Feature", "properties": {properties}, "geometry": {geometry}}}')
                begun = True

        yield write
        file.write("\n]}\n")


@contextmanager
def _write_geopackage(path: Path, georeference: Georeference | None) -> Iterator[_Write]:
    import pyogrio.raw
    import shapely

    with (
        atomic_write(path) as temporary,
        tempfile.TemporaryDirectory(prefix=f".{path.stem[:40]}-foveal-", dir=path.parent) as folder,
    ):
        # SQLite makes further files while it writes, and GDAL replaces a file that exists.
        made = Path(folder) / "polygons.gpkg"

        def write(features: _Features) -> None:
            values = [features.classes, features.names, features.pixels]
            system = None if georeference is None else georeference.crs
            options = {"layer": _LAYER, "driver": "GPKG", "geometry_type": "Polygon", "crs": system}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a missing reference system
                try:
                    pyogrio.raw.write(
                        made,
                        shapely.to_wkb(features.geometry),
                        values,
                        ["class", "name", "pixels"],
                        append=made.exists(),
                        **options,
                    )
                except RuntimeError as error:  # GDAL's, of a full disk or a reference system that it does not know
                    raise InputError(f"cannot write {path}: {' '.join(str(error).split())}") from error

        yield write
        os.replace(made, temporary)


_WRITERS = {".geojson": _write_geojson, ".gpkg": _write_geopackage}


def _libraries() -> tuple[Any, Any, Any]:
    """rasterio, its features, and how shapely makes a geometry of them.

    Raises:
        DependencyError: a library is not installed.
    """
    try:
        import pyogrio  # noqa: F401 - for GeoPackage
        import rasterio
        import rasterio.errors
        import rasterio.features
        from shapely.geometry import shape
    except ImportError as error:
        raise DependencyError(f"polygons need rasterio, shapely and pyogrio: {INSTALL}") from error
    return rasterio, rasterio.features, shape
