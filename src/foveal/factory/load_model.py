"""Build the model that a reference describes, with its weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from .. import assets
from ..data.labels import IMAGENET, OF_HEAD
from ..errors import CheckpointError, ConfigError, DependencyError, nearest
from ..info import Labels, ModelInfo, attach
from ..weights import hub
from ..weights.references import SAVED, find_local
from .identify import identify

if TYPE_CHECKING:
    from torch import nn


def load_model(ref: str | Path, name: str = "") -> nn.Module:
    """Build the torch model that ``ref`` describes, in evaluation mode, with its ``foveal_info``.

    Args:
        ref: as for :func:`load`, but no exported file.
        name: architecture whose tags ``ref`` may name alone.

    Raises:
        ConfigError, CheckpointError: as :func:`load`.
    """
    text = str(ref)
    if importlib.util.find_spec("torch") is None:
        raise _without_torch(text)
    from ..models.registry import variants
    from ..weights.loading import load_checkpoint, read_weights
    from .create import create_model

    if text in variants() and find_local(ref) is None:
        raise _without_weights(text)
    state, info = read_weights(ref, name)
    if info is None or not info.model:
        info = identify(state)
    if not info.labels.names:
        info = info.replace(labels=_labels(info))
    task = None if info.task == "features" else info.task
    model = create_model(
        info.model,
        task,
        num_classes=info.num_classes,
        in_chans=info.in_chans,
        features_only=task is None,
        **info.options,
    )
    licence = load_checkpoint(model, state, info).licence
    attach(model, info.replace(licence=licence, output_stride=getattr(model, "stride", 1)))
    return model.eval()


def _labels(info: ModelInfo) -> Labels:
    """Names and colours of the data set that published weights are for."""
    imagenet = info.task == "classify" and info.tag.endswith("in1k")
    labels = IMAGENET if imagenet else OF_HEAD.get(info.tag, Labels())
    return labels if len(labels.names) == info.num_classes else Labels()


def _without_weights(name: str) -> ConfigError:
    from .create import list_models

    tagged = list_models(f"{name}.*", pretrained=True)
    hint = f"use {tagged[0]!r}, a checkpoint" if tagged else "give a checkpoint"
    return ConfigError(f"{name} is an architecture without weights: {hint}, or create_model to train one")


def _without_torch(ref: str) -> DependencyError | CheckpointError:
    if ref in assets.WEIGHTS or find_local(ref) is not None or hub.parse(ref, SAVED) is not None:
        return DependencyError(f"{ref} is not an exported file, so it needs torch: pip install 'foveal[torch]'")
    return CheckpointError(
        f"{ref}: no such file, training run or bundled weights{nearest(ref, assets.WEIGHTS)}; published weights need "
        "torch: pip install 'foveal[torch]'"
    )
