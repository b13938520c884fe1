"""Identify the architecture, the task and the options of a state dict by its keys and shapes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CheckpointError, ConfigError
from ..info import ModelInfo, Preprocess, info_of
from ..task import TASKS, identify_task
from ..text import notice
from .bare import known_labels

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.registry import Family, Variant
    from ..weights.reading import Checkpoint

Shapes = dict[str, tuple[int, ...]]


def identify(state: Mapping[str, Tensor]) -> ModelInfo:
    """Identify a state dict by its keys and shapes alone.

    Args:
        state: of a task model or of a backbone, in any published layout or ours; its tensors may be on the meta device.

    Raises:
        CheckpointError: no known architecture has these keys and shapes.
    """
    from ..weights.reading import Checkpoint

    return identify_checkpoint(Checkpoint(state))


def identify_checkpoint(checkpoint: Checkpoint) -> ModelInfo:
    """Identify a checkpoint as :func:`identify` does, whatever its description says.

    Raises:
        CheckpointError: no known architecture has these keys and shapes.
    """
    evidence = _collect_evidence(checkpoint)
    for candidate in _candidates(evidence):
        blueprint = _blueprint(candidate, evidence)
        if blueprint is not None and _has_shapes(blueprint, candidate, evidence):
            if candidate.variant.twins and not evidence.settings:
                _mention_twins(candidate)
            return _describe(candidate, evidence, blueprint.preprocess)
    raise CheckpointError(
        f"{checkpoint.source or 'state dict'}: no known architecture has these shapes; build it with create_model and "
        "its options, then load_checkpoint"
    )


# ---- what the file shows


@dataclass(frozen=True)
class _Evidence:
    """What keys and shapes show.

    Attributes:
        family: the family.
        task: the task whose head the keys have.
        was_converted: whether the keys were in another layout than Foveal's.
        shapes: shape of each tensor, in Foveal's layout.
        num_classes: outputs of the classifier.
        in_chans: channels of the image.
        options: options of ``create_model`` that the shapes show.
        settings: settings that the keys show.
        forms: whether the model may be a backbone alone (``True``) or a task model (``False``), in the order to try.
    """

    family: Family
    task: str
    was_converted: bool
    shapes: Shapes
    num_classes: int
    in_chans: int
    options: dict[str, Any]
    settings: dict[str, Any]
    forms: tuple[bool, ...]


def _collect_evidence(checkpoint: Checkpoint) -> _Evidence:
    from ..tasks.builders import BUILDERS

    state, family, was_converted, implied = checkpoint.recognised
    first = next(iter(family.variants.values()))
    task = identify_task(state).name if family.takes_images else first.tasks[0]
    headless = not TASKS[task].takes_prompts and not any(key.startswith("head.") for key in state)
    # Without a head of ours, other keys are parts of a detector or of another segmentation model: they are ignored.
    shapes = _shapes({key: value for key, value in state.items() if not headless or key.startswith("backbone.")})
    options = implied | BUILDERS[task].implied(state, family)
    # Keys with "backbone." are of a task model, even if its head has no weights (pooled features).
    both = headless and any("backbone." in key for key in checkpoint.state)
    return _Evidence(
        family=family,
        task=task,
        was_converted=was_converted,
        shapes=shapes,
        num_classes=next((shape[0] for key, shape in shapes.items() if key == "head.classifier.weight"), 0),
        in_chans=_image_channels(family, shapes),
        options={key: value for key, value in options.items() if key not in family.settings},
        settings={key: value for key, value in options.items() if key in family.settings},
        forms=(False, True) if both else (headless,),
    )


def _image_channels(family: Family, shapes: Shapes) -> int:
    """Channels of the image, by the shape of the first convolution."""
    from ..weights.layouts import IMAGE_ENCODER

    if not family.takes_images:
        return 3
    for stem in (family.stem, IMAGE_ENCODER + family.stem):
        if stem in shapes and len(shapes[stem]) > 1:
            return shapes[stem][1]
    raise CheckpointError(
        f"{family.name}: no tensor {family.stem}, whose shape shows the number of image channels: the state dict is "
        "incomplete, or the family is registered with another Family.stem than its models have"
    )


# ---- what it may be


class _Candidate(NamedTuple):
    name: str
    variant: Variant
    options: dict[str, Any]
    features_only: bool


def _candidates(evidence: _Evidence) -> Iterator[_Candidate]:
    """Models that may have these shapes; among variants with the same tensors, those that need fewer settings first."""
    from ..tasks.builders import BUILDERS

    def overrides(variant: Variant) -> dict[str, Any]:
        return {key: value for key, value in evidence.settings.items() if variant.settings[key] != value}

    variants = sorted(evidence.family.variants.items(), key=lambda item: len(overrides(item[1])))
    for features_only, (name, variant) in itertools.product(evidence.forms, variants):
        if features_only or evidence.task in variant.tasks:
            for head in BUILDERS[evidence.task].published_heads(variant):
                yield _Candidate(name, variant, evidence.options | overrides(variant) | head, features_only)


class _Blueprint(NamedTuple):
    """What identification asks of a model: its shapes, key prefixes that a file may lack, its preprocessing."""

    shapes: Shapes
    optional: tuple[str, ...]
    preprocess: Preprocess


#: Blueprints of the models that were built last. Files of one family have the same candidates, and each takes a tenth
#: of a second or more to build.
_BLUEPRINTS: dict[str, _Blueprint | None] = {}
_MOST_BLUEPRINTS = 128


def _blueprint(candidate: _Candidate, evidence: _Evidence) -> _Blueprint | None:
    """The candidate's blueprint; ``None`` if the options do not suit the variant."""
    arguments = {
        "num_classes": evidence.num_classes,
        "in_chans": evidence.in_chans,
        "features_only": candidate.features_only,
        **candidate.options,
    }
    task = candidate.variant.tasks[0] if candidate.features_only else evidence.task
    key = repr((candidate.name, task, sorted(arguments.items())))
    if key not in _BLUEPRINTS:
        if len(_BLUEPRINTS) >= _MOST_BLUEPRINTS:
            _BLUEPRINTS.clear()
        _BLUEPRINTS[key] = _draw(candidate.name, task, arguments)
    return _BLUEPRINTS[key]


def _draw(name: str, task: str, arguments: dict[str, Any]) -> _Blueprint | None:
    """Build the model without memory for its tensors, and note its blueprint."""
    import torch

    from ..models.registry import LanguageBackbone
    from ..weights.loading import optional_keys
    from .create import create_model

    try:
        with torch.device("meta"):
            model = create_model(name, task, **arguments)
    except ConfigError:
        return None
    return _Blueprint(_shapes(model.state_dict()), optional_keys(model, LanguageBackbone), info_of(model).preprocess)


def _has_shapes(blueprint: _Blueprint, candidate: _Candidate, evidence: _Evidence) -> bool:
    """Whether the file has the shapes of ``blueprint``, optional modules of language encoders left out."""
    shapes = evidence.shapes
    if candidate.features_only:
        shapes = {key.removeprefix("backbone."): shape for key, shape in shapes.items()}
    own, optional = blueprint.shapes, blueprint.optional
    return own == {key: shape for key, shape in shapes.items() if key in own or not key.startswith(optional)}


def _describe(candidate: _Candidate, evidence: _Evidence, preprocess: Preprocess) -> ModelInfo:
    from ..weights.published import published_preprocess

    head = candidate.options.get("head", "")
    return ModelInfo(
        model=candidate.name,
        task="features" if candidate.features_only else evidence.task,
        num_classes=evidence.num_classes,
        in_chans=evidence.in_chans,
        options=candidate.options,
        preprocess=(published_preprocess(evidence.task, candidate.variant) or preprocess).for_channels(
            evidence.in_chans
        ),
        labels=known_labels(head, evidence.task, evidence.num_classes, evidence.was_converted),
        licence=evidence.family.licence,
    )


def _mention_twins(candidate: _Candidate) -> None:
    twins = candidate.variant.twins
    notice(
        f"identified as {candidate.name}, but {' or '.join(twins)} has the same tensors; for that model use "
        f"create_model({twins[0]!r}, weights=...)"
    )


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
