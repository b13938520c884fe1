"""An optimised model computes the same outputs with fewer operations, and the original is not changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import foveal
from foveal.factory.create import create_model
from foveal.info import info_of
from foveal.layers.conv import ConvNormAct
from foveal.layers.linear import NormLinear
from foveal.layers.optimize import fold_norms
from foveal.weights.checkpoints import save_checkpoint
from helpers import golden

CASES: list[tuple[str, dict[str, Any]]] = [
    ("efficientvit_b0", {"task": "segment"}),
    ("efficientvit_b1", {}),
    ("efficientvit_l0", {"features_only": True}),
    ("efficientvit_m0", {}),
    ("efficientvit_m1", {"distilled": True}),
    ("efficientvit_m2", {"task": "segment"}),
]


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def live(layer: Any) -> Any:
    """Fill layers with weights and statistics that affect the output."""
    return golden.fill(layer)


@torch.no_grad()
@pytest.mark.parametrize(("name", "options"), CASES)
def test_same_outputs_without_norms(name: str, options: dict) -> None:
    """Within 1e-10 of the largest value in float64, 1e-5 in float32; no batch norm is left in these models."""
    model = golden.fill(create_model(name, **options), 0.7).double()
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = model.to(dtype).train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        fast = foveal.optimize(model)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert not norms(fast)
        assert model.training
        assert not fast.training
        assert not any(p.requires_grad for p in fast.parameters())
        assert info_of(fast) == info_of(model)
        assert {p.dtype for p in fast.parameters()} == {dtype}
        x = golden.image_input((2, 3, 72, 96)).to(dtype)
        expected, output = model.eval()(x), fast(x)
        for a, b in zip(expected, output, strict=True):
            assert (a - b).abs().max() <= tolerance * a.abs().max()


@torch.no_grad()
@pytest.mark.parametrize(
    "layers",
    [
        nn.Sequential(nn.Conv2d(6, 8, 3, bias=False, groups=2), nn.BatchNorm2d(8, eps=0.1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8, affine=False)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 4, bias=False)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), NormLinear(6, 4, norm_eps=0.1)),
        ConvNormAct(6, 8, 3, 2, bias=True, act=nn.Hardswish),
    ],
)
def test_every_pair_folds(layers: nn.Module) -> None:
    """Convolutions and linear layers with and without bias, grouped, strided, with any epsilon."""
    model = live(layers).double()
    folded = copy.deepcopy(model)
    fold_norms(folded)
    assert not norms(folded)
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    assert (folded(x) - model(x)).abs().max() < 1e-12
    assert (model(x) - x.mean()).abs().max() > 0.01


@torch.no_grad()
def test_norms_that_cannot_be_folded_stay() -> None:
    """Not folded: norms without running statistics, norms after an activation or before padding, a layer used twice."""
    batch = nn.BatchNorm2d(6, track_running_stats=False)
    first = live(nn.Sequential(nn.Conv2d(6, 6, 1), batch, nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)))
    second = live(nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(), nn.BatchNorm2d(6)))
    shared = nn.Conv2d(6, 6, 1)
    third = live(nn.Sequential(nn.Sequential(shared, nn.BatchNorm2d(6)), nn.Sequential(shared, nn.ReLU())))
    x = torch.randn(2, 6, 9, 9)
    for model, left in ((first, 2), (second, 1), (third, 0)):
        expected = model(x)
        fold_norms(model)
        assert len(norms(model)) == left
        assert (model(x) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_folding_is_exact_before_it_rounds() -> None:
    """A 16-bit model gets the float64 weights, rounded once."""
    model = live(ConvNormAct(6, 8, 3)).to(torch.float16)
    folded, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    fold_norms(folded)
    fold_norms(exact)
    assert torch.equal(folded.conv.weight, exact.conv.weight.half())
    assert torch.equal(folded.conv.bias, exact.conv.bias.half())


def test_predictors_run_the_optimised_model(tmp_path: Path) -> None:
    """A predictor runs the optimised network, without norms, and gives the logits of the model."""
    model = golden.fill(create_model("efficientvit_m0", num_classes=3), 0.7)
    save_checkpoint(tmp_path / "m0.safetensors", model.state_dict(), info_of(model))
    predictor = foveal.load(tmp_path / "m0.safetensors", device="cpu")
    runner: Any = predictor.runner
    assert not norms(runner.model)
    x = golden.image_input((1, 3, 64, 80))
    with torch.no_grad():
        expected = model(x)
    assert (torch.from_numpy(runner(x.numpy())) - expected).abs().max() <= 1e-5 * expected.abs().max()
