"""From an image file to a result: the same on torch and on the exported file, at any size, whole or in tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal import assets
from foveal.data.synthetic import shapes_sample
from foveal.images.reading import read_mask
from foveal.training.train import TrainResult


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG of odd size, as files come."""
    path = tmp_path_factory.mktemp("photo") / "shapes.jpg"
    Image.fromarray(shapes_sample(np.random.default_rng(7), (171, 233))[0]).save(path, quality=90)
    return path


def test_exported_file_gives_the_same_mask(run: TrainResult, exported: Path, photo: Path) -> None:
    live, file = foveal.load(run.folder)(photo), foveal.load(exported)(photo)
    assert live.mask.shape == file.mask.shape == (171, 233)
    assert (live.mask == file.mask).mean() >= 0.9999
    assert live.names == file.names
    assert np.abs(live.scores - file.scores).max() < 1e-3


def test_kinds_of_input_agree(exported: Path, photo: Path) -> None:
    """A path, a Pillow image and an array are one image; a list gives a list."""
    predictor = foveal.load(exported)
    with Image.open(photo) as image:
        image.load()
    results = predictor([str(photo), photo, image, np.asarray(image)])
    assert all((result.mask == results[0].mask).all() for result in results)


@pytest.mark.parametrize("size", [(1, 1), (20, 31), (32, 32), (33, 97), (64, 200)])
def test_any_size(exported: Path, run: TrainResult, size: tuple[int, int]) -> None:
    """Results are at the image's own size, also below the network's minimum."""
    image = shapes_sample(np.random.default_rng(1), size)[0]
    for predictor in (foveal.load(exported), foveal.load(run.best)):
        result = predictor(image)
        assert result.mask.shape == result.scores.shape == size


def test_one_tile_is_the_whole_image(exported: Path, photo: Path) -> None:
    predictor = foveal.load(exported)
    whole, tiled = predictor(photo), predictor(photo, tile=256)
    assert np.allclose(whole.logits, tiled.logits, atol=1e-5)
    assert (whole.mask == tiled.mask).all()


def test_tiles_cover_the_image_and_mostly_agree(exported: Path) -> None:
    """Every pixel is covered, and blending keeps most of the decisions that the whole image gives."""
    rng = np.random.default_rng(3)
    image = np.vstack([np.hstack([shapes_sample(rng)[0] for _ in range(4)]) for _ in range(3)])[:, :370]
    predictor = foveal.load(exported)
    whole, tiled = predictor(image), predictor(image, tile=128, overlap=64)
    assert tiled.mask.shape == (288, 370)
    assert np.isfinite(tiled.logits).all()
    assert (whole.mask == tiled.mask).mean() > 0.8


@pytest.mark.parametrize(
    "options", [{"tile": 50}, {"tile": 32}, {"tile": 128, "overlap": 128}, {"tile": 128, "overlap": -1}]
)
def test_impossible_tiles_are_refused(exported: Path, photo: Path, options: dict) -> None:
    with pytest.raises(foveal.InputError, match="tile must be a multiple of 32"):
        foveal.load(exported)(photo, **options)


def test_published_files_are_told_apart_by_shapes(tmp_path: Path) -> None:
    """A bare state dict is enough: family, variant, task and classes come from its shapes."""
    import torch

    model = foveal.create_model("efficientvit_b1", "segment", head="ade20k", num_classes=7, in_chans=3)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "some.pt")
    info = foveal.load(tmp_path / "some.pt").info
    assert (info.model, info.task, info.num_classes, info.options) == (
        "efficientvit_b1",
        "segment",
        7,
        {"head": "ade20k"},
    )
    classifier = foveal.create_model("efficientvit_b0", num_classes=5)
    torch.save(classifier.state_dict(), tmp_path / "other.pt")
    result = foveal.load(tmp_path / "other.pt")(np.zeros((50, 60, 3), np.uint8))
    assert result.top(1)[0][0].startswith("class ")
    assert result.scores.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("efficientvit_b0.camvdi", "did you mean 'efficientvit_b0.camvid'"),
        ("efficientvit_b0", "architecture without weights: use 'efficientvit_b0.camvid'"),
        ("missing.onnx", "missing.onnx: no such file"),
        ("missing.safetensors", "missing.safetensors: no such file or training run"),
    ],
)
def test_bad_references_are_explained(ref: str, message: str) -> None:
    with pytest.raises(foveal.FovealError, match=message):
        foveal.load(ref)


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        ("float16", "native and onnxruntime cannot run in float16"),
        ("bfloat16", "it runs the checkpoint in bfloat16"),  # as the native engine would, on request
    ],
)
def test_16_bits_predict_on_the_cpu(dtype: str, reason: str) -> None:
    """The runtime says the type, and nearly all pixels keep the class of float32."""
    with Image.open(assets.FOLDER / "street.jpg") as image:
        photo = np.asarray(image.resize((192, 128)))
    predictor = foveal.load("efficientvit_b0.camvid", device="cpu", dtype=dtype)
    assert predictor.runtime == f"torch on cpu, {dtype}: {reason}"
    expected, found = foveal.load("efficientvit_b0.camvid")(photo), predictor(photo)
    assert found.scores.dtype == np.float32
    assert (found.mask == expected.mask).mean() > (0.99 if dtype == "float16" else 0.95)


def test_foreign_onnx_file_is_refused(tmp_path: Path, exported: Path) -> None:
    import onnx

    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(foveal.CheckpointError, match="no Foveal description inside"):
        foveal.load(tmp_path / "foreign.onnx")
    (tmp_path / "garbage.onnx").write_bytes(b"not a graph")
    with pytest.raises(foveal.CheckpointError, match="it is text, not weights"):
        foveal.load(tmp_path / "garbage.onnx")


class TestBundledWeights:
    """What everybody gets with the package."""

    photo = assets.FOLDER / "street.jpg"
    ref = "efficientvit_b0.camvid"

    def test_agree_with_the_hand_made_label(self) -> None:
        expected = read_mask(assets.FOLDER / "street.label.png")
        labelled = expected != 255
        mask = foveal.load(self.ref)(self.photo).mask
        assert labelled.mean() > 0.5
        assert (mask[labelled] == expected[labelled]).mean() >= 0.80

    @pytest.mark.parametrize("runtime", ["native", "onnxruntime"])
    def test_exported_files_equal_torch_on_the_photograph(self, runtime: str) -> None:
        exported, torch = foveal.load(self.ref, runtime=runtime), foveal.load(self.ref, runtime="torch")
        assert exported.runtime.startswith(runtime)
        assert "torch" in torch.runtime
        assert (exported(self.photo).mask == torch(self.photo).mask).mean() >= 0.9999

    def test_come_with_a_card_and_stay_small(self) -> None:
        files = [assets.path(self.ref, suffix) for suffix in (".onnx", ".safetensors")]
        assert sum(path.stat().st_size for path in files) <= 5_000_000
        card = assets.path(self.ref, ".md").read_text(encoding="utf-8")
        assert "CamVid" in card
        assert "seed" in card

    def test_start_a_model_for_other_classes(self) -> None:
        """The backbone keeps its weights, the classifier starts fresh."""
        ours = foveal.create_model(self.ref)
        other = foveal.create_model("efficientvit_b0", "segment", weights="camvid", num_classes=3)
        a, b = ours.state_dict(), other.state_dict()
        assert b["head.classifier.weight"].shape[0] == 3
        assert all(a[key].equal(b[key]) for key in a if not key.startswith("head.classifier."))
