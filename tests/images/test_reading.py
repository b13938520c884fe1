"""Images are read, listed, prepared, cut into tiles and coloured; test_faults.py has the bad ones."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from foveal.errors import InputError
from foveal.images.colours import distinct_colours
from foveal.images.folders import list_images
from foveal.images.preparing import network_size, prepare
from foveal.images.reading import read_image, read_mask
from foveal.info import Preprocess
from foveal.prediction.tiles import raised_cosine, tile_starts
from helpers.pictures import PICTURE


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_lossless_files_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(PICTURE).save(path, **options)
    assert (read_image(path) == PICTURE).all()


def test_pillow_images_are_read_and_stay_usable(tmp_path: Path) -> None:
    """Also images that are opened but not yet decoded, with their orientation; damage is an InputError."""
    turned = Image.Exif()
    turned[0x0112] = 8
    Image.fromarray(PICTURE).save(tmp_path / "good.png", exif=turned)
    with Image.open(tmp_path / "good.png") as image:
        assert (read_image(image) == read_image(tmp_path / "good.png")).all()
        assert (np.asarray(image) == PICTURE).all()
    (tmp_path / "half.png").write_bytes((tmp_path / "good.png").read_bytes()[:3000])
    with Image.open(tmp_path / "half.png") as image, pytest.raises(InputError, match="damaged or truncated"):
        read_image(image)
    with pytest.raises(InputError, match="megapixels"):
        read_image(Image.new("1", (20_000, 6_000)))


def test_images_without_pixels_are_refused() -> None:
    for empty in (np.zeros((0, 5, 3), np.uint8), np.zeros((4, 0), np.uint8), Image.new("RGB", (0, 5))):
        with pytest.raises(InputError, match="pixels"):
            read_image(empty)


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    """macOS writes ._photo.jpg beside photo.jpg; interrupted writes leave .name files."""
    for name in ("b/photo.JPG", "a.png", "._a.png", ".a-x1.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name, "PNG")
    assert [str(p.relative_to(tmp_path)) for p in list_images(tmp_path)] == ["a.png", "b/photo.JPG"]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_masks_of_more_than_8_bits_keep_their_ids(tmp_path: Path, mode: str) -> None:
    ids = np.array([[0, 300], [65535, 7]])
    raw = ids.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode])
    Image.frombytes(mode, (2, 2), raw.tobytes()).save(tmp_path / "mask.tif")
    assert (read_mask(tmp_path / "mask.tif") == ids).all()


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(InputError, match="folder"):
        read_image(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        list_images(tmp_path / "empty")


def test_arrays(tmp_path: Path) -> None:
    assert (read_image(PICTURE) == PICTURE).all()
    assert read_image(PICTURE[..., 0]).shape == (40, 56, 3)
    assert read_image(np.zeros((4, 5, 4), np.uint8)).tolist() == [[[255, 255, 255]] * 5] * 4
    with pytest.raises(InputError, match="expected uint8"):
        read_image(PICTURE / 255)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="shape"):
        read_image(np.zeros((2, 3, 4, 5), np.uint8))


def test_colour_masks_are_refused(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="class indices"):
        read_mask(tmp_path / "mask.png")


def test_prepare_is_the_formula_and_pads_small_images() -> None:
    preprocess = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    out = prepare(PICTURE, preprocess)
    expected = (PICTURE / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    assert out.shape == (1, 3, 40, 56)
    assert out.dtype == np.float32
    assert np.abs(out[0] - expected.transpose(2, 0, 1)).max() < 1e-6
    padded = prepare(PICTURE[:20, :30], preprocess, min_size=32)
    assert padded.shape == (1, 3, 32, 32)
    assert (padded[0, :, 25, :30] == padded[0, :, 19, :30]).all()


def test_resizing_follows_the_preprocess() -> None:
    assert prepare(PICTURE, Preprocess(size=(20, 24))).shape == (1, 3, 20, 24)
    assert prepare(PICTURE, Preprocess(max_side=28)).shape == (1, 3, 20, 28)
    assert network_size(40, 56, Preprocess(max_side=100)) == (40, 56)
    expected = np.asarray(Image.fromarray(PICTURE).resize((24, 20), Image.Resampling.BICUBIC))
    assert np.allclose(prepare(PICTURE, Preprocess(size=(20, 24))), prepare(expected, Preprocess()))
    with pytest.raises(InputError, match="bicubic"):
        prepare(PICTURE, Preprocess(size=(20, 24), resample="cubic"))


def test_centre_crop_keeps_the_middle() -> None:
    """As in timm: resize the short side to ceil(size / ratio), crop the centre; also for an image of the final size."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[24:40, 24:40] = 255
    out = prepare(image, Preprocess(mean=(0, 0, 0), std=(1, 1, 1), size=(64, 64), crop_ratio=0.5))
    assert out[0, 0, 32, 32] == 1
    assert out[0].mean() == pytest.approx((32 / 64) ** 2, rel=0.1)


@settings(max_examples=30)
@given(height=st.integers(20, 90), width=st.integers(20, 90), size=st.integers(16, 64), ratio=st.floats(0.5, 1.0))
def test_crops_as_torchvision_does(height: int, width: int, size: int, ratio: float) -> None:
    """The published classifiers were evaluated with torchvision's Resize and CenterCrop on Pillow images."""
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resize = v2.Resize(math.ceil(size / ratio), interpolation=v2.InterpolationMode.BICUBIC)
    expected = np.asarray(v2.CenterCrop(size)(resize(Image.fromarray(image))))
    preprocess = Preprocess((0, 0, 0), (1, 1, 1), size=(size, size), crop_ratio=ratio)
    result = prepare(image, preprocess)[0].transpose(1, 2, 0) * 255
    assert np.abs(result - expected).max() < 1e-3


@settings(max_examples=20)
@given(height=st.integers(20, 90), width=st.integers(20, 90))
def test_squashes_as_timm_does(height: int, width: int) -> None:
    """Resize both sides to floor(size / ratio) without keeping the aspect ratio, then crop the centre."""
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resize = v2.Resize((34, 51), interpolation=v2.InterpolationMode.BICUBIC)  # 32 / 0.93 = 34.4, 48 / 0.93 = 51.6
    expected = np.asarray(v2.CenterCrop((32, 48))(resize(Image.fromarray(image))))
    preprocess = Preprocess((0, 0, 0), (1, 1, 1), size=(32, 48), crop_ratio=0.93, squash=True)
    assert np.abs(prepare(image, preprocess)[0].transpose(1, 2, 0) * 255 - expected).max() < 1e-3


@given(length=st.integers(1, 3000), tile=st.integers(2, 600), data=st.data())
def test_tiles_cover_with_the_overlap_asked_for(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] + tile >= length
    for before, after in itertools.pairwise(starts):
        assert before < after <= before + tile - overlap


@given(length=st.integers(1, 200), ramp=st.integers(0, 100))
def test_blending_weights_are_positive_and_symmetric(length: int, ramp: int) -> None:
    weights = raised_cosine(length, ramp)
    assert (weights > 0).all()
    assert np.allclose(weights, weights[::-1])
    assert weights.max() <= 1


def test_made_up_colours_differ() -> None:
    colours = distinct_colours(150)
    assert len(set(colours)) == 150
    assert all(0 <= value <= 255 for colour in colours for value in colour)
