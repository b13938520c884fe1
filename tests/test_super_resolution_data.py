"""Pairs for super-resolution: found by scale, made where they are missing, refused where sizes do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.data.super_resolution import SuperResolutionData, bicubic_downscale
from foveal.errors import DataError, InputError


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
    """The large image loses what does not fill a pixel of the small one."""
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


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_downscaling_agrees_with_a_peer_away_from_the_edges(scale: int) -> None:
    """torch's antialiased bicubic has the same kernel; its edges are clipped, ours are mirrored."""
    import torch
    import torch.nn.functional as F

    noise = np.random.default_rng(3).integers(0, 256, (20 * scale, 24 * scale, 3), dtype=np.uint8)
    tensor = torch.from_numpy(noise).permute(2, 0, 1)[None].double()
    peer = F.interpolate(tensor, size=(20, 24), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    ours = bicubic_downscale(noise, scale).astype(float)
    inner = (slice(2, -2), slice(2, -2))
    assert np.abs(ours - peer.clip(0, 255))[inner].max() <= 0.5 + 1e-6  # rounded once


def test_downscaling_by_hand() -> None:
    """A constant stays; a ramp keeps its slope inside; an edge is mirrored, so that its mean stays."""
    assert (bicubic_downscale(np.full((8, 12, 3), 77, np.uint8), 4) == 77).all()
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (4, 1, 1))
    assert bicubic_downscale(ramp, 2)[0, 2:-2, 0].tolist() == list(range(18, 18 + 8 * 26, 8))
    # At scale 2 the taps lie 0.25, 0.75, 1.25, 1.75 away on each side. The first output pixel sees the first sample at
    # 0.25 and its mirror image, beyond the edge, at 0.75.
    near = [1.5 * d**3 - 2.5 * d**2 + 1 for d in (0.25, 0.75)]
    far = [-0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 for d in (1.25, 1.75)]
    row = np.array([200, 0, 0, 0, 0, 0, 0, 0], np.uint8)[None, :, None].repeat(2, 0)
    assert bicubic_downscale(row, 2)[0, 0, 0] == round(200 * sum(near) / (2 * sum(near + far)))
    with pytest.raises(InputError, match="do not divide by 2"):
        bicubic_downscale(np.zeros((3, 4, 3), np.uint8), 2)
