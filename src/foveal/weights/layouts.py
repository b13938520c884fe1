"""Recognise which family a state dict belongs to by its keys, and translate it to Foveal's layout.

In Foveal's layout the keys of a model begin with ``backbone.`` and ``head.``, those of a promptable model with
``image_encoder.``, ``prompt_encoder.`` and ``mask_decoder.`` (SAM's names).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .. import models as models  # registers the families
from ..errors import CheckpointError
from ..models.registry import FAMILIES, Family
from ..task import TASKS
from .checkpoints import one_line

IMAGE_ENCODER = "image_encoder."  #: prefix of the keys of a promptable model's image encoder
DECODER_PARTS = TASKS["prompt"].head_keys  #: prefixes of its other parts
_WRAPPERS = ("module.", "model.", "_orig_mod.", "ema.")  # prefixes that training code puts before all keys


class Recognised(NamedTuple):
    """A state dict of a known family.

    Attributes:
        state: the tensors by their keys in Foveal's layout.
        family: the family.
        was_converted: whether the keys were in another layout.
        options: options of ``create_model`` that the checkpoint needs.
    """

    state: dict[str, Tensor]
    family: Family
    was_converted: bool
    options: dict[str, Any]


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """Recognise the family of ``state`` by its keys, and translate it to Foveal's layout.

    Args:
        state: state dict of a task model or a backbone in any published layout or ours, wrapper prefixes included.

    Raises:
        CheckpointError: the keys are of no known family.
    """
    candidates = _without_wrappers(state)
    candidates.append({f"backbone.{key}": value for key, value in candidates[-1].items()})  # saved from a backbone
    for candidate in candidates:
        encoder, others = split_prefix(IMAGE_ENCODER, candidate)
        part = encoder or candidate  # families know image encoders, but not the decoder of a promptable model
        for family in FAMILIES.values():
            converted = family.convert(part)
            if converted is not None:
                was_converted = converted.keys() != part.keys()
                if encoder:
                    converted = {IMAGE_ENCODER + key: value for key, value in converted.items()} | others
                return Recognised(converted, family, was_converted, family.implied(part))
    keys = one_line(", ".join(list(state)[:4]))
    raise CheckpointError(
        f"layout not recognised: no family of foveal.list_models() has keys like {keys}; rename them to those of "
        "create_model(...).state_dict()"
    )


def split_prefix(prefix: str, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split ``state`` into the tensors whose keys begin with ``prefix``, now without it, and the others."""
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return inside, {key: value for key, value in state.items() if not key.startswith(prefix)}


def strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that training code puts before all keys, for example ``module.``."""
    return _without_wrappers(state)[-1]


def _without_wrappers(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """``state``, followed by a copy for each wrapper prefix that is removed in turn."""
    states = [dict(state)]
    while prefix := next((p for p in _WRAPPERS if all(key.startswith(p) for key in states[-1])), None):
        states.append({key.removeprefix(prefix): value for key, value in states[-1].items()})
    return states
