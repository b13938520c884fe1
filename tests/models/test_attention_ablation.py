"""EfficientViT without attention has no queries and keys; its rows in the ablation have equal costs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal.engine.engine import Engine
from foveal.engine.lowering import make_plan
from foveal.errors import ConfigError
from foveal.factory.create import create_model
from foveal.factory.identify import identify
from foveal.info import ModelInfo, info_of
from foveal.layers.conv import ConvNormAct
from foveal.layers.linear_attention import MultiScaleLinearAttention
from foveal.measuring.costs import count
from foveal.weights.checkpoints import save_checkpoint
from foveal.weights.loading import load_checkpoint
from helpers.streams import randomised

NARROW: dict[str, Any] = {"embed_dim": (8, 8, 8, 16, 32), "depths": (0, 0, 0, 1, 1)}


def segmenter(**options: Any) -> Any:
    torch.manual_seed(0)
    head = {"task": "segment", "num_classes": 3, "head_width": 8, "head_depth": 1}
    return randomised(create_model("efficientvit_b0", **NARROW, **head, **options))


@pytest.mark.parametrize("scales", [(), (5,), (3, 5)])
@pytest.mark.parametrize("attention", [False, True])
def test_parameters_and_macs_of_the_module(scales: tuple[int, ...], attention: bool) -> None:
    """By hand: the projection to q, k and v or to v alone, each branch, the attention, and the projection back."""
    channels, dim, places = 48, 16, 6 * 8
    module = MultiScaleLinearAttention(channels, head_dim=dim, scales=scales, global_attention=attention)
    wide = channels * (3 if attention else 1)
    weights = channels * wide + sum(wide * (side**2 + dim) for side in scales) + channels**2 * (1 + len(scales))
    heads = channels // dim * (1 + len(scales))
    attending = heads * 2 * (dim * dim + dim) if attention else 0
    costs = count(module.eval(), channels, (6, 8))
    assert costs == (weights + 2 * channels, places * (weights + attending))
    module.train()(torch.randn(2, channels, 6, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


@torch.inference_mode()
@pytest.mark.parametrize("scales", [(), (5,), (3, 5)])
def test_weights_with_attention_load_as_their_values(scales: tuple[int, ...]) -> None:
    """Without attention, each branch passes on the values that the module with attention computes."""
    full, values = segmenter(scales=scales), segmenter(scales=scales, global_attention=False)
    load_checkpoint(values, full.state_dict())
    attention, without = (model.backbone.stages[3][1].attention for model in (full, values))
    x = torch.randn(1, 32, 5, 7)
    scaled = [attention.qkv(x)]
    scaled += [branch(scaled[0]) for branch in attention.aggregate]
    expected = torch.cat([y.unflatten(1, (-1, 3, 16))[:, :, 2].flatten(1, 2) for y in scaled], 1)
    project: ConvNormAct = attention.project
    assert (without(x) - project(expected)).abs().max() < 1e-5


def test_files_with_the_former_layout_are_converted(tmp_path: Path) -> None:
    """A described file of a model without attention that has queries and keys, as Foveal wrote it before."""
    former = segmenter().state_dict()
    info = info_of(segmenter(global_attention=False))
    save_checkpoint(tmp_path / "former.safetensors", former, info)
    model: Any = foveal.load_model(tmp_path / "former.safetensors")
    expected = segmenter(global_attention=False)
    load_checkpoint(expected, former)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert model.backbone.stages[2][1].attention.qkv.weight.shape == (16, 16, 1, 1)


@pytest.mark.parametrize(
    "options", [{"global_attention": False}, {"scales": (3, 5)}, {"scales": (), "global_attention": False}], ids=str
)
def test_identified_by_shapes(options: dict[str, Any]) -> None:
    with torch.device("meta"):
        state = create_model("efficientvit_b0", num_classes=7, **options).state_dict()
    info: ModelInfo = identify(state)
    assert (info.model, info.num_classes) == ("efficientvit_b0", 7)
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in info.options.items()} == options


@torch.inference_mode()
@pytest.mark.parametrize("options", [{"scales": ()}, {"scales": (3, 5)}], ids=str)
def test_the_native_engine_runs_it(options: dict[str, Any]) -> None:
    model = segmenter(global_attention=False, **options)
    x = torch.rand(2, 3, 75, 60)
    expected = model.double()(x.double(), upsample=False).numpy()
    found = Engine(make_plan(model.float()))(x.numpy())
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": (8, 8, 8, 8, 32)}, "8 channels: linear attention with heads of 16"),
        ({"embed_dim": (8, 8, 8, 16)}, "embed_dim=.*give 5 numbers"),
        ({"depths": (0, 0, 0, 1, -1)}, "depths=.*give whole numbers, 0 or more"),
    ],
)
def test_impossible_sizes_are_named(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        create_model("efficientvit_b0", **options)


def test_rows_of_the_ablation_have_equal_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 2 % of the MACs of EfficientViT-B0."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    rows, costs = importlib.import_module("attention_ablation").ROWS, importlib.import_module("camvid").costs
    macs = {name: costs(model).macs for name, model in rows.items()}
    reference = macs["both: two branches"]
    assert len(rows) == 5
    assert all(abs(value - reference) < 0.02 * reference for value in macs.values())
