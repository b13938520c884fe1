"""Small models of Edifice's architectures, and their parameters in its layout."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveal.factory.create import create_model
from foveal.models.edifice import EfficientViT, MambaVision
from helpers import golden

CLASSES: dict[str, Any] = {"EfficientViT": EfficientViT, "MambaVision": MambaVision}
CASES = golden.read("edifice")
#: Options of Edifice's own tests.
EFFICIENT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depths": [1, 2], "num_heads": [4, 4]}
MAMBA: dict[str, Any] = {
    "image_size": 32, "dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "mlp_ratio": 2, "d_state": 4,
}  # fmt: skip
#: One small model of each kind, by the name and options of create_model.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "efficient": ("edifice_efficient_vit", EFFICIENT),
    "efficient, input cascade": ("edifice_efficient_vit", {**EFFICIENT, "cascade": "input"}),
    "efficient, channels": ("edifice_efficient_vit", {**EFFICIENT, "downsample": "channels"}),
    "efficient, compat": ("edifice_efficient_vit", {**EFFICIENT, "compat": True}),
    "mamba": ("edifice_mamba_vision", MAMBA),
    "mamba, small windows": ("edifice_mamba_vision", {**MAMBA, "window_size": (3, 2)}),
}
ALL_KINDS = {**KINDS, "mamba, compat": ("edifice_mamba_vision", {**MAMBA, "compat": True})}


def parameter(name: str, shape: list[int]) -> Tensor:
    """Return parameter ``layer.name`` of the golden in Axon's layout, by rules like those of :func:`golden.weight`."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    n = np.random.default_rng(seed).standard_normal(tuple(shape))
    kind = name.rpartition(".")[2]
    if kind == "kernel":
        fan_in = {2: shape[:1], 3: shape[:-1], 4: shape[1:]}[len(shape)]
        n = 1.4 * n / np.sqrt(np.prod(fan_in))
    elif kind == "gamma":
        n = 1 + 0.1 * n
    elif kind == "var":
        n = 0.5 + 0.5 * np.abs(n)
    else:
        n = 0.1 * n
    return torch.from_numpy(n)


def parameters(case: dict[str, Any]) -> dict[str, Tensor]:
    return {name: parameter(name, shape) for name, shape in case["manifest"].items()}


def filled(kind: str, **options: Any) -> Any:
    """A small model in evaluation mode, with weights that all affect the output."""
    name, own = ALL_KINDS[kind]
    return golden.fill(create_model(name, **{"num_classes": 5, **own, **options}))


def numbers(model: nn.Module) -> int:
    """Count parameters and batch norm statistics, which Axon counts together."""
    return sum(v.numel() for key, v in model.state_dict().items() if not key.endswith("num_batches_tracked"))


def shapes_of(model: nn.Module) -> dict[str, Any]:
    return {key: value.shape for key, value in model.state_dict().items()}
