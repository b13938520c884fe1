"""Samples with maps of values: layouts, formats of files, units, masks of valid pixels, augmentation, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import foveal
from foveal.data.labelled import open_labelled
from foveal.data.map_augment import MapAugment
from foveal.data.recognition import recognise
from foveal.data.regression import RegressionData
from foveal.data.targets import read_target, stored_values
from foveal.errors import ConfigError, DataError, InputError
from foveal.images.value_colours import coloured, cut_out, direction_colours
from foveal.info import Target

SIZE = (24, 32)
RNG = np.random.default_rng(0)
DEPTH = Target("depth", "m", 0.001, 0)


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (*SIZE, 3), np.uint8)).save(path)


def depth_png(path: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    stored = np.random.default_rng(2).integers(500, 60000, size).astype(np.uint16)
    stored[:3] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stored).save(path)
    return stored


def described(root: Path, text: str = "target: {kind: depth, unit: m, scale: 0.001, invalid: 0}\n") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.yaml").write_text(text)
    return root


# ---- layouts


@pytest.mark.parametrize(
    ("images", "maps"),
    [
        ("{split}/images", "{split}/depth"),
        ("images/{split}", "depth/{split}"),
        ("{split}/imgs", "{split}/targets"),
    ],
)
def test_layouts(tmp_path: Path, images: str, maps: str) -> None:
    root = described(tmp_path)
    for split in ("train", "val"):
        for name in ("b", "a"):
            image(root / images.format(split=split) / f"{name}.jpg")
            stored = depth_png(root / maps.format(split=split) / f"{name}.png")
    data = open_labelled(root, ["train"], "regress")
    assert isinstance(data, RegressionData)
    assert [data.name(i).name for i in range(len(data))] == ["a.jpg", "b.jpg"]
    assert (data.labels.names, data.target) == (("depth",), DEPTH)
    pixels, values = data[0]
    assert pixels.shape == (*SIZE, 3)
    np.testing.assert_array_equal(np.isnan(values[..., 0]), stored == 0)
    np.testing.assert_allclose(values[3:, :, 0], stored[3:] / 1000, rtol=1e-6)
    assert recognise(root, foveal.data.layout.describe(root)) == "maps"
    report = foveal.check_data(root)
    assert not report.problems
    assert report.tasks == ("regress",)
    assert "train: depth of 0." in report.notes[0]
    with pytest.raises(DataError, match="no split 'test'"):
        RegressionData.open(root, ["test"])


def test_without_splits_they_are_drawn(tmp_path: Path) -> None:
    root = described(tmp_path, "val_share: 0.25\n")
    for index in range(8):
        image(root / "images" / f"{index}.png")
        depth_png(root / "values" / f"{index}.png")
    sizes = [len(RegressionData.open(root, [split])) for split in ("train", "val", "all")]
    assert sizes == [6, 2, 8]
    assert RegressionData.open(root, ["all"]).target == Target("values")


def test_the_folder_names_the_kind_and_several_need_a_choice(tmp_path: Path) -> None:
    root = described(tmp_path, "val_share: 0.0\n")
    image(root / "train" / "images" / "a.png")
    (root / "train" / "normals").mkdir()
    np.save(root / "train" / "normals" / "a.npy", np.broadcast_to(np.float32([0, 0, -1]), (*SIZE, 3)))
    data = RegressionData.open(root, ["train"])
    assert (data.target.kind, data.labels.names) == ("normals", ("x", "y", "z"))
    depth_png(root / "train" / "depth" / "a.png")
    with pytest.raises(DataError, match=r"maps in depth, normals: write 'target: \{kind: ...\}' into dataset.yaml"):
        RegressionData.open(root, ["train"])
    described(root, "target: {kind: normals}\n")
    assert RegressionData.open(root, ["train"]).target.kind == "normals"


def test_masks_of_valid_pixels(tmp_path: Path) -> None:
    root = described(tmp_path, "target: {kind: depth, scale: 0.001}\n")
    image(root / "images" / "a.png")
    stored = depth_png(root / "depth" / "a.png")
    (root / "valid").mkdir()
    Image.fromarray((stored > 0).astype(np.uint8) * 255).save(root / "valid" / "a.png")
    values = RegressionData.open(root, ["all"])[0][1]
    np.testing.assert_array_equal(np.isnan(values[..., 0]), stored == 0)
    image(root / "images" / "b.png")
    depth_png(root / "depth" / "b.png")
    with pytest.raises(DataError, match=r"images/b.png: has no mask of valid pixels"):
        RegressionData.open(root, ["all"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target: {kind: dept}\n", "target: kind='dept'; did you mean 'depth'"),
        ("target: {unt: m}\n", "target: unknown key 'unt'; did you mean 'unit'"),
        ("target: {scale: -1}\n", "target: scale=-1.0: give a number from 1e-12"),
        ("target: {scale: x}\n", "target: scale: expected float"),
        ("target: [1]\n", "target: expected a mapping"),
    ],
)
def test_wrong_descriptions(tmp_path: Path, text: str, message: str) -> None:
    root = described(tmp_path, text)
    image(root / "images" / "a.png")
    depth_png(root / "depth" / "a.png")
    with pytest.raises(ConfigError, match=message):
        RegressionData.open(root, ["all"])


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    root = described(tmp_path, "target: {kind: values}\n")
    for name in "abc":
        image(root / "images" / f"{name}.png")
        depth_png(root / "targets" / f"{name}.png")
    depth_png(root / "targets" / "b.png", (20, 32))
    np.save(root / "targets" / "c.npy", np.ones((*SIZE, 2), np.float32))
    (root / "targets" / "c.png").unlink()
    data = RegressionData.open(root, ["all"])
    with pytest.raises(DataError, match=r"b.png: map of 32x20 \(W x H\) for the image b.png of 32x24"):
        data[1]
    with pytest.raises(DataError, match=r"c\.npy: 2 channels, but the first map has 1"):
        data[2]
    assert {problem.file.name for problem in foveal.check_data(root).problems} == {"b.png", "c.png"}
    (root / "targets" / "b.png").unlink()
    with pytest.raises(DataError, match=r"images/b\.png: has no map; partners have the same stem"):
        RegressionData.open(root, ["all"])
    with pytest.raises(DataError, match="tar files hold no maps of values"):
        open_labelled(str(root / "{0..1}.tar"), ["train"], "regress")
    with pytest.raises(DataError, match="no folder of images beside a folder of maps"):
        RegressionData.open(root / "images", ["all"])


# ---- files


def test_formats_hold_the_same_values(tmp_path: Path) -> None:
    """TIFF by another library, NPY in several types, PNG of 8 and 16 bits in one and three channels."""
    values = RNG.uniform(0.2, 9, (*SIZE, 5)).astype(np.float32)
    values[0, 0] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", values[..., 0])
    tifffile.imwrite(tmp_path / "b.tif", values, planarconfig="contig", photometric="minisblack")
    np.save(tmp_path / "c.npy", values.astype(np.float64))
    for name, channels in (("a.tif", 1), ("b.tif", 5), ("c.npy", 5)):
        np.testing.assert_array_equal(read_target(tmp_path / name, Target()), values[..., :channels])
    grey = RNG.integers(0, 256, SIZE, np.uint8)
    Image.fromarray(grey).save(tmp_path / "d.png")
    np.testing.assert_allclose(read_target(tmp_path / "d.png", Target("alpha"))[..., 0], grey / 255, atol=1e-6)
    np.testing.assert_array_equal(read_target(tmp_path / "d.png", Target(scale=0.5))[..., 0], grey / 2)
    (tmp_path / "e.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"e\.npy"):
        read_target(tmp_path / "e.npy", Target())


def test_exr_files(tmp_path: Path) -> None:
    from foveal.images.exr import read_exr, write_exr

    for channels in (1, 2, 3, 4, 7):
        values = RNG.normal(size=(*SIZE, channels)).astype(np.float32)
        values[2, 3] = np.nan
        write_exr(tmp_path / "a.exr", values)
        np.testing.assert_array_equal(read_target(tmp_path / "a.exr", Target()), values)
    content = (tmp_path / "a.exr").read_bytes()
    for broken in (content[:300], content[:-40], b"", b"v/1\x01" + bytes(40)):
        (tmp_path / "b.exr").write_bytes(broken)
        with pytest.raises(InputError, match=r"b\.exr: damaged EXR file"):
            read_exr(tmp_path / "b.exr")
    with pytest.raises(InputError, match="No such file"):
        read_exr(tmp_path / "none.exr")


def test_exr_files_need_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "OpenEXR", None)
    with pytest.raises(foveal.DependencyError, match=r"need the library OpenEXR: pip install 'foveal\[exr\]'"):
        read_target(tmp_path / "a.exr", Target())


@pytest.mark.parametrize(
    ("target", "values", "message"),
    [
        (Target("depth"), [[[0.0]], [[2.0]]], "1 of 2 pixels are not above 0, and depths are; .* invalid: VALUE"),
        (Target("alpha"), [[[0.5]], [[1.5]]], "1 of 2 pixels are not within 0 to 1"),
        (Target("normals"), [[[0, 0, 1]], [[0, 0, 0.5]]], "1 of 2 pixels are no vectors of length 1"),
        (Target("depth"), [[[1.0, 1.0]]], "2 channels; depth has 1"),
        (Target("normals"), [[[1.0]]], "1 channels; normals has 3"),
    ],
)
def test_values_that_the_kind_does_not_have(tmp_path: Path, target: Target, values: Any, message: str) -> None:
    np.save(tmp_path / "a.npy", np.array(values, np.float32))
    with pytest.raises(DataError, match=message):
        read_target(tmp_path / "a.npy", target)


def test_missing_values(tmp_path: Path) -> None:
    values = np.ones((*SIZE, 1), np.float32)
    values[0, 0], values[1, 1], values[2, 2] = np.nan, np.inf, -1
    np.save(tmp_path / "a.npy", values)
    found = read_target(tmp_path / "a.npy", Target("depth", invalid=-1))
    assert np.argwhere(np.isnan(found[..., 0])).tolist() == [[0, 0], [1, 1], [2, 2]]
    Image.fromarray(np.full(SIZE, 255, np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"3 pixels that .*mask\.png marks as valid are NaN, infinite or 'invalid'"):
        read_target(tmp_path / "a.npy", Target("depth", invalid=-1), tmp_path / "mask.png")


@pytest.mark.parametrize("target", [DEPTH, Target("alpha"), Target("normals"), Target("values", scale=0.01)])
def test_stored_values_are_read_back(tmp_path: Path, target: Target) -> None:
    """Within half of a step; of normals within one, since they get the length 1 again."""
    values = RNG.uniform(0.01, 1, (*SIZE, 3 if target.kind == "normals" else 1)).astype(np.float32)
    if target.kind == "normals":
        values = (values - 0.5) / np.linalg.norm(values - 0.5, axis=2, keepdims=True)
    stored, clipped = stored_values(values, target)
    assert not clipped
    from foveal.images.writing import Canvas, write_picture

    write_picture(tmp_path / "a.png", Canvas(*stored.shape, 16), [stored])
    found = read_target(tmp_path / "a.png", target)
    step = target.scale or (2 if target.kind == "normals" else 1) / 65535
    np.testing.assert_allclose(found, values, atol=(1 if target.kind == "normals" else 0.51) * step + 1e-6)


def test_stored_values_are_clipped_and_counted() -> None:
    values = np.float32([[[0.0001], [70.0], [-3.0], [1.0]]])
    stored, clipped = stored_values(values, DEPTH)
    assert (stored[0, :, 0].tolist(), clipped) == ([1, 65535, 1, 1000], 3)  # 0 would be read as "no measurement"
    with pytest.raises(InputError, match="the value of one step: give scale"):
        stored_values(values, Target("depth", "m"))
    with pytest.raises(InputError, match="1 values are NaN or infinite"):
        stored_values(np.float32([[[np.nan]]]), DEPTH)


# ---- augmentation


def augment(kind: str, **more: Any) -> MapAugment:
    plain = {"scale": (1.0, 1.0), "flip": 0.0, "jitter": 0.0} | more
    return MapAugment(SIZE, **plain, kind=kind)


def test_depth_is_divided_by_the_zoom() -> None:
    values = np.full((*SIZE, 1), 3.0, np.float32)
    picture = np.zeros((*SIZE, 3), np.uint8)
    for zoom in (0.5, 2.0):
        _, found = augment("depth", scale=(zoom, zoom))(picture, values, np.random.default_rng(0))
        np.testing.assert_allclose(found[np.isfinite(found)], 3 / zoom)
    _, same = augment("values", scale=(2.0, 2.0))(picture, values, np.random.default_rng(0))
    assert (same == 3).all()


def test_outside_of_the_image_there_are_no_values() -> None:
    values = np.full((*SIZE, 1), 3.0, np.float32)
    _, found = augment("alpha", scale=(0.5, 0.5))(np.zeros((*SIZE, 3), np.uint8), values, np.random.default_rng(0))
    assert np.isfinite(found).sum() == SIZE[0] * SIZE[1] // 4


def test_flips_turn_normals() -> None:
    normals = RNG.normal(size=(*SIZE, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    picture = RNG.integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    image, found = augment("normals", flip=1.0)(picture, normals, np.random.default_rng(0))
    np.testing.assert_array_equal(image, picture[:, ::-1])
    np.testing.assert_allclose(found, normals[:, ::-1] * [-1, 1, 1], atol=1e-6)


def test_missing_values_do_not_leak_into_others() -> None:
    """Resampled values lie between the valid ones, whatever stands in the missing pixels; depths are not mixed."""
    values = np.where(RNG.random((*SIZE, 1)) < 0.5, 2.0, 4.0).astype(np.float32)
    values[RNG.random(SIZE) < 0.3] = np.nan
    picture = np.zeros((*SIZE, 3), np.uint8)
    for seed in range(5):
        _, found = augment("values", scale=(0.7, 1.7))(picture, values, np.random.default_rng(seed))
        assert np.nanmin(found) >= 2 - 1e-5
        assert np.nanmax(found) <= 4 + 1e-5
    zoom = 1.3
    _, found = augment("depth", scale=(zoom, zoom))(picture, values, np.random.default_rng(0))
    assert {round(v * zoom, 3) for v in found[np.isfinite(found)].tolist()} == {2.0, 4.0}


# ---- pictures


def test_pictures() -> None:
    values = np.linspace(1, 2, 100).reshape(10, 10)
    values[0, 0] = np.nan
    colours = coloured(values).astype(int)
    assert colours[0, 0].tolist() == [128, 128, 128]
    assert (np.diff(colours.sum(2).ravel()[3:]) >= 0).all()  # lighter and lighter
    assert (coloured(values, reverse=True)[9, 9] == coloured(values)[0, 1]).all()
    assert direction_colours(np.float32([[[1, 0, -1]]])).tolist() == [[[255, 128, 0]]]
    assert cut_out(np.full((1, 1, 3), 9, np.uint8), np.float32([[0.5]])).tolist() == [[[9, 9, 9, 128]]]
