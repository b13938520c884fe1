"""Load the model that a reference names: read its checkpoint, identify it, create the model, fill in the weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from .. import assets
from ..errors import CheckpointError, ConfigError, DependencyError, nearest
from ..info import attach
from ..weights import hub
from ..weights.references import SAVED, find_local, is_path, missing_file
from .bare import labels_of
from .identify import identify_checkpoint

if TYPE_CHECKING:
    from torch import nn

    from ..info import ModelInfo
    from ..weights.reading import Checkpoint


def load_model(ref: str | Path, name: str = "") -> nn.Module:
    """Load the torch model that ``ref`` names, in evaluation mode, with its ``foveal_info``.

    Args:
        ref: as for :func:`foveal.load`, except exported files.
        name: architecture; ``ref`` may then be one of its tags alone.

    Returns:
        nn.Module: with the weights, on the CPU in float32.

    Raises:
        ConfigError, CheckpointError, DependencyError: as :func:`foveal.load`.
    """
    check_torch(ref)
    from ..models.registry import variants
    from ..weights.loading import fill
    from ..weights.reading import read_checkpoint
    from .create import check_description, create_described

    if str(ref) in variants() and find_local(ref) is None:
        raise _no_weights_error(str(ref))
    checkpoint = read_checkpoint(ref, name)
    checkpoint.info = info = _complete_info(checkpoint)
    check_description(checkpoint)
    model = create_described(info)
    licence = fill(model, checkpoint).licence
    attach(model, info.replace(licence=licence, output_stride=getattr(model, "stride", 1)))
    return model.eval()


def check_torch(ref: str | Path) -> None:
    """Check that torch is installed, which every reference except exported files needs.

    Raises:
        DependencyError: it is not.
        CheckpointError: it is not, and nothing of this name is known without it.
    """
    if importlib.util.find_spec("torch") is not None:
        return
    text = str(ref)
    if find_local(ref) is None and is_path(ref):
        raise missing_file(ref)
    known = {*assets.WEIGHTS, *assets.DEFAULTS.values()}
    if text in known or find_local(ref) is not None or hub.parse(text, SAVED) is not None:
        raise DependencyError(f"{text} is not an exported file, so it needs torch: pip install 'foveal[torch]'")
    raise CheckpointError(
        f"{text}: no such file, training run or bundled weights{nearest(text, assets.WEIGHTS)}; published weights need "
        "torch: pip install 'foveal[torch]'"
    )


def _complete_info(checkpoint: Checkpoint) -> ModelInfo:
    """The checkpoint's description, or what its keys and shapes show; with the names of its classes."""
    info = checkpoint.info
    if info is None or not info.model:
        info = identify_checkpoint(checkpoint)
    return info if info.labels.names else info.replace(labels=labels_of(info.tag, info.num_classes))


def _no_weights_error(name: str) -> ConfigError:
    from .create import list_models

    refs = list_models(f"{name}.*", pretrained=True)
    named = [ref for ref in refs if ref in assets.WEIGHTS] or refs[:1]
    hint = f"use {', '.join(map(repr, named))}, a checkpoint" if named else "give a checkpoint"
    return ConfigError(f"{name} is an architecture without weights: {hint}, or create_model to train one")
