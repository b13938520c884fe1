"""Reference outputs for architectures beyond EfficientViT: the rule of :mod:`golden` with a gain, other fingerprints.

``attention.json``: softmax attention by torch and numpy, linear attention by numpy, in float64. ``linformer.json``: the
package ``linformer`` 0.2.3. ``albert.json``: transformers 5.23. Weights have the names of their source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers import golden

GAIN = 1.4  #: of weights with two dimensions and more


def raw(name: str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers that belong to a name, float64."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape)))


def state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A float64 state dict for names and shapes."""
    return {key: tensor * (GAIN if tensor.ndim > 1 else 1) for key, tensor in golden.state(shapes).items()}


def difference(output: Tensor, expected: Mapping[str, Any]) -> float:
    """Largest difference between a tensor and its fingerprint, over the fingerprint's standard deviation."""
    flat = output.detach().double().flatten().numpy()
    assert list(output.shape) == expected["shape"]
    places = [(flat[: len(expected["first16"])], expected["first16"]), (flat[expected["at"]], expected["values"])]
    gaps = [np.abs(found - np.asarray(wanted)).max() for found, wanted in places]
    return float(max(*gaps, abs(flat.mean() - expected["mean"]), abs(flat.std() - expected["std"])) / expected["std"])
