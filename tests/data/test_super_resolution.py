"""Pairs for super-resolution: found by scale, computed if missing, cropped and degraded together, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.data.degradation import degraded
from foveal.data.super_resolution import SuperResolutionData
from foveal.data.transforms import UpscaleAugment
from foveal.errors import ConfigError, DataError, InputError
from foveal.evaluation.fidelity import psnr
from foveal.images.resampling import bicubic_downscale, interpolated
from helpers.upscalers import photo


def put(path: Path, width: int, height: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.mark.parametrize(
    ("large", "small", "split"),
    [
        ("HR/a.png", "LR/a.png", "all"),
        ("HR/a.png", "LR_bicubic/X2/ax2.png", "all"),
        ("HR/a.png", "LRx2/a.png", "all"),
        ("train/HR/a.png", "train/LR_x2/a_x2.png", "train"),
        ("DIV2K_train_HR/0001.png", "DIV2K_train_LR_bicubic/X2/0001x2.png", "train"),
        ("DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_bicubic/X2/0801x2.png", "val"),
    ],
)
def test_pairs_on_disk(tmp_path: Path, large: str, small: str, split: str) -> None:
    """The large image loses the rows and columns that do not fill a pixel of the small one."""
    put(tmp_path / large, 13, 9)
    put(tmp_path / small, 6, 4, seed=1)
    data = SuperResolutionData.open(tmp_path, [split], 2)
    assert data.pairs == ((tmp_path / small, tmp_path / large),)
    low, high = data[0]
    assert (low == np.asarray(Image.open(tmp_path / small))).all()
    assert (high == np.asarray(Image.open(tmp_path / large))[:8, :12]).all()
    put(tmp_path / small, 6, 5)
    with pytest.raises(DataError, match=r"6x5 \(W x H\), but 1/2 of .* is 6x4"):
        data[0]


def test_large_images_alone(tmp_path: Path) -> None:
    for index in range(10):
        put(tmp_path / f"{index}.png", 13, 9, index)
    low, high = SuperResolutionData.open(tmp_path, ["all"], 3)[0]
    assert (low.shape, high.shape) == ((3, 4, 3), (9, 12, 3))
    assert (low == bicubic_downscale(high, 3)).all()
    (tmp_path / "dataset.yaml").write_text("val_share: 0.2")
    train, val = (SuperResolutionData.open(tmp_path, [split], 3).pairs for split in ("train", "val"))
    assert (len(train), len(val), len({*train, *val})) == (8, 2, 10)


def test_problems_are_named(tmp_path: Path) -> None:
    put(tmp_path / "HR" / "a.png", 8, 8)
    put(tmp_path / "HR" / "b.png", 8, 8)
    put(tmp_path / "LR" / "X2" / "a.png", 4, 4)
    with pytest.raises(DataError, match=r"HR/b\.png: has no small image"):
        SuperResolutionData.open(tmp_path, ["all"], 2)
    with pytest.raises(DataError, match="no small images for scale 4, only LR/X2"):
        SuperResolutionData.open(tmp_path, ["all"], 4)
    with pytest.raises(InputError, match="scale=0"):
        SuperResolutionData.open(tmp_path, ["all"], 0)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="neither folders of large images"):
        SuperResolutionData.open(tmp_path / "none", ["all"], 2)


@pytest.mark.parametrize("kind", ["noise", "photo"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_downscaling_equals_torch_inside(scale: int, kind: str) -> None:
    """torch's antialiased bicubic has the same kernel as MATLAB, but cuts it off at the edges instead of mirroring."""
    height, width = 20 * scale, 24 * scale
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = noise if kind == "noise" else photo(height, width)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    peer = torch.nn.functional.interpolate(tensor, (20, 24), mode="bicubic", antialias=True)[0]
    expected, inside = peer.permute(1, 2, 0).numpy().clip(0, 255), (slice(2, -2), slice(2, -2))
    result = bicubic_downscale(image, scale)
    assert np.abs(result - expected)[inside].max() <= 0.5 + 1e-6  # rounded once
    # Values that end in .5 may be rounded either way.
    assert (result != np.floor(expected + 0.5))[inside].mean() < 1e-3


def test_downscaling_by_hand() -> None:
    """A constant stays; a ramp keeps its slope inside; edges are mirrored, so that their mean stays."""
    assert (bicubic_downscale(np.full((8, 12, 3), 77, np.uint8), 4) == 77).all()
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (4, 1, 1))
    assert bicubic_downscale(ramp, 2)[0, 2:-2, 0].tolist() == list(range(18, 18 + 8 * 26, 8))
    # At scale 2 the distances to the samples are 0.25, 0.75, 1.25 and 1.75 on each side. The first output pixel has
    # the first sample at 0.25, and the mirror image of that sample, beyond the edge, at 0.75.
    near = [1.5 * d**3 - 2.5 * d**2 + 1 for d in (0.25, 0.75)]
    far = [-0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 for d in (1.25, 1.75)]
    row = np.array([200, 0, 0, 0, 0, 0, 0, 0], np.uint8)[None, :, None].repeat(2, 0)
    assert bicubic_downscale(row, 2)[0, 0, 0] == round(200 * sum(near) / (2 * sum(near + far)))
    with pytest.raises(InputError, match="do not divide by 2"):
        bicubic_downscale(np.zeros((3, 4, 3), np.uint8), 2)


def test_interpolation_keeps_ramps_and_undoes_nothing() -> None:
    ramp = np.arange(20.0)[:, None, None].repeat(8, 1)
    result = interpolated(ramp, 4)[12:-12, 0, 0]
    np.testing.assert_allclose(result, (np.arange(80) + 0.5)[12:-12] / 4 - 0.5, atol=1e-12)
    assert np.allclose(interpolated(np.full((9, 9, 1), 7.0), 3, "lanczos"), 7)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_crops_show_the_same_place(scale: int) -> None:
    """The downscaled large crop equals the small crop for all flips, except at the edges, where pixels are missing."""
    large = photo(90, 120)
    small = bicubic_downscale(large, scale)
    augment = UpscaleAugment((48, 48), scale)
    crops = set()
    for seed in range(12):
        a, b = augment(small, large, np.random.default_rng(seed))
        assert a.shape == (48 // scale, 48 // scale, 3)
        assert b.shape == (48, 48, 3)
        assert np.abs(bicubic_downscale(b, scale).astype(int) - a)[3:-3, 3:-3].max() <= 1
        crops.add(b.tobytes())
    assert len(crops) > 8


def test_images_below_the_crop_are_mirrored() -> None:
    large = photo(40, 100)
    a, b = UpscaleAugment((64, 64), 2, flip=0)(bicubic_downscale(large, 2), large, np.random.default_rng(0))
    assert a.shape == (32, 32, 3)
    assert np.array_equal(b[40:], b[16:40][::-1])


def test_degradations_do_what_they_say() -> None:
    large = photo(64, 64)
    rng = np.random.default_rng
    assert np.array_equal(degraded(large, 2, {}, rng(0)), bicubic_downscale(large, 2))
    flat = np.full((200, 200, 3), 128, np.uint8)
    noisy = degraded(flat, 1, {"noise": (25, 25)}, rng(0)).astype(float)
    assert noisy.std() == pytest.approx(25, rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=0.3)
    step = np.zeros((31, 31, 3), np.uint8)
    step[:, 16:] = 255
    blurred = degraded(step, 1, {"blur": (2, 2)}, rng(0))[15, :, 0] / 255
    normal = torch.distributions.Normal(15.5, 2.0).cdf(torch.arange(31.0)).numpy()
    np.testing.assert_allclose(blurred, normal, atol=0.02)
    errors = [psnr(degraded(large, 1, {"jpeg": (q, q)}, rng(0)), large) for q in (10, 50, 95)]
    assert errors == sorted(errors)
    assert errors[0] < 32


def test_sets_are_folders(tmp_path: Path) -> None:
    for name in ("seta", "setb"):
        (tmp_path / name).mkdir()
        Image.fromarray(photo(40, 48)).save(tmp_path / name / "a.png")
    result = foveal.evaluate("bicubic.x2", tmp_path)
    assert [part.name for part in result.sets] == ["seta", "setb"]
    assert result["seta"].psnr == result["setb"].psnr
    with pytest.raises(DataError, match="no split 'setc'"):
        foveal.evaluate("bicubic.x2", tmp_path, split="setc")
    with pytest.raises(ConfigError, match="boundary=True is for models of the task 'segment'"):
        foveal.evaluate("bicubic.x2", tmp_path, boundary=True)
