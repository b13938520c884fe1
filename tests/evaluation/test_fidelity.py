"""PSNR and SSIM: held against a peer and closed forms, and as JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from foveal.errors import InputError
from foveal.evaluation.fidelity import UpscaleScores, fidelity, luma, ssim
from helpers.upscalers import photo


def test_ssim_equals_torchmetrics() -> None:
    a, b = (luma(photo(60, 71, seed)) for seed in (1, 2))
    first, second = (torch.from_numpy(x)[None, None] for x in (a, b))
    # Its reflected border is as wide as the window's half; without it both see the same windows.
    found = structural_similarity_index_measure(first, second, data_range=255.0, return_full_image=True)
    assert isinstance(found, tuple)
    inner = found[1][0, 0, 5:-5, 5:-5].mean()
    assert ssim(a, b) == pytest.approx(float(inner), abs=1e-6)
    assert ssim(a, a) == pytest.approx(1)


def test_psnr_in_closed_form() -> None:
    """A grey level's error is 219/255 of a level of luma; the border does not count."""
    true = np.full((20, 22, 3), 100, np.uint8)
    found = true + np.uint8(1)
    found[:3] = found[-3:] = found[:, :3] = found[:, -3:] = 255
    assert fidelity(found, true, 3)[0] == pytest.approx(20 * np.log10(255 * 255 / 219))
    with pytest.raises(InputError, match="cannot be compared"):
        fidelity(found, true[1:], 3)
    with pytest.raises(InputError, match="SSIM needs 11 x 11"):
        fidelity(found, true, 5)


def test_equal_images_are_valid_json() -> None:
    """JSON knows no infinity."""
    flat = np.full((32, 32, 3), 7, np.uint8)
    scores = UpscaleScores(1, *fidelity(flat, flat, 2))
    assert scores.psnr == math.inf
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False)) == {"psnr": None, "ssim": 1.0}
