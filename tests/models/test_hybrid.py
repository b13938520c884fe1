"""Backbones with the blocks of another family in some stages: shapes, weights, files, graphs, streaming, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import foveal
from foveal.data.synthetic import write_shapes
from foveal.engine.engine import Engine
from foveal.engine.lowering import make_plan
from foveal.errors import CheckpointError, ConfigError
from foveal.factory.create import create_model
from foveal.info import info_of
from foveal.layers.stage_blocks import STAGE_BLOCKS
from foveal.streaming.passes import coarsest_stride, plan
from foveal.streaming.run import run
from foveal.streaming.trace import derive
from foveal.weights.checkpoints import save_checkpoint
from foveal.weights.loading import fill
from foveal.weights.reading import as_checkpoint
from helpers.runs import SETTINGS
from helpers.streams import ArrayInput, randomised

NARROW: dict[str, Any] = {"embed_dim": (8, 8, 16, 16, 32), "depths": (0, 1, 1, 2, 1)}
SEGMENT: dict[str, Any] = {**NARROW, "task": "segment", "num_classes": 3, "head_width": 8, "head_depth": 1}
MAMBA: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 2, 2), "num_heads": (2, 2), "stem_dim": 8}
#: A stage of each kind of stage: name, options, number of the stage, kind that is new there.
FAMILIES: list[tuple[str, dict[str, Any], int, str]] = [
    ("efficientvit_b0", NARROW, 3, "window_attention"),
    ("efficientvit_b0", NARROW, 4, "scan"),
    ("efficientvit_b0", NARROW, 2, "linear_attention"),
    ("efficientvit_b0", NARROW, 4, "softmax_attention"),
    ("efficientvit_b0", NARROW, 3, "convolution"),
    ("mobilenetv2_100", {}, 3, "linear_attention"),  # a stage of two widths
    ("mambavision_t", MAMBA, 3, "linear_attention"),
    ("mambavision_t", MAMBA, 2, "scan"),
    ("vit_tiny", {"shared_layers": 2}, 1, "scan"),
    ("efficientvit_m0", {}, 2, "convolution"),
]


def segmenter(kind: str, stage: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    return randomised(create_model("efficientvit_b0", **SEGMENT, stage_blocks={stage: kind}, **options))


def equal_keys(model: nn.Module, other: nn.Module) -> set[str]:
    first, second = model.state_dict(), other.state_dict()
    return {key for key in first if key in second and torch.equal(first[key], second[key])}


@pytest.mark.parametrize(("name", "options", "stage", "kind"), FAMILIES)
def test_only_the_blocks_of_the_stage_change(name: str, options: dict[str, Any], stage: int, kind: str) -> None:
    """Odd sizes keep their maps, every parameter gets a gradient, and what the parent also has keeps its names."""
    parent = create_model(name, features_only=True, **options)
    model = create_model(name, features_only=True, stage_blocks={stage: kind}, **options)
    x = torch.randn(2, 3, 75, 101)
    maps = model(x)
    assert [y.shape for y in maps] == [y.shape for y in parent(x)]
    assert model.feature_info == parent.feature_info
    torch.stack([y.square().mean() for y in maps]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    changed = {key.split(".")[1] for key in model.state_dict().keys() ^ parent.state_dict().keys()}
    assert changed == {str(stage - 1)}
    report = fill(model, as_checkpoint(parent.state_dict()), finetune=True)
    assert all(key.startswith(f"stages.{stage - 1}.") for key in report.reinitialized)
    assert equal_keys(model, parent) == model.state_dict().keys() - set(report.reinitialized)


def test_a_stage_of_this_kind_is_left_as_it_is() -> None:
    model = create_model("efficientvit_b0", features_only=True, stage_blocks={1: "convolution", 4: "linear_attention"})
    assert model.state_dict().keys() == create_model("efficientvit_b0", features_only=True).state_dict().keys()
    assert info_of(model).options == {}


def test_options_of_the_parent_reach_its_new_blocks() -> None:
    options: dict[str, Any] = {**NARROW, "features_only": True}
    model: Any = create_model("efficientvit_b0", stage_blocks={2: "linear_attention"}, scales=(3, 5), **options)
    assert len(model.stages[1][1].attention.aggregate) == 2
    scanning: Any = create_model("efficientvit_b0", stage_blocks={4: "scan"}, **options)
    assert "A_log" in scanning.undecayed
    options = {**MAMBA, "features_only": True, "window_size": (5, 3)}
    mamba: Any = create_model("mambavision_t", stage_blocks={3: "scan"}, **options)
    assert mamba.stages[2].blocks[0].window_size == 5


def test_a_checkpoint_describes_its_hybrid(tmp_path: Path) -> None:
    model = segmenter("window_attention")
    save_checkpoint(tmp_path / "hybrid.safetensors", model.state_dict(), info_of(model))
    loaded: Any = foveal.load_model(tmp_path / "hybrid.safetensors")
    x = torch.randn(1, 3, 75, 101)
    assert info_of(loaded).options["stage_blocks"] == {"3": "window_attention"}
    assert torch.equal(loaded(x), model(x))


def test_weights_of_the_parent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parent's weights fill all stages but the new one; so do a hybrid's weights in its parent."""
    parent, hybrid = create_model("efficientvit_b0", **SEGMENT), segmenter("scan")
    files = {"parent": parent, "hybrid": hybrid}
    for name, model in files.items():
        save_checkpoint(tmp_path / f"{name}.safetensors", model.state_dict(), info_of(model))
    model = create_model(
        "efficientvit_b0", **SEGMENT, stage_blocks={3: "scan"}, weights=tmp_path / "parent.safetensors"
    )
    own = len(model.state_dict())  # two blocks of 17 tensors are new
    assert capsys.readouterr().err == f"new blocks in stage 3 (scan): 34 of {own} tensors keep their initial values\n"
    assert len(equal_keys(model, parent)) == own - 34
    again = create_model("efficientvit_b0", weights=tmp_path / "hybrid.safetensors", task="segment")
    assert equal_keys(again, hybrid) == hybrid.state_dict().keys()
    assert "new blocks" not in capsys.readouterr().err
    back = create_model("efficientvit_b0", **SEGMENT, stage_blocks={}, weights=tmp_path / "hybrid.safetensors")
    assert "stage 3 (as published)" in capsys.readouterr().err
    assert back.state_dict().keys() == parent.state_dict().keys()
    with pytest.raises(CheckpointError, match="does not fit"):
        foveal.load_checkpoint(hybrid, tmp_path / "parent.safetensors")
    classifier = create_model("efficientvit_b0", **NARROW, stage_blocks={4: "scan"}, num_classes=2)
    report = fill(classifier, as_checkpoint(tmp_path / "hybrid.safetensors"), finetune=True)
    assert {key.split(".")[2] for key in report.reinitialized if key.startswith("backbone.")} == {"2", "3"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage_blocks": {3: "windw_attention"}}, "stage 3: 'windw_attention'; did you mean 'window_attention'"),
        ({"stage_blocks": {5: "scan"}}, "no stage 5: stage_blocks takes 1 to 4"),
        ({"stage_blocks": {"x": "scan"}}, "'x' is no number of a stage"),
        ({"stage_blocks": {3: "scan", "3": "scan"}}, "stage 3 is there twice"),
        ({"stage_blocks": ["scan"]}, "give a mapping"),
        ({"stage_blocks": {3: {}}}, "stage 3: {}; valid: convolution"),
        ({"stage_blocks": {3: "scan"}, "output_stride": 8}, "output_stride dilates the published stages"),
        ({"stage_blocks": {3: "scan", 4: "scan"}, "scales": (3,)}, "scales has no effect"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        create_model("efficientvit_b0", **options)


@pytest.mark.parametrize("name", ["efficientvit_sr", "edifice_efficient_vit"])
def test_models_without_such_stages_are_named(name: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=f"{name} has no stages whose blocks"):
        create_model(name, stage_blocks={1: "scan"})


@torch.inference_mode()
@pytest.mark.parametrize("kind", STAGE_BLOCKS)
def test_the_native_engine_equals_torch(kind: str) -> None:
    model = segmenter(kind)
    engine = Engine(make_plan(model))
    for size in ((75, 101), (64, 32)):
        x = torch.rand(1, 3, *size)
        expected = model.double()(x.double(), upsample=False).numpy()
        assert np.abs(engine(x.numpy()) - expected).max() <= 1e-5 * np.abs(expected).max()


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["convolution", "window_attention", "scan"])
def test_streamed_exactly(kind: str) -> None:
    model, x = segmenter(kind), torch.randn(1, 3, 131, 90)
    program = derive(model, 131, 90, upsample=False)
    (found,) = run(plan(program, side=2 * coarsest_stride(program)), ArrayInput(x)).arrays()
    expected = model(x, upsample=False)[0].numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_softmax_attention_is_not_streamed() -> None:
    with pytest.raises(ConfigError, match=r"cannot be streamed exactly: backbone\.stages\.2.*softmax attention"):
        derive(segmenter("softmax_attention"), 131, 90, upsample=False)


@pytest.mark.parametrize("kind", ["window_attention"])
def test_onnx_equals_torch_at_other_sizes(kind: str, tmp_path: Path) -> None:
    shallow = {**SEGMENT, "depths": (0, 0, 0, 1, 0)}
    model = randomised(create_model("efficientvit_b0", **shallow, stage_blocks={3: kind}))
    foveal.export(model, output=tmp_path / "hybrid.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "hybrid.onnx", providers=["CPUExecutionProvider"])
    for size in ((96, 160), (128, 64)):
        x = torch.rand(2, 3, *size)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.inference_mode():
            expected = model(x, upsample=False).numpy()
        assert np.abs(np.asarray(found) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_recipe_trains_a_hybrid(tmp_path: Path) -> None:
    """``stage_blocks`` is an option of a run, is kept by resuming, and the result is loaded by its description."""
    data = tmp_path / "shapes"
    write_shapes(data, train=8, val=2)
    options = {k: list(v) for k, v in NARROW.items()} | {"head_width": 8, "head_depth": 1, "stage_blocks": {3: "scan"}}
    settings = {**SETTINGS, "epochs": 2, "model": "efficientvit_b0", "options": options}
    result = foveal.train(data, out=tmp_path / "run", **settings)
    foveal.train(data, out=tmp_path / "run", resume=True)
    model: Any = foveal.load_model(result.best)
    assert model.backbone.stage_blocks == {3: "scan"}
