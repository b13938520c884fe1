"""From a reference to a working predictor: name and tag, file, training run, saved model or hub id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .. import assets
from ..errors import ConfigError, InputError, nearest
from ..factory.load_model import check_torch, load_model
from ..info import info_of
from ..weights.references import find_local
from .interpolation import interpolation
from .onnx_runner import OnnxPrompter, OnnxRunner
from .predictor import Predictor
from .torch_runner import torch_runner

if TYPE_CHECKING:
    from torch import nn


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
    check_torch(ref)
    from ..models.registry import check_takes_images

    if find_local(ref) is None:
        from .. import models as models  # registers the families

        check_takes_images(ref.partition(".")[0])  # before anything is fetched
    model = load_model(ref)
    check_takes_images(info_of(model).model)
    return model


def _exported(ref: str) -> Path | None:
    if ref in assets.WEIGHTS and find_local(ref) is None:
        bundled = assets.path(ref, ".onnx")
        return bundled if bundled.exists() else None
    return Path(ref) if Path(ref).suffix == ".onnx" else None


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
