"""Reference outputs of the published networks for deterministic weights, and how weights and inputs are made.

A weight depends on its name and shape alone: ``n = default_rng(sha256(name)).standard_normal(shape)``, scaled by what
the name says it is. The JSON files beside hold what the authors' code (and timm) computed with those weights:

- ``efficientvit_models.json``: whole models: output and backbone maps
- ``efficientvit_keys.json``: name and shape of every tensor of those models, under the names of their source
- ``efficientvit_layers.json``: single layers
- ``efficientvit_training.json``: one training step in float64: loss, gradients, running variances
- ``sam_models.json``, ``sam_keys.json``: EfficientViT-SAM-L0: embedding, encoded prompts, answers
- ``mambavision_models.json``: whole models: logits, pooled features, stem, first and last block and end of each stage
- ``mambavision_keys.json``: name and shape of every tensor of those models

``efficientvit_m_*.json`` are the same for Microsoft's models, with a gain of 0.7.

An output is kept as a fingerprint: shape, mean, std, l2, extremes, its first values and 64 values at fixed places;
MambaVision's, and those in ``convnets.json``, as shape, mean, std, and values at evenly spread places.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "goldens"


@cache
def read(name: str) -> dict[str, Any]:
    """The content of ``goldens/<name>.json``."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def weight(name: str, shape: Sequence[int], gain: float = 1.0) -> NDArray[np.float64]:
    """The tensor that belongs to a name of the source's state dict; ``gain`` scales what is neither norm nor bias."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    n = np.random.default_rng(seed).standard_normal(tuple(shape))
    last = name.rpartition(".")[2]
    if last == "A_log":
        return np.log(np.arange(1, shape[1] + 1)) + 0.1 * n
    if name.endswith("dt_proj.bias"):
        return -1 + 0.5 * n
    if last == "positional_encoding_gaussian_matrix":
        return n
    if last.startswith("gamma"):
        return 0.5 + 0.1 * n
    if last == "running_var":
        return 0.5 + 0.5 * np.abs(n)
    if last in ("running_mean", "bias"):
        return 0.1 * n
    if len(shape) <= 1:
        return 1 + 0.1 * n
    return gain * n / np.sqrt(np.prod(shape[1:]))


def state(
    shapes: Mapping[str, Sequence[int]], gain: float = 1.0, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """A state dict for names and shapes; counters and index tables hold zeros."""
    return {
        key: torch.zeros(tuple(shape), dtype=torch.int64)
        if key.endswith(("num_batches_tracked", "_idxs"))
        else torch.from_numpy(weight(key, shape, gain)).to(dtype)
        for key, shape in shapes.items()
    }


def fill(model: nn.Module, gain: float = 1.0) -> Any:
    """Give a model weights by the rule, under its own names, in evaluation mode.

    Unlike fresh ones, under which outputs hardly depend on the image, these carry signals from end to end.
    """
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    model.load_state_dict(state(shapes, gain))
    return model.eval()


def normal_input(shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, float32."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(tuple(shape)).astype(np.float32))


def image_input(shape: Sequence[int]) -> Tensor:
    """A stand-in for a normalised image with low and high frequencies, NCHW float32; H and W multiples of 8."""
    n, c, h, w = shape
    rng = np.random.default_rng(0)
    fine = rng.standard_normal((n, c, h, w))
    coarse = rng.standard_normal((n, c, 8, 8))
    return torch.from_numpy((0.5 * fine + coarse.repeat(h // 8, axis=2).repeat(w // 8, axis=3)).astype(np.float32))


def difference(output: Tensor, expected: Mapping[str, Any]) -> float:
    """Largest difference between a tensor and its fingerprint (whole, or a brief one), over the largest value.

    The shapes must agree.
    """
    flat = output.detach().double().flatten().numpy()
    assert list(output.shape) == expected["shape"]
    found = {
        "mean": flat.mean(),
        "std": flat.std(),
        "l2": np.sqrt((flat * flat).mean()),
        "min": flat.min(),
        "max": flat.max(),
        "first": flat[: len(expected["first"])],
        "sampled": flat[np.random.default_rng(1234).integers(0, flat.size, 64)][: len(expected.get("sampled", ()))],
    }
    reference = {**expected, "l2": expected["l2"] / np.sqrt(flat.size)}
    gaps = [np.abs(found[key] - np.asarray(reference[key])).max() for key in found if key in expected]
    return float(max(gaps) / np.abs(flat).max())


def spread_difference(output: Tensor, expected: Mapping[str, Any]) -> float:
    """Largest difference between a tensor and its fingerprint of evenly spread values, over its standard deviation.

    The shapes must agree.
    """
    flat = output.detach().double().flatten().numpy()
    assert list(output.shape) == expected["shape"]
    values = np.abs(flat[expected["at"]] - expected["values"]).max()
    moments = max(abs(flat.mean() - expected["mean"]), abs(flat.std() - expected["std"]))
    return float(max(values, moments) / expected["std"])


def largest(x: Tensor) -> float:
    """The largest absolute value."""
    return x.abs().max().item()
