"""Recognise which family a state dict belongs to by its keys, and translate it to Foveal's layout.

In Foveal's layout the keys of a model begin with ``backbone.`` and ``head.``, those of a promptable model with
``image_encoder.``, ``prompt_encoder.`` and ``mask_decoder.`` (SAM's names).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .. import models as models  # registers the families
from ..errors import CheckpointError
from ..models.registry import FAMILIES, Family
from ..task import TASKS
from .checkpoints import one_line

IMAGE_ENCODER = "image_encoder."  #: prefix of the keys of a promptable model's image encoder
DECODER_PARTS = TASKS["prompt"].head_keys  #: prefixes of its other parts
#: Parts of keys that wrappers of torch add, anywhere: data parallel, compiled, sharded, checkpointed modules.
_INSERTED = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
#: Names that training code gives to the whole model, before all keys, or to the network inside a part of it.
_NAMED = {"model", "ema", "net", "network", "ema_model", "model_ema", "student", "teacher"}
_COUNTERS = ("n_averaged",)  # of wrappers, not of models


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
        state: state dict of a task model or a backbone in any published layout or ours, wrapped in any way.

    Raises:
        CheckpointError: the keys are of no known family.
    """
    for candidate in _candidates(state):
        encoder, others = split_prefix(IMAGE_ENCODER, candidate)
        part = encoder or candidate  # families know image encoders, but not the decoder of a promptable model
        for family in FAMILIES.values():
            try:
                converted = family.convert(part)
                options = family.implied(part) if converted is not None else {}
            except (LookupError, ValueError, TypeError, ArithmeticError, StopIteration, RuntimeError) as error:
                reason = one_line(str(error)) or type(error).__name__
                raise CheckpointError(f"{family.name}: an incomplete or damaged state dict ({reason})") from error
            if converted is not None:
                was_converted = converted.keys() != part.keys()
                if encoder:
                    converted = {IMAGE_ENCODER + key: value for key, value in converted.items()} | others
                return Recognised(converted, family, was_converted, options)
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
    """Remove what wrappers add to keys, for example ``module.``, and the names before all keys, for example ``model.``.

    Keys that would then be the same are left as they are.
    """
    return _without_wrappers(state)[-1]


def _candidates(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """``state`` without wrappers, then less and less changed, and last as a part of a model.

    The barest keys come first, because a layout can be recognised by a part of its keys in the middle.
    """
    steps = _without_wrappers(state)
    bare = _without(steps[-1], _NAMED)
    yield from reversed(steps if bare.keys() == steps[-1].keys() else [*steps, bare])
    yield {f"backbone.{key}": value for key, value in steps[-1].items()}  # saved from a backbone


def _without_wrappers(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """``state``, then without what wrappers insert, then without each name before all keys in turn."""
    plain = {key: value for key, value in state.items() if key.rpartition(".")[2] not in _COUNTERS}
    states = [dict(state), _without(plain, _INSERTED)]
    if states[0].keys() == states[1].keys():
        states.pop()
    while (name := next(iter(states[-1]), "").partition(".")[0]) in _NAMED:
        if not all(key.startswith(f"{name}.") for key in states[-1]):
            break
        states.append({key.removeprefix(f"{name}."): value for key, value in states[-1].items()})
    return states


def _without(state: dict[str, Tensor], names: Container[str]) -> dict[str, Tensor]:
    """``state`` without these names between the dots of its keys, unless two keys would then be the same."""
    shorter = {".".join(part for part in key.split(".") if part not in names): key for key in state}
    return {short: state[key] for short, key in shorter.items()} if len(shorter) == len(state) else state
