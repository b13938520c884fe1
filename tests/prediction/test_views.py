"""Test-time augmentation: the mean over mirrored and resized copies of an image."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import foveal
from foveal import assets
from foveal.errors import ConfigError
from foveal.images.reading import read_image
from foveal.info import Labels, ModelInfo, Preprocess
from foveal.prediction.predictor import Predictor

STREET = assets.path("street", ".jpg")


def predictor(stride: int = 4) -> Predictor:
    """A network whose class scores are the channels of the image, averaged over each stride."""

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        height, width = (-(-side // stride) * stride for side in batch.shape[2:])
        edges = [(0, 0), (0, 0), (0, height - batch.shape[2]), (0, width - batch.shape[3])]
        padded = np.pad(batch, edges, mode="edge")
        cells = padded.reshape(*batch.shape[:2], height // stride, stride, width // stride, stride)
        return 8 * cells.mean((3, 5))

    preprocess = Preprocess((0.0,) * 3, (1.0,) * 3)
    info = ModelInfo("made", "segment", 3, preprocess=preprocess, output_stride=stride)
    return Predictor(run, info.replace(labels=Labels(("red", "green", "blue"))), "")


def picture(height: int = 61, width: int = 90) -> NDArray[np.uint8]:
    """Smooth colours, different on the left and on the right."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 255 - 255 * x / width], -1).astype(np.uint8)


def test_a_network_without_a_side_gives_its_own_result() -> None:
    """A mirror image, of a width that is no multiple of the stride, comes back to its place."""
    image, model = picture(), predictor()
    plain, mean = model.segment(image), model.segment(image, flip=True)
    assert mean.logits.shape == plain.logits.shape
    np.testing.assert_allclose(mean.scores, plain.scores, atol=0.02)
    assert (mean.mask == plain.mask).mean() > 0.98
    shifted = model.segment(image[:, ::-1], flip=True)
    assert (shifted.mask[:, ::-1] == mean.mask).mean() > 0.98


def test_scales_are_averaged_on_the_grid_of_the_largest() -> None:
    image, model = picture(), predictor()
    plain, mean = model.segment(image), model.segment(image, scales=[0.5, 1, 2])
    assert mean.logits.shape == (3, -(-122 // 4), -(-180 // 4))
    assert (mean.mask == plain.mask).mean() > 0.97
    np.testing.assert_allclose(np.exp(mean.logits).sum(0), 1, atol=1e-4)  # logarithms of probabilities


def test_one_scale_is_the_image_resized() -> None:
    """Without a mean, too: the same as the predictor on an image of that size."""
    model, image = foveal.load("efficientvit_b0.camvid", runtime="onnxruntime"), read_image(STREET)[:320, :512]
    found = model.segment(image, scales=[0.5])
    assert found.logits.shape[1:] == (20, 32)
    tiles = model.segment(image, tile=128, overlap=32, flip=True)
    assert tiles.logits.shape[1:] == (40, 64)
    assert (tiles.mask == model.segment(image, tile=128, overlap=32).mask).mean() > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": []}, r"scales=\[\]: give 1 to 16 numbers of 0\.1 to 4\.0"),
        ({"scales": [1, 9]}, r"scales=\[1, 9\]: give 1 to 16 numbers"),
        ({"scales": ["x"]}, "give 1 to 16 numbers"),
    ],
)
def test_impossible_scales(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        predictor().segment(picture(), **options)  # type: ignore[arg-type]


def test_only_segmentation_is_averaged() -> None:
    with pytest.raises(ConfigError, match="the mean over copies is for segmentation"):
        foveal.load("efficientvit_sr.x2")(picture(), flip=True)
    with pytest.raises(ConfigError, match="copies of images run one by one"):
        predictor()([picture()] * 2, flip=True, batch_size=2)
