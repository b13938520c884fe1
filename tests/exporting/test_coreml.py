"""Core ML packages: what can be checked without Apple's computers."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import foveal
from foveal.exporting.coreml import _attention
from foveal.info import KEY, ModelInfo
from helpers.narrow import narrow, registered

coremltools = pytest.importorskip("coremltools")
FLOAT16, FLOAT32 = 10, 11  # of MIL's DataType
pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="there the export runs the package")


def read_spec(path: Path) -> Any:
    return coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()


def shapes(features: Any) -> dict[str, list[int]]:
    return {feature.name: list(feature.type.multiArrayType.shape) for feature in features}


def operations(spec: Any) -> Counter[str]:
    """How often each operation of the program occurs."""
    blocks = [block for f in spec.mlProgram.functions.values() for block in f.block_specializations.values()]
    return Counter(operation.type for block in blocks for operation in block.operations)


def output_types(spec: Any) -> dict[str, set[int]]:
    """Types of the outputs of each operation of the program."""
    types: dict[str, set[int]] = {}
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for operation in block.operations:
                if operation.type != "const":
                    types.setdefault(operation.type, set()).add(operation.outputs[0].type.tensorType.dataType)
    return types


@pytest.mark.long
def test_a_segmentation_package(tmp_path: Path) -> None:
    report = foveal.export(narrow("segment"), "coreml", output=tmp_path / "a.mlpackage", input_size=(64, 96), batch=2)
    assert "not compared with the model: Core ML runs on macOS only" in str(report)
    assert report.to_json()["max_difference"] is None
    spec = read_spec(report.path)
    assert shapes(spec.description.input) == {"image": [2, 3, 64, 96]}
    assert shapes(spec.description.output) == {"logits": [2, 3, 16, 24]}
    assert ModelInfo.from_json(spec.description.metadata.userDefined[KEY]).task == "segment"
    assert operations(spec)["conv"] > 10
    assert report.bytes == sum(file.stat().st_size for file in report.path.rglob("*") if file.is_file())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mlpackage", "a.mlpackage.json"]
    with pytest.raises(foveal.DependencyError, match=r"a\.mlpackage: coreml cannot run here: Core ML runs on macOS"):
        foveal.load(report.path)


@pytest.mark.long
def test_a_package_replaces_an_older_one_and_is_half_the_size(tmp_path: Path) -> None:
    path = tmp_path / "a.mlpackage"
    full = foveal.export(narrow(), "coreml", output=path, input_size=(64, 64))
    half = foveal.export(narrow(), "coreml", output=path, input_size=(64, 64), half=True)
    assert (full.dtype, half.dtype) == ("float32", "float16")
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    assert weights.stat().st_size < 0.65 * full.bytes
    assert half.kept_float == ("backbone.stages.2.1.attention", "head", "head.norm")
    types = output_types(read_spec(path))
    wide = {"real_div", "reduce_sum", "reduce_mean", "layer_norm", "matmul"}
    assert {name for name, kinds in types.items() if FLOAT32 in kinds} - {"cast", "add", "mul"} == wide
    assert (types["conv"], types["real_div"], types["layer_norm"]) == ({FLOAT16}, {FLOAT32}, {FLOAT32})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mlpackage", "a.mlpackage.json"]


@pytest.mark.long
def test_the_packages_of_a_promptable_model(tmp_path: Path) -> None:
    with registered() as name:
        report = foveal.export(foveal.create_model(name, "prompt"), "coreml", output=tmp_path / "a.mlpackage")
    encoder, prompts, masks = (read_spec(path) for path in (report.path, *report.extra_files))
    assert shapes(encoder.description.input) == {"image": [1, 3, 256, 256]}
    assert set(shapes(prompts.description.input)) == {"image_embeddings", "point_coords", "point_labels"}
    assert set(shapes(prompts.description.output)) == {"low_res_masks", "iou_predictions"}
    for feature in (*prompts.description.input, *masks.description.input):
        ranges = feature.type.multiArrayType.shapeRange.sizeRanges
        assert all(size.lowerBound == 1 for size in ranges if size.upperBound > 256)
        assert min(feature.type.multiArrayType.shape) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "edifice_efficient_vit",
        "edifice_mamba_vision",
        "efficientnet_b0",
        "efficientvit_b0",
        "efficientvit_l0",
        "efficientvit_m0",
        "mambavision_t",
        "mobilenetv3_small_100",
        "tinyvit_5m",
        "vit_tiny",
    ],
)
def test_packages_of_every_family(name: str, tmp_path: Path) -> None:
    """With windows that reach beyond the map, for those that have windows."""
    model = foveal.create_model(name, "segment", num_classes=3).eval()
    report = foveal.export(model, "coreml", output=tmp_path / "a.mlpackage", input_size=(64, 96))
    assert shapes(read_spec(report.path).description.input) == {"image": [1, 3, 64, 96]}


@pytest.mark.parametrize("kind", ["none", "biases", "mask"])
def test_attention_is_that_of_torch(kind: str) -> None:
    biases = torch.randn(2, 5, 7, dtype=torch.float64)
    mask = {"none": None, "biases": biases, "mask": biases >= biases.median(-1, keepdim=True).values}[kind]
    q, k, v = (torch.randn(3, 2, length, 4, dtype=torch.float64) for length in (5, 7, 7))
    for scale in (None, 0.3):
        expected = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
        torch.testing.assert_close(_attention(q, k, v, mask, scale=scale), expected, rtol=0, atol=1e-12)
    with pytest.raises(NotImplementedError):
        _attention(q, k, v, is_causal=True)
