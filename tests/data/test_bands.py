"""Mean and standard deviation of a data set's bands, and which bands its images have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from foveal.data.bands import band_statistics, described_by, with_its_bands, write_statistics
from foveal.data.check import check_data
from foveal.data.classification import ClassificationData
from foveal.data.layout import describe
from foveal.data.segmentation import SegmentationData
from foveal.data.transforms import ClassifyAugment, SegmentAugment
from foveal.errors import ConfigError, DataError
from foveal.images.bands import RGB, Bands
from helpers.commands import Command


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig")
    else:
        Image.fromarray(array).save(path)


def segmentation(root: Path, suffix: str, bands: int, dtype: str, count: int = 3) -> list[np.ndarray]:
    rng, images = np.random.default_rng(0), []
    for index in range(count):
        scale = np.arange(1, bands + 1) * (1 if dtype == "float32" else 40)
        images.append((rng.random((70 + index, 33, bands)) * scale).astype(dtype))
        write(root / "images" / "train" / f"{index}{suffix}", images[-1] if bands > 1 else images[-1][..., 0])
        write(root / "masks" / "train" / f"{index}.png", np.zeros(images[-1].shape[:2], np.uint8))
    (root / "dataset.yaml").write_text("# of mine\nnames: [land, water]  # two\n")
    return images


@pytest.mark.parametrize(
    ("suffix", "bands", "dtype", "in_chans"),
    [(".tif", 5, "uint16", 0), (".npy", 2, "float32", 0), (".npy", 4, "uint8", 0), (".png", 1, "uint16", 1)],
)
def test_statistics_are_those_of_all_pixels(
    tmp_path: Path, cli: Command, suffix: str, bands: int, dtype: str, in_chans: int
) -> None:
    images = segmentation(tmp_path, suffix, bands, dtype)
    pixels = np.concatenate([image.reshape(-1, bands) for image in images]).astype(np.float64)
    peak = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    done = cli("data", "stats", tmp_path, "--in-chans", in_chans, "--json", "--write")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["in_chans"], report["dtype"], report["pixels"]) == (bands, dtype, len(pixels))
    np.testing.assert_allclose(report["mean"], pixels.mean(0) / peak, rtol=1e-5)
    np.testing.assert_allclose(report["std"], pixels.std(0) / peak, rtol=1e-5)
    assert report["low"] == pixels.min(0).tolist()
    described = describe(tmp_path)
    assert (list(described.mean), list(described.std), described.dtype) == (report["mean"], report["std"], dtype)
    text = (tmp_path / "dataset.yaml").read_text()
    assert text.startswith("# of mine\nnames: [land, water]  # two\n")
    write_statistics(tmp_path, band_statistics(tmp_path, in_chans=in_chans))  # again: lines are replaced
    assert (tmp_path / "dataset.yaml").read_text() == text
    data = with_its_bands(SegmentationData.open(tmp_path, ["train"]), described)
    assert data.bands == Bands(bands, dtype)
    assert (data[1][0] == images[1]).all()


def test_text_output_and_constant_bands(tmp_path: Path, cli: Command) -> None:
    for index in range(2):
        write(tmp_path / "cat" / f"{index}.npy", np.dstack([np.full((8, 9), 7, np.uint8), np.eye(8, 9, dtype="u1")]))
    (tmp_path / "cat" / "2.npy").write_bytes(b"nothing")
    done = cli("data", "stats", tmp_path)
    assert done.returncode == 1  # one image was left out
    assert "2 bands of uint8, 2 images, 144 pixels" in done.stdout
    assert "band 1 has the same value everywhere" in done.stdout
    assert "std: [1.0, 0.00" in done.stdout
    assert "2.npy" in done.stdout
    assert not (tmp_path / "dataset.yaml").exists()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_augmentation_moves_bands_as_colours(dtype: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
    bands, mask = np.dstack([rgb, rgb[..., :2]]).astype(dtype), rgb[..., 0] % 4
    fill = (124, 116, 104)
    for seed in range(6):
        augment = SegmentAugment((32, 40), scale=(0.3, 2.0), jitter=0.0, fill=fill)
        expected, target = augment(rgb, mask, np.random.default_rng(seed))
        augment = SegmentAugment((32, 40), scale=(0.3, 2.0), jitter=0.5, tint=0.5, fill=(*fill, *fill[:2]))
        moved, ids = augment(bands, mask, np.random.default_rng(seed))
        assert (ids == target).all()
        assert moved.dtype == dtype
        close = np.abs(moved.clip(0, 255) - np.dstack([expected, expected[..., :2]]).astype(np.float64))
        # Pillow rounds 8 bits between the two passes of a resize, so that wider types differ at sharp edges.
        assert close.max() == 0 if dtype == "uint8" else close.mean() < 1
        small = ClassifyAugment((32, 40), jitter=0.5)(bands, np.random.default_rng(seed))
        assert (small.shape, small.dtype) == ((32, 40, 5), dtype)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_photographs_stay_rgb(tmp_path: Path, mode: str) -> None:
    (tmp_path / "cat").mkdir()
    Image.new(mode, (9, 8)).save(tmp_path / "cat" / "a.png")
    data = ClassificationData.open(tmp_path, ["all"])
    assert with_its_bands(data, describe(tmp_path)) is data
    assert data.bands == RGB


def test_bands_are_found_behind_a_damaged_image(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "a.npy", np.ones((8, 9, 6), np.float32))
    (tmp_path / "cat" / "A.npy").write_bytes(b"nothing")
    data = with_its_bands(ClassificationData.open(tmp_path, ["all"]), describe(tmp_path))
    assert data.bands == Bands(6, "float32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mean: [0.1, 0.2]\nstd: [0.1]\n", "2 values of 'mean' but 1 of 'std'"),
        ("mean: [0.1]\nstd: [0]\n", "std=.* is out of range"),
        ("dtype: int7\n", "dtype='int7'"),
    ],
)
def test_wrong_lines_of_dataset_yaml(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        described_by(tmp_path)


def test_the_check_notes_bands_and_reports_images_of_others(tmp_path: Path) -> None:
    segmentation(tmp_path, ".npy", 5, "uint8")
    for folder, file, array in (
        ("images", "0.npy", np.zeros((8, 9, 4), np.uint8)),
        ("masks", "0.png", np.zeros((8, 9), np.uint8)),
    ):
        write(tmp_path / folder / "val" / file, array)
    report = check_data(tmp_path)
    assert "the images have 5 bands of uint8; models of the data take these" in report.notes
    assert ["4 bands of uint8, but the model takes 5 bands" in problem.error for problem in report.problems] == [True]


def test_numbers_of_bands_that_do_not_fit(tmp_path: Path) -> None:
    segmentation(tmp_path, ".npy", 5, "uint8")
    data = SegmentationData.open(tmp_path, ["train"])
    with pytest.raises(DataError, match="5 bands of uint8, but the model takes 4 bands"):
        with_its_bands(data, describe(tmp_path), in_chans=4)
    (tmp_path / "dataset.yaml").write_text("names: [land, water]\nmean:\n- 0.1\nstd:\n  - 0.2\nval_share: 0.0\n")
    write_statistics(tmp_path, band_statistics(tmp_path))
    assert "val_share: 0.0\ndtype: uint8\nmean: [" in (tmp_path / "dataset.yaml").read_text()
    with pytest.raises(ConfigError, match=r"in_chans=4, but dataset\.yaml has the mean of 5 bands"):
        with_its_bands(data, describe(tmp_path), in_chans=4)
