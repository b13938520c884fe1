"""Promptable models with the native engine: the same embeddings and masks as eager torch, from exported files too."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal.engine.lowering import make_plan
from foveal.errors import CheckpointError
from foveal.prediction.exported import PARTS
from foveal.prediction.native_runner import NativePrompter, open_native


@pytest.fixture(scope="module")
def model() -> Any:
    """A small promptable model with weights that are not symmetric."""
    torch.manual_seed(0)
    model: Any = foveal.create_model("efficientvit_b0", "prompt").eval()
    for parameter in model.mask_decoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def files(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported files; the export compares each with the model."""
    report = foveal.export(model, "native", output=tmp_path_factory.mktemp("native") / "b0.foveal")
    assert [path.name for path in (report.path, *report.extra_files)] == [f"b0.{part}.foveal" for part in PARTS]
    assert report.max_difference < 1e-5
    return report.path


def test_prompts_equal_float64(model: Any, files: Path) -> None:
    """Clicks and boxes, several at once, and with masks."""
    runner = open_native(str(files), "cpu", "float32", 2).runner
    assert isinstance(runner, NativePrompter)
    assert runner.encoder_id == model.image_encoder.fingerprint()
    exact, rng = copy.deepcopy(model).double(), np.random.default_rng(0)
    embedding = rng.standard_normal((1, 256, 64, 64)).astype(np.float32)
    for count, labels, with_masks in ((1, [1, -1], False), (3, [1, 0, 2, 3], False), (2, [2, 3], True)):
        coords = rng.uniform(0, 1024, (count, len(labels), 2)).astype(np.float32)
        kinds = np.tile(np.array(labels), (count, 1))
        masks = 5 * rng.standard_normal((count, 1, 256, 256)).astype(np.float32) if with_masks else None
        low_res, iou = runner.decode(embedding, coords, kinds, masks, 0.0)
        encoder = exact.prompt_encoder
        with torch.inference_mode():
            sparse = encoder.tokens(torch.from_numpy(coords).double(), torch.from_numpy(kinds))
            dense = encoder.dense(None if masks is None else torch.from_numpy(masks).double())
            image = torch.from_numpy(embedding).double()
            expected = exact.mask_decoder.all_masks(image, encoder.get_dense_pe(), sparse, dense)
        for output, reference in zip((low_res, iou), expected, strict=True):
            assert output.shape == tuple(reference.shape)
            assert np.abs(output - reference.numpy()).max() <= 1e-5 * reference.abs().max().item()


def test_prompters_are_copied_and_pickled(model: Any) -> None:
    runner = NativePrompter([make_plan(model, part) for part in PARTS], 1)
    other: NativePrompter = pickle.loads(pickle.dumps(runner))
    assert copy.deepcopy(runner) is runner
    embedding = np.ones((1, 256, 64, 64), np.float32)
    point = np.full((1, 1, 2), 300, np.float32), np.ones((1, 1), np.int64), None, 0.0
    for a, b in zip(runner.decode(embedding, *point), other.decode(embedding, *point), strict=True):
        np.testing.assert_array_equal(a, b)


def test_missing_parts_are_named(files: Path, tmp_path: Path) -> None:
    alone = tmp_path / files.name
    alone.write_bytes(files.read_bytes())
    with pytest.raises(CheckpointError, match=r"b0\.prompts\.foveal is missing"):
        open_native(str(alone), "cpu", "float32", None)
    with pytest.raises(CheckpointError, match=r"give its NAME\.encoder\.foveal"):
        open_native(str(files.with_name("b0.prompts.foveal")), "cpu", "float32", None)
