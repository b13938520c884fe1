"""Tell which architecture a state dict belongs to."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..data.labels import IMAGENET, OF_HEAD
from ..errors import CheckpointError, ConfigError
from ..info import Labels, ModelInfo, Preprocess, info_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.registry import Variant


def identify(state: Mapping[str, Tensor]) -> ModelInfo:
    """Tell what a published state dict is by its keys and shapes alone.

    Args:
        state: of a task model or of a backbone alone, in any published layout or ours; tensors on the meta device do.

    Raises:
        CheckpointError: no known architecture has these shapes.
    """
    import torch

    from ..models.registry import LanguageBackbone
    from ..weights.loading import IMAGE_ENCODER, optional_keys, recognise, task_of
    from .create import create_model

    found = recognise(state)
    task = "language" if found.family.of_language else task_of(found.state)
    headless = task != "prompt" and not any(key.startswith("head.") for key in found.state)
    # A detector's or another segmenter's other parts are not ours to build.
    shapes = _shapes({key: value for key, value in found.state.items() if not headless or key.startswith("backbone.")})
    num_classes = next((shape[0] for key, shape in shapes.items() if key == "head.classifier.weight"), 0)
    stems = (found.family.stem, IMAGE_ENCODER + found.family.stem)
    in_chans = next((shapes[stem][1] for stem in stems if stem in shapes), 3)
    told = {k: v for k, v in found.options.items() if k in found.family.settings}
    others = {k: v for k, v in found.options.items() if k not in told}

    def changed(variant: Variant) -> dict[str, Any]:
        return {k: v for k, v in told.items() if variant.settings[k] != v}

    # Of twins the one that needs the fewest settings.
    variants = sorted(found.family.variants.items(), key=lambda item: len(changed(item[1])))
    # The keys of a task model's file say "backbone.", even where its head has no weights.
    forms = (False, True) if headless and any("backbone." in key for key in state) else (headless,)
    for bare, (name, variant) in itertools.product(forms, variants):
        if not bare and task not in variant.tasks:
            continue
        for head in variant.segment_heads or {"": {}} if task == "segment" else {"": {}}:
            options = others | changed(variant) | ({"head": head} if head else {})
            try:
                with torch.device("meta"):
                    candidate = create_model(
                        name,
                        variant.tasks[0] if bare else task,
                        num_classes=num_classes,
                        in_chans=in_chans,
                        features_only=bare,
                        **options,
                    )
            except ConfigError:  # what the file implies does not suit this variant
                continue
            own = _shapes(candidate.state_dict())
            unused = optional_keys(candidate, LanguageBackbone)
            wanted = _without_prefix(shapes) if bare else shapes
            if own != {key: shape for key, shape in wanted.items() if key in own or not key.startswith(unused)}:
                continue
            published = variant.segment_heads.get(head, {}).get("num_classes") == num_classes
            preprocess = info_of(candidate).preprocess
            if task == "classify":
                preprocess = Preprocess(size=(variant.size, variant.size), crop_ratio=variant.crop_ratio)
            if variant.twins and not told:
                _say_twins(name, variant.twins)
            return ModelInfo(
                model=name,
                task="features" if bare else task,
                num_classes=num_classes,
                in_chans=in_chans,
                options=options,
                preprocess=preprocess,
                labels=_published_labels(head if published else "", task, num_classes, found.was_converted),
                licence=found.family.licence,
            )
    raise CheckpointError(
        "no known architecture has these shapes; build it with create_model and its options, then load_checkpoint"
    )


def _say_twins(name: str, twins: tuple[str, ...]) -> None:
    print(
        f"taken for {name}, but {' or '.join(twins)} has the same tensors; if it is that, say so: "
        f"create_model({twins[0]!r}, weights=...)",
        file=sys.stderr,
        flush=True,
    )


def _published_labels(head: str, task: str, num_classes: int, published: bool) -> Labels:
    """Classes of a file that says nothing of them: those of a published head's data set; ImageNet's where they fit."""
    if task == "classify" and published and num_classes == len(IMAGENET.names):
        return IMAGENET
    return OF_HEAD.get(head, Labels())


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _without_prefix(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix("backbone."): shape for key, shape in shapes.items()}
