"""From a reference to a working predictor: name and tag, file, training run, saved model or hub id."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import assets, hub
from ..data.labels import IMAGENET, OF_HEAD
from ..errors import CheckpointError, ConfigError, DependencyError, InputError, nearest
from ..info import Labels, ModelInfo, Preprocess, attach, info_of
from ..references import SAVED, find_local
from .interpolation import interpolation
from .onnx_runner import OnnxPrompter, OnnxRunner
from .predict import Predictor, torch_runner

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..registry import Variant

Runtime = Literal["auto", "onnxruntime", "torch"]
_DTYPES = {"auto": "float32", "float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}


def load(
    ref: str | os.PathLike[str], *, device: str = "auto", dtype: str = "auto", runtime: Runtime = "auto"
) -> Predictor:
    """Get a predictor.

    Args:
        ref: path of a checkpoint, of an exported file, of a training run (its best checkpoint) or of a folder of
            ``save_pretrained``; ``name.tag`` of bundled or published weights; ``bicubic.x2`` or ``lanczos.x3``; or a
            hub id (``owner/name``, also ``hf-hub:owner/name@revision``). What is not on this machine is downloaded
            once.
        device: torch device; "auto" is a GPU where there is one and the weights run on torch.
        dtype: "float32", "float16" or "bfloat16" for torch; "auto" is float32.
        runtime: "onnxruntime", "torch", or "auto": ONNX Runtime where an ONNX file is at hand and no device is named.

    Raises:
        ConfigError: unknown runtime or dtype, or an architecture without weights.
        CheckpointError: nothing of that name, or a file that cannot be used.
        InputError: a device that is not there.
        DependencyError: torch is needed and not installed.
    """
    if runtime not in ("auto", "onnxruntime", "torch"):
        raise ConfigError(f"unknown runtime {runtime!r}{nearest(runtime, ('auto', 'onnxruntime', 'torch'))}")
    ref = os.fspath(ref)
    if predictor := interpolation(ref):
        return predictor
    exported = _exported(ref)
    if exported and runtime != "torch" and (device in ("auto", "cpu") and dtype in ("auto", "float32")):
        runner, info = OnnxRunner.open(exported)
        if info.task == "prompt":
            runner = OnnxPrompter(runner, exported, info)
        return Predictor(runner, info, "onnxruntime on cpu")
    if runtime == "onnxruntime" or (exported and exported == Path(ref)):
        raise ConfigError(f"{ref}: ONNX Runtime runs .onnx files on the CPU in float32; export this one first")
    if dtype not in _DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}{nearest(dtype, _DTYPES)}")
    model = _load_image_model(ref)
    import torch

    from ..layers.optimize import optimize

    device, dtype = _device(device), _DTYPES[dtype]
    runner = torch_runner(optimize(model), device, getattr(torch, dtype))
    return Predictor(runner, info_of(model), f"torch on {device}, {dtype}")


def _load_image_model(ref: str) -> nn.Module:
    if importlib.util.find_spec("torch") is None:
        raise _without_torch(ref)
    from ..registry import check_sees_images

    if find_local(ref) is None:
        from .. import models as models  # registers the families

        check_sees_images(ref.partition(".")[0])  # before anything is fetched
    model = load_model(ref)
    check_sees_images(info_of(model).model)
    return model


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
    from ..factory import create_model
    from ..registry import variants
    from ..weights import load_checkpoint, read_weights

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


def identify(state: Mapping[str, Tensor]) -> ModelInfo:
    """Tell what a published state dict is by its keys and shapes alone.

    Args:
        state: of a task model or of a backbone alone, in any published layout or ours; tensors on the meta device do.

    Raises:
        CheckpointError: no known architecture has these shapes.
    """
    import torch

    from ..factory import create_model
    from ..registry import LanguageBackbone
    from ..weights import IMAGE_ENCODER, optional_keys, recognise, task_of

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
                labels=_published_labels(head if published else "", task, num_classes, found.published),
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


def _exported(ref: str) -> Path | None:
    if ref in assets.WEIGHTS and find_local(ref) is None:
        bundled = assets.path(ref, ".onnx")
        return bundled if bundled.exists() else None
    return Path(ref) if Path(ref).suffix == ".onnx" else None


def _labels(info: ModelInfo) -> Labels:
    """Names and colours of the data set that published weights are for."""
    imagenet = info.task == "classify" and info.tag.endswith("in1k")
    labels = IMAGENET if imagenet else OF_HEAD.get(info.tag, Labels())
    return labels if len(labels.names) == info.num_classes else Labels()


def _without_weights(name: str) -> ConfigError:
    from ..factory import list_models

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


def _device(device: str) -> str:
    import torch

    if device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return str(found or "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device
