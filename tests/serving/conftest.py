"""One service for all tests that need no limits of their own, and a small photograph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import Image

from foveal import assets
from helpers.pictures import encoded
from helpers.services import Running, running


@pytest.fixture(scope="session")
def service() -> Iterator[Running]:
    """Segmentation and upscaling with ONNX Runtime: no torch is imported."""
    with running("efficientvit_b0.camvid", "up=efficientvit_sr.x2", "--runtime", "onnxruntime") as started:
        yield started


@pytest.fixture(scope="session")
def photo() -> bytes:
    """The bundled photograph, small, as a PNG file."""
    with Image.open(assets.FOLDER / "street.jpg") as image:
        return encoded(image.resize((160, 96)), "PNG")
