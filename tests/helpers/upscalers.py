"""Small networks that upscale, and what they are given, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.factory.create import create_model
from foveal.info import info_of
from foveal.prediction.predictor import Predictor
from foveal.prediction.torch_runner import TorchRunner


def model_of(name: str, scale: int = 2, seed: int = 0, **options: Any) -> torch.nn.Module:
    """A model whose every part matters: random weights, as large as a trained network's."""
    torch.manual_seed(seed)
    model = create_model(name, task="upscale", scale=scale, **options).eval()
    torch.nn.init.normal_(model.head.subpixel.weight, std=0.02)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return model


def predictor_of(model: torch.nn.Module) -> Predictor:
    return Predictor(TorchRunner(model), info_of(model), "torch")


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth shapes with edges and a little grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = sum(
        rng.uniform(20, 50) * np.sin(rng.uniform(-0.3, 0.3) * x + rng.uniform(-0.3, 0.3) * y + rng.uniform(0, 6))
        for _ in range(4)
    )
    edges = 60 * ((x // 17 + y // 23) % 2)
    image = 90 + (waves + edges)[..., None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 2, (height, width, 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
