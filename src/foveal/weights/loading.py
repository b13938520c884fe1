"""Load a checkpoint into a model: select the tensors that the model has, check them all, then copy them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..info import ModelInfo, attach, say_licence
from ..layers.attention_rows import select_values
from ..layers.cascaded_attention import CascadedGroupAttention, resize_position_biases
from ..layers.linear_attention import MultiScaleLinearAttention
from ..models.registry import Backbone, LanguageBackbone, variants
from ..task import identify_task
from .layouts import DECODER_PARTS, IMAGE_ENCODER, Recognised, split_prefix, strip_wrappers
from .other_stages import OtherStages, other_stages
from .reading import Checkpoint, as_checkpoint

_COUNTER = "num_batches_tracked"  # of batch norms: older files lack it, and evaluation never reads it


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_checkpoint` did.

    Attributes:
        loaded: number of tensors of the model that were loaded.
        layout: "foveal", or the family whose published keys were translated.
        ignored: keys of the checkpoint that the model does not have, for example a head's where it is a backbone.
        reinitialized: parameters of the model that kept their initial values (a classifier for other classes).
        resized: tables of attention biases that were interpolated because the model's windows have another size.
        info: description of the weights, if there is one.
        licence: of the weights, an SPDX name, if the file or its family's publisher states one.
        adapted: first convolution whose input channels were adapted to the model's; empty if it fitted.
    """

    loaded: int
    layout: str
    ignored: tuple[str, ...] = ()
    reinitialized: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    info: ModelInfo | None = field(default=None, repr=False)
    licence: str = ""
    adapted: str = ""


def load_checkpoint(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], info: ModelInfo | None = None
) -> LoadReport:
    """Load weights into ``model``, strictly, from our layout or any published one.

    Their licence becomes the model's. A licence that forbids commercial use is stated on standard error.

    Args:
        model: a model of ``create_model``, or a part of one: a backbone takes its part of a task model's checkpoint,
            and ``image_encoder``, ``prompt_encoder`` and ``mask_decoder`` of a promptable model take theirs. For the
            last two, the checkpoint may be of any promptable model, SAM's own included.
        source: path of a .safetensors, .pt, .pth or .tar file, a folder of a training run or of ``save_pretrained``,
            ``name.tag``, a hub id, or a state dict.
        info: description of a state dict.

    Returns:
        LoadReport: how many tensors, from which layout.

    Raises:
        CheckpointError: an unsafe or damaged file, a name that does not exist (the message has the nearest), or keys
            or shapes that do not fit (the message lists them). The model is unchanged then.
    """
    return fill(model, as_checkpoint(source, info))


def fill(model: nn.Module, checkpoint: Checkpoint, *, finetune: bool = False) -> LoadReport:
    """Load ``checkpoint`` into ``model`` as :func:`load_checkpoint` does; ``finetune``: parts may start fresh.

    These parts keep their initial values, and the report names their parameters:

    - a classifier for another number of classes, and an upsampling layer for another scale;
    - the whole head, if the weights are for another task;
    - modules that the backbone lists as optional, if the weights lack them;
    - the blocks of stages that are of another kind in the weights (``stage_blocks`` of ``create_model``), which is
      said on standard error;
    - the image encoder of a promptable model, if that of the weights has another architecture.

    The first convolution is adapted to another number of image channels, which is said on standard error: for one
    channel its filters are summed over theirs, for more they are repeated and scaled to the same sum.

    Raises:
        CheckpointError: keys or shapes that do not fit; the model is unchanged then.
    """
    own = model.state_dict()
    selection, recognised = _translate(checkpoint, own, finetune)
    stages = other_stages(model, checkpoint.info) if finetune else OtherStages()
    shared, translated = stages.without(own), stages.without(selection.state)
    replaced = tuple(key for key in selection.state if key not in translated)
    selection = selection._replace(state=translated, ignored=selection.ignored + replaced)
    selection = _drop_unused_modules(model, _select(model, shared, selection, finetune))
    state = _add_counters(selection.state, own)
    reinitialized = tuple(
        key
        for key in own
        if key not in shared
        or (key.startswith(selection.fresh) and (key not in state or state[key].shape != own[key].shape))
    )
    state |= {key: own[key] for key in reinitialized}
    resized = _resize_tables(model, state)
    _drop_queries_and_keys(model, state)
    adapted = _adapt_stem(model, state, own) if finetune else ""
    _check_fit(own, state, checkpoint.source or "state dict")
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(state[key])
    layout, licence = _origin_of(checkpoint, recognised)
    _update_description(model, checkpoint, recognised, licence)
    stages.say(own)
    described = getattr(model, "foveal_info", None)
    say_licence(checkpoint.source or (described.model if described is not None else layout), licence)
    return LoadReport(
        len(own) - len(reinitialized),
        layout,
        selection.ignored,
        reinitialized,
        resized,
        checkpoint.info,
        licence,
        adapted,
    )


def optional_keys(model: nn.Module, *kinds: type[Backbone] | type[LanguageBackbone]) -> tuple[str, ...]:
    """Prefixes of the keys of the optional modules of all backbones of these kinds in ``model``."""
    names = [name for part in model.modules() if isinstance(part, kinds) for name in part.optional]
    return tuple(f"{prefix}{name}." for name in names for prefix in ("", "backbone."))


# ---- selecting the tensors


class _Selection(NamedTuple):
    """The part of a checkpoint that goes into a model.

    Attributes:
        state: tensors, by the model's keys.
        ignored: keys of the checkpoint that the model does not have.
        fresh: prefixes of the model's keys that may keep their initial values.
    """

    state: dict[str, Tensor]
    ignored: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


def _translate(
    checkpoint: Checkpoint, own: Mapping[str, Tensor], finetune: bool
) -> tuple[_Selection, Recognised | None]:
    """Translate the checkpoint to Foveal's layout, unless most keys of the model are in it already."""
    selection = _select_decoder_part(checkpoint.state, own)
    # Decoders of promptable models have the same keys in every layout, so that their image encoders decide.
    decisive = {key for key in own if key.startswith(IMAGE_ENCODER)} or own.keys()
    if 2 * len(decisive & selection.state.keys()) > len(decisive):
        return selection, None
    recognised = checkpoint.recognise_encoder() if finetune else checkpoint.recognised
    state = recognised.state if recognised else strip_wrappers(checkpoint.state)
    return _Selection(state, selection.ignored), recognised


def _select_decoder_part(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> _Selection:
    """If ``own`` is a prompt encoder or a mask decoder, select its part of a promptable model's ``state``.

    This works whatever the image encoder of ``state`` is.
    """
    plain = strip_wrappers(state)
    for prefix in DECODER_PARTS:
        if 2 * len({prefix + key for key in own} & plain.keys()) > len(own):
            part, others = split_prefix(prefix, plain)
            return _Selection(part, tuple(others))
    return _Selection(dict(state))


def _select(model: nn.Module, own: Mapping[str, Tensor], selection: _Selection, finetune: bool) -> _Selection:
    """Select the tensors of a state dict in Foveal's layout that belong into the model with the keys ``own``."""
    if finetune and identify_task(own).takes_prompts:
        return _select_for_prompting(selection.state, own)
    state, ignored = _select_image_encoder(selection.state, own)
    fresh = _fresh_prefixes(model, own, state) if finetune else ()
    state, unused = _select_backbone_and_head(state, own, fresh)
    return _Selection(state, selection.ignored + ignored + unused, fresh)


def _select_for_prompting(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> _Selection:
    """Select what a promptable model starts from.

    An image encoder of another architecture is not loaded, and of weights for another task only the backbone is.
    """
    if not any(key.startswith(DECODER_PARTS) for key in state):
        backbone = {IMAGE_ENCODER + key: value for key, value in state.items() if key.startswith("backbone.")}
        ignored = tuple(key for key in state if not key.startswith("backbone."))
        return _Selection(backbone, ignored, (f"{IMAGE_ENCODER}neck.", *DECODER_PARTS))
    encoder = {key for key in own if key.startswith(IMAGE_ENCODER) and not key.endswith(_COUNTER)}
    foreign = [key for key in state if key.startswith(IMAGE_ENCODER) and key not in own]
    missing = [key for key in encoder if key not in state or state[key].shape != own[key].shape]
    if foreign or 10 * len(missing) > len(encoder):  # a damaged file lacks fewer
        decoder = split_prefix(IMAGE_ENCODER, state)[1]
        return _Selection(decoder, tuple(key for key in state if key not in decoder), (IMAGE_ENCODER,))
    return _Selection(state)


def _select_image_encoder(
    state: dict[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Select the image encoder of a promptable ``state`` if the model is not promptable; also return the other keys."""
    encoder, others = split_prefix(IMAGE_ENCODER, state)
    promptable = any(key.startswith(IMAGE_ENCODER) for key in own)
    return (encoder, tuple(others)) if encoder and not promptable else (state, ())


def _select_backbone_and_head(
    state: dict[str, Tensor], own: Mapping[str, Tensor], fresh: tuple[str, ...]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Select the backbone if the model is a backbone, and drop what a fresh head replaces; also return dropped keys."""
    if not _has_prefix("backbone.", own) and _has_prefix("backbone.", state):
        backbone, _ = split_prefix("backbone.", state)
        return backbone, tuple(key for key in state if not key.startswith("backbone."))
    if "head." in fresh and _has_prefix("backbone.", own):
        ignored = tuple(key for key in state if not key.startswith("backbone."))
    else:
        ignored = tuple(key for key in state if key.startswith(fresh) and key not in own)
    return {key: value for key, value in state.items() if key not in ignored}, ignored


def _fresh_prefixes(model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Prefixes of keys that may keep their initial values when training starts from ``state``."""
    task = identify_task(own)
    same_head = _has_prefix("head.", state) and identify_task(state) == task
    head = task.output_layer if same_head else "head."
    optional = optional_keys(model, Backbone, LanguageBackbone)
    # A head for other values has another mean and deviation of them, too.
    return (head, "head.target_", *(prefix for prefix in optional if not _has_prefix(prefix, state)))


def _drop_unused_modules(model: nn.Module, selection: _Selection) -> _Selection:
    """Drop optional modules of a language encoder that the model does not have."""
    optional, own = optional_keys(model, LanguageBackbone), model.state_dict().keys()
    unused = tuple(key for key in selection.state if key.startswith(optional) and key not in own)
    state = {key: value for key, value in selection.state.items() if key not in unused}
    return selection._replace(state=state, ignored=selection.ignored + unused)


def _add_counters(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the model's own counters of batch norms where ``state`` lacks them."""
    counters = {key: own[key] for key in own.keys() - state.keys() if key.endswith(_COUNTER)}
    return {**state, **counters}


def _has_prefix(prefix: str, keys: Iterable[str]) -> bool:
    return any(key.startswith(prefix) for key in keys)


# ---- checking and describing


def _resize_tables(model: nn.Module, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Resize tables of attention biases in ``state`` to the windows of ``model``; return their keys."""
    resized = []
    for name, module in model.named_modules():
        key = f"{name}.position_biases"
        if isinstance(module, CascadedGroupAttention) and key in state:
            table = state[key]
            state[key] = resize_position_biases(table, module.window_size)
            resized += [key] if state[key] is not table else []
    return tuple(resized)


def _drop_queries_and_keys(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Reduce weights of linear attention in ``state`` to the values, for modules of ``model`` without attention."""
    for name, module in model.named_modules():
        if isinstance(module, MultiScaleLinearAttention):
            select_values(module, name, state)


def _adapt_stem(model: nn.Module, state: dict[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Adapt the first convolution in ``state`` to the image channels of ``model``; return its key.

    As timm does it: summed for one channel, else repeated in turn and scaled, so that an image of equal channels gives
    the same output.
    """
    described: ModelInfo | None = getattr(model, "foveal_info", None)
    if described is None:
        return ""
    stem = variants()[described.model][0].stem
    key = next((name for name in (stem, stem.removeprefix("backbone."), IMAGE_ENCODER + stem) if name in own), "")
    old = state.get(key)
    if old is None or old.ndim != 4 or old.shape[1] in (0, own[key].shape[1]):
        return ""
    before, after = old.shape[1], own[key].shape[1]
    if after == 1:
        state[key], how = old.sum(1, keepdim=True), "summed"
    else:
        state[key], how = old[:, torch.arange(after) % before] * (before / after), f"repeated, times {before}/{after}"
    what = f"weights for {before} image channels, model for {after}"
    print(f"{what}: the filters of {key} are {how}", file=sys.stderr, flush=True)
    return key


def _check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError unless ``state`` has exactly the model's keys and shapes, as plain numbers."""
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": shapes,
        "not of plain numbers": [key for key in own if key in state and not _is_plain(state[key])],
    }
    listed = [
        f"{len(names)} {problem}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for problem, names in problems.items()
        if names
    ]
    if listed:
        raise CheckpointError(
            f"{source} does not fit the model, nothing was loaded. {'; '.join(listed)}. foveal.load_model builds the "
            "model that a checkpoint is for"
        )


def _is_plain(tensor: Tensor) -> bool:
    """Whether ``tensor`` can be copied number by number: dense, real, stored and not quantised."""
    odd = tensor.is_meta or tensor.is_quantized or tensor.is_complex()
    return tensor.layout == torch.strided and not odd


def _origin_of(checkpoint: Checkpoint, recognised: Recognised | None) -> tuple[str, str]:
    """The layout that the checkpoint was in, and the licence of its weights."""
    licence = checkpoint.info.licence if checkpoint.info else ""
    if recognised and recognised.was_converted:
        return recognised.family.name, licence or recognised.family.licence
    return "foveal", licence


def _update_description(model: nn.Module, checkpoint: Checkpoint, recognised: Recognised | None, licence: str) -> None:
    """Apply the settings that the checkpoint implies to the model, and note them and the licence in its description."""
    described: ModelInfo | None = getattr(model, "foveal_info", None)
    if described is None:  # a part of a model, or a model of timm
        name = checkpoint.info.model if checkpoint.info else ""
        family = recognised.family if recognised else variants().get(name, (None,))[0]
        if family:
            options = dict(recognised.options) if recognised else {}
            if checkpoint.info and name in family.variants:
                options |= {**family.variants[name].settings, **checkpoint.info.options}
            family.set(model, **{k: v for k, v in options.items() if k in family.settings})
        return
    options = dict(recognised.options) if recognised else {}
    family, variant = variants()[described.model]
    # Options of another architecture, for example its epsilon and padding, do not apply to this one, unless all their
    # tensors are the same.
    if checkpoint.info and checkpoint.info.model in ("", described.model):
        options |= checkpoint.info.options
    elif checkpoint.info and checkpoint.info.model in variant.twins:
        options |= {**family.variants[checkpoint.info.model].settings, **checkpoint.info.options}
    settings = {k: v for k, v in options.items() if k in family.settings and k not in described.options}
    family.set(model, **settings)
    attach(model, described.replace(licence=licence or described.licence, options=described.options | settings))
