"""Checks that MobileNet and EfficientNet share: published outputs, and the peers' own networks."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from foveal.factory.create import create_model
from foveal.weights.loading import load_checkpoint
from helpers import golden

GOLDENS = golden.read("convnets")


def peer(library: str, name: str) -> Any:
    """The peer's network without weights, on the meta device."""
    with torch.device("meta"):
        if library == "timm":
            return timm.create_model(name)
        return torchvision.models.get_model(name)


def filled(model: nn.Module, gain: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return golden.state({key: tuple(v.shape) for key, v in model.state_dict().items()}, gain, dtype)


def conventions(model: nn.Module) -> set[tuple[float, float | None]]:
    return {(part.eps, part.momentum) for part in model.modules() if isinstance(part, nn.BatchNorm2d)}


def check_golden(source: str, name: str) -> None:
    """Logits and pooled features of a published file, under the conventions that come with it."""
    entry = GOLDENS[source]
    model: Any = create_model(name)
    state = filled(peer(*source.split("/")), entry["gain"])
    load_checkpoint(model, dict(sorted(state.items())))  # as .safetensors files have them
    assert conventions(model) == {(entry["norm_eps"], entry["norm_momentum"])}
    assert sum(p.numel() for p in model.parameters()) == entry["params"]
    for case in entry["cases"]:
        x = golden.normal_input(case["input"])
        with torch.no_grad():
            maps = model.eval().backbone(x)
            assert golden.spread_difference(model(x), case["logits"]) < 1e-4
            late = source.startswith("torchvision/mobilenet_v3")  # its features come before the layer after the pooling
            features = maps[-1].mean((2, 3)) if late else model.head(maps[-1], pre_logits=True)
            assert golden.spread_difference(features, case["features"]) < 1e-4


def check_peer(library: str, theirs: str, name: str, gain: float, size: tuple[int, int] = (65, 97)) -> None:
    """Logits of the peer itself, in float64: only a wrong network, epsilon or padding differs by more than 1e-9."""
    reference = peer(library, theirs)
    state = filled(reference, gain, torch.float64)
    reference = reference.to_empty(device="cpu").double().eval()
    reference.load_state_dict(state)
    model = create_model(name).double().eval()
    assert load_checkpoint(model, state).loaded == len(state)
    x = golden.normal_input((1, 3, *size)).double()
    with torch.no_grad():
        expected, found = reference(x), model(x)
    assert (found - expected).abs().max() < 1e-9 * expected.std()
