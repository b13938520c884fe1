"""Optimisers, schedules, groups of parameters, and parts that are not trained."""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import pytest
import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.training.freezing import freeze
from foveal.training.muon import Muon, is_matrix, orthogonal
from foveal.training.optimizers import OPTIMIZERS
from foveal.training.parameter_groups import layer_numbers, parameter_groups
from foveal.training.schedules import SCHEDULES, learning_rate
from helpers.narrow import narrow


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_rises_to_the_peak_and_then_falls(name: str) -> None:
    rates = [learning_rate(step, 100, 0.1, name) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx({"step": 0.01, "constant": 1.0}.get(name, 0.0))


def test_schedules_at_known_points() -> None:
    at = {name: [SCHEDULES[name].share(n, 90) for n in (30, 59, 60, 79, 80)] for name in ("poly", "step", "cosine")}
    assert at["poly"] == pytest.approx([(1 - n / 90) ** 0.9 for n in (30, 59, 60, 79, 80)])
    assert at["step"] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert at["cosine"] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * n / 90) for n in (30, 59, 60, 79, 80)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_minimises(name: str) -> None:
    torch.manual_seed(0)
    model, target = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)), torch.randn(4, 2, 6, 6)
    x = torch.randn(4, 3, 8, 8)
    optimizer = OPTIMIZERS[name].make(parameter_groups(model, 0.01), 0.05 if name == "sgd" else 0.01, 0.9)
    losses = []
    for _ in range(40):
        loss = (model(x) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 or newer has Muon to compare with")
@pytest.mark.parametrize("shape", [(8, 5), (5, 8)])
def test_muon_is_torchs_for_matrices(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    first = nn.Parameter(torch.randn(shape))
    second = nn.Parameter(first.detach().clone())
    mine = Muon([{"params": [first], "weight_decay": 0.1}], lr=0.01, momentum=0.9)
    peer = torch.optim.Muon([second], lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for seed in range(5):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        first.grad, second.grad = gradient.clone(), gradient.clone()
        mine.step()
        peer.step()
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)


def test_muon_takes_convolutions_as_matrices_of_their_filters() -> None:
    gradient = torch.randn(6, 4, 3, 3)
    singular = torch.linalg.svdvals(orthogonal(gradient.flatten(1)).float())
    assert 0.4 < singular.min() < singular.max() < 1.6
    layers = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Linear(4, 1)
    assert [is_matrix(layer.weight) for layer in layers] == [True, False, False]


def test_muon_resumes_exactly() -> None:
    def make() -> tuple[nn.Module, Any]:
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
        return model, OPTIMIZERS["muon"].make(parameter_groups(model, 0.1), 0.01, 0.9)

    def step(model: nn.Module, optimizer: Any, seed: int) -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()

    (whole, first), (part, second), (rest, third) = make(), make(), make()
    for seed in range(4):
        step(whole, first, seed)
    for seed in range(2):
        step(part, second, seed)
    rest.load_state_dict(part.state_dict())
    third.load_state_dict(second.state_dict())
    for seed in range(2, 4):
        step(rest, third, seed)
    assert all(a.equal(b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True))


def test_layer_decay_lowers_the_rate_towards_the_stem() -> None:
    model = narrow("segment")
    groups = parameter_groups(model, 0.05, lr=1.0, layer_decay=0.5)
    rate = {id(p): group.get("lr", 1.0) for group in groups for p in group["params"]}
    numbers = layer_numbers(model.backbone)
    deepest = max(numbers.values())
    assert deepest == sum(len(list(stage)) for stage in model.backbone.stages)
    assert {rate[id(p)] for p in model.head.parameters()} == {1.0}
    assert {rate[id(p)] for p in model.backbone.stem.parameters()} == {0.5 ** (deepest + 1)}
    for parameter in model.backbone.parameters():
        assert rate[id(parameter)] == 0.5 ** (deepest + 1 - numbers[id(parameter)])
    assert len(rate) == len(list(model.parameters())), "each parameter is in one group"
    scaled = parameter_groups(model, 0.05, backbone_lr=0.1, lr=1.0, layer_decay=0.5)
    assert max(group["lr"] for group in scaled if "lr" in group) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("parts", "trained", "norms"),
    [
        (("backbone",), {"head"}, "backbone"),
        (("stem",), {"backbone.stages", "head"}, "backbone.stem"),
        (("stage2",), {"backbone.stages.2", "head"}, "backbone.stages.1"),
    ],
)
def test_parts_are_frozen(parts: tuple[str, ...], trained: set[str], norms: str) -> None:
    model = narrow("segment")
    frozen = freeze(model, parts)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith(tuple(trained)), name
    names = [name for name, module in model.named_modules() if any(module is norm for norm in frozen)]
    assert any(name.startswith(norms) for name in names)
    assert not any(name.startswith(tuple(trained)) for name in names)


def test_norms_are_frozen() -> None:
    model = narrow("segment")
    frozen = freeze(model, ("norms",))
    assert frozen
    assert not any(p.requires_grad for norm in frozen for p in norm.parameters())
    assert all(cast(nn.Conv2d, m).weight.requires_grad for m in model.modules() if isinstance(m, nn.Conv2d))


def test_impossible_parts() -> None:
    with pytest.raises(ConfigError, match="freeze='stage9'; did you mean 'stage3'"):
        freeze(narrow("segment"), ("stage9",))
    alone = nn.Sequential()
    alone.backbone = narrow("segment").backbone
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze(alone, ("backbone",))
