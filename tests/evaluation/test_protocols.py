"""Published protocols against a straightforward computation with torch's interpolation and numpy's histogram."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal.data.labels import CITYSCAPES
from foveal.data.segmentation import SegmentationData
from foveal.evaluation.protocols import PROTOCOLS, bicubic_argmax
from foveal.images.resampling import resize_cubic
from foveal.info import IMAGENET_MEAN, IMAGENET_STD, Labels, ModelInfo, Preprocess
from foveal.prediction.predictor import Predictor

STRIDE = 8


class Projection:
    """A minimal network: means of 8 x 8 pixels, a 1 x 1 convolution, a cosine."""

    def __init__(self, classes: int) -> None:
        self.weight = torch.randn(classes, 3, generator=torch.Generator().manual_seed(0)) * 4
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self.shapes.append(batch.shape)
        return self.logits(torch.from_numpy(batch)).numpy()

    def logits(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.cos(torch.einsum("kc,bchw->bkhw", self.weight, F.avg_pool2d(batch, STRIDE)))


def written(root: Path, split: str, sizes: list[tuple[int, int]], labels: Labels) -> Path:
    """Photograph-like images and masks with ignored pixels, in folders."""
    rng = np.random.default_rng(0)
    (root / split).mkdir(parents=True)
    (root / f"{split}annot").mkdir()
    for index, (height, width) in enumerate(sizes):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
        image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        image = np.clip(image + rng.integers(-40, 40, image.shape), 0, 255).astype(np.uint8)
        mask = rng.integers(0, len(labels.names), (8, 8), dtype=np.uint8)
        mask[0, :3] = 255
        Image.fromarray(image).save(root / split / f"{index}.png")
        Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST).save(
            root / f"{split}annot" / f"{index}.png"
        )
    (root / "dataset.yaml").write_text(yaml.safe_dump({"names": list(labels.names)}))
    return root


def straightforward(root: Path, split: str, logits_of, size_of, classes: int) -> NDArray[np.int64]:
    """Resize as torch does, normalise, run, upsample bicubically to the label's size, argmax, histogram."""
    matrix = np.zeros((classes, classes), np.int64)
    data = SegmentationData.open(root, [split])
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    for image, target in (data[i] for i in range(len(data))):
        x = torch.tensor(image).permute(2, 0, 1)[None].double()
        x = F.interpolate(x, size=size_of(*target.shape), mode="bicubic", align_corners=False).round().clamp(0, 255)
        logits = logits_of(((x / 255 - mean) / std).float()).double()
        logits = F.interpolate(logits, size=target.shape, mode="bicubic", align_corners=False)
        predicted = logits[0].argmax(0).numpy()
        valid = target != 255
        matrix += np.histogram2d(target[valid], predicted[valid], bins=[np.arange(classes + 1)] * 2)[0].astype(int)
    return matrix


def ade_size(height: int, width: int) -> tuple[int, int]:
    """As the specification of the published evaluation words it."""
    long = math.ceil(max(height, width) * 512 / min(height, width) / 32) * 32
    return (512, long) if height < width else (long, 512)


CASES = {
    "cityscapes": (CITYSCAPES, [(128, 256), (100, 170), (1024, 2048)], lambda height, width: (1024, 2048)),
    "ade20k": (Labels(tuple(f"thing {i}" for i in range(150))), [(60, 100), (100, 75), (64, 64), (300, 342)], ade_size),
}


def predictor(classes: int, network: Projection, **preprocess) -> Predictor:
    info = ModelInfo(task="segment", num_classes=classes, output_stride=STRIDE, preprocess=Preprocess(**preprocess))
    return Predictor(network, info, "a test's projection")


@pytest.mark.parametrize("name", CASES)
def test_equal_to_a_straightforward_computation(name: str, tmp_path: Path) -> None:
    """The confusion matrix is equal except for ties, at the published input sizes; the model's own are ignored."""
    labels, sizes, size_of = CASES[name]
    network = Projection(len(labels.names))
    root = written(tmp_path, "val", sizes, labels)
    expected = straightforward(root, "val", network.logits, size_of, len(labels.names))
    model = predictor(len(labels.names), network, max_side=480)
    found = foveal.evaluate(model, root, protocol=name)
    assert network.shapes == [(1, 3, *size_of(*size)) for size in sizes]
    assert found.protocol == name
    assert found.split == "val"
    assert expected.sum() == found.scores.confusion.sum()
    assert (expected.sum(0) > 0).sum() > 10  # a prediction of many classes
    moved = np.abs(expected - found.scores.confusion).sum() / 2
    assert moved <= 1e-4 * expected.sum()
    # The check is sensitive: the plain protocol at one input size changes a hundred times as many pixels.
    plain = foveal.evaluate(predictor(len(labels.names), network), root, split="val", size=size_of(*sizes[0]))
    assert np.abs(expected - plain.scores.confusion).sum() / 2 > 1e-2 * expected.sum()


def test_a_real_model_by_its_reference(tmp_path: Path) -> None:
    """End to end, with a model that is created, saved and loaded: 150 classes at 512 x 544."""
    from foveal.info import info_of
    from foveal.weights.checkpoints import save_checkpoint

    torch.manual_seed(0)
    model = foveal.create_model("efficientvit_b0", task="segment", num_classes=150).eval()
    with torch.no_grad():  # an untrained one says one class everywhere
        found = model(torch.randn(1, 3, 64, 64), upsample=False)
        bias = dict(model.named_parameters())["head.classifier.bias"]
        bias -= found.mean((0, 2, 3))
    save_checkpoint(tmp_path / "model.safetensors", model.state_dict(), info_of(model))
    labels = CASES["ade20k"][0]
    root = written(tmp_path / "data", "val", [(300, 310)], labels)

    def logits_of(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(x, upsample=False)

    expected = straightforward(root, "val", logits_of, ade_size, 150)
    scores = foveal.evaluate(tmp_path / "model.safetensors", root, protocol="ade20k").scores
    assert (expected.sum(0) > 0).sum() > 5
    assert np.abs(expected - scores.confusion).sum() / 2 <= 2e-3 * expected.sum()


@given(seed=st.integers(0, 99), source=st.integers(1, 40), length=st.integers(1, 90), axis=st.sampled_from([0, 1, 2]))
def test_cubic_resizing_is_torchs(seed: int, source: int, length: int, axis: int) -> None:
    array = np.random.default_rng(seed).normal(size=[source if axis == i else 3 for i in range(3)]).astype(np.float32)
    line = torch.from_numpy(np.moveaxis(array, axis, -1)).double()[None]
    expected = F.interpolate(line, size=(3, length), mode="bicubic", align_corners=False)[0].numpy()
    assert np.allclose(np.moveaxis(resize_cubic(array, length, axis), axis, -1), expected, atol=2e-5)


def test_argmax_in_bands_is_the_argmax_of_all() -> None:
    logits = np.random.default_rng(0).normal(size=(300, 7, 9)).astype(np.float32)
    expected = resize_cubic(resize_cubic(logits, 71, 2), 50, 1).argmax(0)
    found = bicubic_argmax(logits, (50, 71))
    assert (found != expected).mean() < 1e-3
    assert found.max() > 255


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (683, 512, (704, 512)),
        (512, 683, (512, 704)),
        (256, 256, (512, 512)),
        (480, 640, (512, 704)),
        (2, 3, (512, 768)),
    ],
)
def test_sizes_of_ade20k(height: int, width: int, expected: tuple[int, int]) -> None:
    assert PROTOCOLS["ade20k"].input_size(height, width) == expected


def test_what_does_not_fit_is_explained(tmp_path: Path) -> None:
    network = Projection(4)
    root = written(tmp_path, "val", [(64, 64)], Labels(("a", "b", "c", "d")))
    model = predictor(4, network)
    with pytest.raises(
        foveal.ConfigError, match="'cityscapes' is for data with its 19 classes, this has 4: use 'plain'"
    ):
        foveal.evaluate(model, root, protocol="cityscapes")
    with pytest.raises(foveal.ConfigError, match=r"unknown protocol 'cityscape'; did you mean 'cityscapes'\?"):
        foveal.evaluate(model, root, protocol="cityscape")
    with pytest.raises(foveal.ConfigError, match="leave size out"):
        foveal.evaluate(model, root, protocol="ade20k", size=(64, 64))
    with pytest.raises(foveal.ConfigError, match="tiles see images at their full size: leave size or tile out"):
        foveal.evaluate(model, root, size=(64, 64), tile=64)


def test_a_file_that_upsamples_by_itself_is_refused(upsampling: Path) -> None:
    with pytest.raises(foveal.ConfigError, match="export without --upsample"):
        PROTOCOLS["cityscapes"].prepare_predictor(foveal.load(upsampling))
