"""Promptable models as ONNX files: the same masks, SAM's contract, no torch, and files that belong together."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import foveal
from foveal.errors import CheckpointError, ExportError, InputError
from foveal.factory.create import create_model
from foveal.prediction.predictor import Predictor
from foveal.prediction.torch_runner import TorchPrompter
from foveal.weights.checkpoints import save_checkpoint
from helpers import golden
from helpers.narrow import registered
from helpers.pictures import image_of_noise


def test_embeddings_of_other_weights_are_refused(convolutional: Any, exported: Path, tmp_path: Path) -> None:
    """Folded, in half precision and exported, a model is the same; after more training it is another one."""
    file = save_as(convolutional, tmp_path / "one.safetensors")
    path = foveal.load(file).encode(image_of_noise()).save(tmp_path / "seen.npz")
    for same in (foveal.load(file, dtype="bfloat16"), foveal.load(exported)):
        assert same.open_embedding(path).size == (120, 160)
    trained = copy.deepcopy(convolutional)
    with torch.no_grad():
        trained.image_encoder.neck.norm.bias += 0.01
    other = foveal.load(save_as(trained, tmp_path / "two.safetensors"))
    told = "an embedding of efficientvit_convolutional with other weights: encode the image again"
    with pytest.raises(InputError, match=told):
        other.open_embedding(path)


def save_as(model: Any, path: Path) -> Path:
    save_checkpoint(path, model.state_dict(), model.foveal_info)
    return path


@pytest.fixture(scope="module")
def convolutional() -> Iterator[Any]:
    """A small promptable model whose encoder has no attention: tracing that is tested elsewhere, and takes long."""
    with registered("efficientvit_convolutional", attention=False) as name:
        yield golden.fill(create_model(name, "prompt").double()).float()


@pytest.fixture(scope="module")
def shallow(convolutional: Any) -> Any:
    """The same encoder, and a decoder with one block: tracing takes seconds for each."""
    model = copy.deepcopy(convolutional)
    del model.mask_decoder.transformer.layers[1]
    return model


@pytest.fixture(scope="module")
def exported(shallow: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = foveal.export(shallow, output=tmp_path_factory.mktemp("onnx") / "small.onnx")
    assert [path.name for path in (report.path, *report.extra_files)] == [
        "small.encoder.onnx", "small.decoder.onnx", "small.prompts.onnx",
    ]  # fmt: skip
    assert report.max_difference <= 1e-4
    return report.path


def test_onnx_gives_the_same_masks(shallow: Any, exported: Path) -> None:
    there = foveal.load(exported).encode(image_of_noise())
    here = Predictor(TorchPrompter(shallow), shallow.foveal_info, "torch").encode(image_of_noise())
    point: dict[str, Any] = {"points": [[60, 50]], "labels": [1]}
    box = [20, 30, 110, 100]
    earlier = here.prompt(**point).low_res[0, 1]
    asked: list[dict[str, Any]] = [point, {"boxes": box}, {**point, "boxes": box}, {**point, "masks": earlier}]
    asked.append({"boxes": [box, [1, 1, 50, 50], [3, 3, 90, 90]], "multimask": False})
    for prompt in asked:
        a, b = here.prompt(**prompt), there.prompt(**prompt)
        assert (a.masks & b.masks).sum() / max(1, (a.masks | b.masks).sum()) >= 0.999
        np.testing.assert_allclose(a.iou, b.iou, atol=1e-4)


def test_the_decoder_keeps_sams_contract(shallow: Any, exported: Path) -> None:
    """As other programs call it: names, shapes, a padding point, masks at the image's size."""
    session = onnxruntime.InferenceSession(exported.with_name("small.decoder.onnx"))
    assert [entry.name for entry in session.get_inputs()] == [
        "image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size",
    ]  # fmt: skip
    assert [entry.name for entry in session.get_outputs()] == ["masks", "iou_predictions", "low_res_masks"]
    here = Predictor(TorchPrompter(shallow), shallow.foveal_info, "torch").encode(image_of_noise())
    found: Any = session.run(
        None,
        {
            "image_embeddings": here.features,
            "point_coords": np.array([[[60 * 6.4, 50 * 6.4], [0, 0]]], np.float32),
            "point_labels": np.array([[1, -1]], np.float32),
            "mask_input": np.zeros((1, 1, 256, 256), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array([120, 160], np.float32),
        },
    )
    masks, iou, low_res = found
    expected = here.prompt(points=[[60, 50]], labels=[1])
    assert masks.shape == (1, 4, 120, 160)
    np.testing.assert_allclose(masks[0, 1:], expected.logits, atol=1e-3)
    np.testing.assert_allclose(iou[0, 1:], expected.iou, atol=1e-4)
    np.testing.assert_allclose(low_res[:, 1:], expected.low_res, atol=1e-3)


def test_prompting_an_exported_model_needs_no_torch(exported: Path) -> None:
    code = (
        "import sys, numpy, foveal\n"
        f"answer = foveal.load({str(exported)!r}).encode(numpy.zeros((40, 60, 3), 'uint8')).prompt([[3, 4]], [1])\n"
        "print(answer.masks.shape, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "(3, 40, 60) False"


def test_a_part_of_an_export_is_not_enough(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"encoder\.onnx"):
        foveal.load(exported.with_name("small.decoder.onnx"))
    (tmp_path / exported.name).write_bytes(exported.read_bytes())
    with pytest.raises(CheckpointError, match=r"small\.decoder\.onnx is missing in its folder"):
        foveal.load(tmp_path / exported.name)


@pytest.mark.long
def test_an_export_is_whole_or_not_there(shallow: Any, tmp_path: Path) -> None:
    (tmp_path / "small.prompts.onnx").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*small\.prompts\.onnx"):
        foveal.export(shallow, output=tmp_path / "small.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["small.prompts.onnx"]
    blind = copy.deepcopy(shallow)
    blind.mask_decoder.iou_token.weight.data.fill_(torch.nan)
    with pytest.raises(ExportError, match="the decoder differs from the model by nan"):
        foveal.export(blind, output=tmp_path / "blind.onnx")
    assert not list(tmp_path.glob("*blind*"))
