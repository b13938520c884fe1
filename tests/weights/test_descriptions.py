"""Descriptions inside weights are a stranger's: every value is checked before a model is built of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import foveal
from foveal import assets
from foveal.errors import CheckpointError, ConfigError, FovealError
from foveal.factory.described import check_size
from foveal.files import parse_json
from foveal.info import KEY, Labels, ModelInfo, Preprocess, info_of

Change = Callable[[dict[str, Any]], None]


def put(path: str, value: Any) -> Change:
    """Set the value at ``path``, keys with dots between them."""

    def change(data: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        for key in outer:
            data = data[key]
        data[last] = value

    return change


@pytest.fixture(scope="module")
def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return foveal.create_model("efficientvit_b0", "segment", num_classes=5)


@pytest.fixture
def described(segmenter: nn.Module, tmp_path: Path) -> Callable[[Change], Path]:
    """Write the weights with a changed description."""

    def write(change: Change) -> Path:
        data = json.loads(info_of(segmenter).to_json())
        change(data)
        save_file(segmenter.state_dict(), tmp_path / "m.safetensors", metadata={KEY: json.dumps(data)})
        return tmp_path / "m.safetensors"

    return write


NAMES = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("preprocess.std", [0, 1, 1], "std=0: give a number from"),
        ("preprocess.std", [1, 1], "3 means but 2 standard deviations"),
        ("preprocess.std", [1e-300, 1, 1], "std=1e-300"),
        ("preprocess.std", [True, 1, 1], "std"),
        ("preprocess.mean", [float("nan"), 0, 0], "mean=nan"),
        ("preprocess.mean", [0, 0, float("-inf")], "mean=-inf"),
        ("preprocess.mean", [0, 0, 10**400], "mean=1000"),
        ("preprocess.mean", 0.5, "mean=0.5"),
        ("preprocess.size", [10**6, 10**6], "size=1000000: give a number from 1 to 4096"),
        ("preprocess.size", [32], r"size=\[32\] is no pair"),
        ("preprocess.size", [0, 32], "size=0"),
        ("preprocess.max_side", 0, "max_side=0"),
        ("preprocess.max_side", "512", "max_side='512'"),
        ("preprocess.crop_ratio", 1e-9, "crop_ratio=1e-09"),
        ("preprocess.resample", "bicubik", "did you mean 'bicubic'"),
        ("preprocess.pad", True, "pad=True with size=None"),
        ("preprocess.pad", 1, "pad=1 is no bool"),
        ("preprocess.colour", 1, "unknown key 'colour'"),
        ("preprocess", [], "Preprocess is no JSON object"),
        ("num_classes", True, "num_classes=True is no int"),
        ("num_classes", -1, "num_classes=-1"),
        ("num_classes", 10**30, "num_classes=1000"),
        ("num_classes", 5.0, "num_classes=5.0 is no int"),
        ("in_chans", 0, "in_chans=0"),
        ("output_stride", 0, "output_stride=0"),
        ("task", "segmnet", "did you mean 'segment'"),
        ("model", "efficientvit_b0.camvid", "no name of an architecture"),
        ("labels.names", NAMES[:4], "4 class names for num_classes=5"),
        ("labels.names", [1, 2, 3, 4, 5], "names="),
        ("labels.palette", [[0, 0, 0.5]] * 5, "palette="),
        ("mask_thresholds", [0.5], "1 mask_thresholds"),
        ("mask_thresholds", [0.5, 2], "mask_thresholds=2"),
        ("options", {"weights": "/etc/passwd"}, "option 'weights' is no option"),
        ("options", {"head_depth": float("inf")}, "option head_depth=inf"),
        ("options", {"scales": [[1] * 2000]}, "option scales"),
        ("options", {"stage_blocks": {"3": ["scan"]}}, "option stage_blocks"),
        ("notes", {"config": []}, "notes: config"),
    ],
)
def test_values_out_of_range_are_named(described: Callable[[Change], Path], path: str, value: Any, says: str) -> None:
    file = described(put(path, value))
    with pytest.raises(ConfigError, match=rf"m\.safetensors: model description cannot be read \(.*{says}") as error:
        foveal.load_model(file)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', "[" * 40 + "]" * 40, "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "{'a': 1}", "[1]", "", "\0"],
)
def test_json_that_is_no_description(text: str) -> None:
    with pytest.raises(ConfigError, match="model description cannot be read"):
        ModelInfo.from_json(text)


def test_json_is_bounded() -> None:
    assert parse_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    with pytest.raises(ValueError, match="above the limit of 10"):
        parse_json("[1, 2, 3, 4]", 10)


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"options": {"head_depth": 1_000_000}}, CheckpointError, "asks for a larger model than the file holds"),
        ({"options": {"head_width": 100_000}}, CheckpointError, "asks for a larger model than the file holds"),
        ({"options": {"scales": [3] * 200}}, CheckpointError, "asks for a larger model than the file holds"),
        ({"num_classes": 1_000_000}, CheckpointError, "asks for a larger model than the file holds"),
        ({"in_chans": 100_000}, CheckpointError, "asks for a larger model than the file holds"),
        ({"model": "efficientvit_l2"}, CheckpointError, "asks for a larger model than the file holds"),
        ({"options": {"head_depth": True}}, ConfigError, "head_depth=True"),
        ({"options": {"scales": "abc"}}, ConfigError, "scales: expected a list"),
        ({"options": {"attention_eps": "x"}}, ConfigError, "attention_eps: expected float"),
        ({"options": {"global_attention": []}}, ConfigError, "global_attention: expected bool"),
        ({"options": {"stage_blocks": {"3": "scna"}}}, ConfigError, "stage 3: 'scna'; did you mean 'scan'"),
        ({"options": {"nonsense": 1}}, ConfigError, "has no option 'nonsense'"),
        ({"model": "efficientvit_b9"}, ConfigError, "unknown model 'efficientvit_b9'"),
        ({"options": {"head_depth": 2}}, CheckpointError, "does not fit the model"),
        ({"num_classes": 4}, CheckpointError, "does not fit the model"),
    ],
)
def test_what_the_file_does_not_hold_is_not_built(
    described: Callable[[Change], Path], changes: dict[str, Any], kind: type[FovealError], says: str
) -> None:
    file = described(lambda data: data.update(changes))
    with pytest.raises(kind, match=rf"m\.safetensors.*{says}"):
        foveal.load_model(file)
    if "does not fit" not in says:
        with pytest.raises(kind, match=says):
            foveal.create_model("efficientvit_b0", "segment", num_classes=5, weights=file)


def test_a_model_that_cannot_be_built_is_a_damaged_file() -> None:
    def build() -> nn.Module:
        return nn.Linear("x", 1)  # type: ignore[arg-type]

    with pytest.raises(CheckpointError, match="file: no model can be built as its description says"):
        check_size(build, {}, "file")


def test_names_have_no_control_characters() -> None:
    """They reach terminals, cards and reports; words that need joiners keep them."""
    assert Labels(("a\x1b[31mb", "x\u200cy", "x\u202ey\n")).names == (
        "a\ufffd[31mb",
        "x\u200cy",
        "x\ufffdy\ufffd",
    )
    assert ModelInfo(tag="a\nb", licence="MIT\x07").ref == ".a\ufffdb"


def test_python_values_are_checked_too() -> None:
    for wrong in ({"std": (1.0, 0.0, 1.0)}, {"mean": (0.0,)}, {"size": (9000, 9000)}, {"crop_ratio": -1.0}):
        with pytest.raises(ConfigError):
            Preprocess(**wrong)  # type: ignore[arg-type]
    assert Preprocess(mean=(np.float32(0.5),) * 4, std=(1,) * 4).std == (1,) * 4


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("preprocess.std", [0, 1, 1], "std=0"),
        ("num_classes", 7, "says 7 classes, its 'logits' is"),
        ("in_chans", 4, "(say|means)"),
    ],
)
def test_exported_files_are_checked_too(tmp_path: Path, path: str, value: Any, says: str) -> None:
    model = onnx.load(assets.path("efficientvit_b0.camvid", ".onnx"))
    (entry,) = [entry for entry in model.metadata_props if entry.key == KEY]
    data = json.loads(entry.value)
    data["labels"] = {"names": [], "palette": []}
    put(path, value)(data)
    entry.value = json.dumps(data)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(FovealError, match=rf"m\.onnx.*{says}"):
        foveal.load(tmp_path / "m.onnx")


def test_the_ignored_id_is_no_class() -> None:
    """Also of models whose classes have no names."""
    assert [ModelInfo(task="segment", num_classes=count).ignored for count in (19, 255, 256)] == [255, 255, 65535]
