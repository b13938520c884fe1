"""Images of unusual sizes, by their case numbers in docs/bad_input.md: read and segmented."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.images.preparing import prepare
from foveal.images.reading import read_image
from foveal.info import Preprocess
from helpers.pictures import PICTURE, encoded


@pytest.fixture(scope="module")
def predictor() -> foveal.Predictor:
    return foveal.load("efficientvit_b0.camvid")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 977), (977, 1), (30_000, 1), (1, 30_000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_20_thin_images(tmp_path: Path, width: int, height: int, kind: str) -> None:
    if kind == "WEBP":
        width, height = min(width, 16_383), min(height, 16_383)  # the largest sides of the format
    path = tmp_path / "thin"
    path.write_bytes(encoded(Image.new("RGB", (width, height), (90, 90, 90)), kind))
    read = read_image(path)
    assert read.shape == (height, width, 3)
    assert np.abs(read.astype(int) - 90).max() <= 2
    assert prepare(read, Preprocess(), 32).shape == (1, 3, max(32, height), max(32, width))


def test_20_thin_images_are_segmented(predictor: foveal.Predictor) -> None:
    for height, width in ((1, 1), (1, 977), (977, 1), (1, 30_000)):
        assert predictor.segment(np.zeros((height, width, 3), np.uint8)).mask.shape == (height, width)


def _segments_every(predictor: foveal.Predictor, sizes: list[tuple[int, int]]) -> None:
    for height, width in sizes:
        image = np.resize(PICTURE, (height, width, 3))
        result = predictor.segment(image)
        assert result.mask.shape == (height, width)
        assert np.isfinite(result.scores).all()


def test_21_every_height_and_every_width_from_1_to_257(predictor: foveal.Predictor) -> None:
    widths = random.Random(0).sample(range(1, 258), 257)
    _segments_every(predictor, list(zip(range(1, 258), widths, strict=True)))


@pytest.mark.long
def test_21_pairs_of_height_and_width(predictor: foveal.Predictor) -> None:
    """Every fourth size from 1 to 257 in both directions: all pairs of remainders modulo 32 that steps of 4 reach."""
    _segments_every(predictor, [(height, width) for height in range(1, 258, 4) for width in range(1, 258, 4)])
