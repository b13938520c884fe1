"""The models of a service: opened from references, with names for addresses, and described for clients."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import assets
from ..errors import ConfigError
from ..images.colours import palette_of
from ..prediction.batching import Batches
from ..prediction.load import load
from ..prediction.predictor import Predictor
from ..task import find_task
from . import classify, prompt, segment, upscale
from .calls import Call, Served
from .limits import MAX_PROMPTS, Limits

#: What clients may ask of a model, by its task.
CALLS: dict[str, Mapping[str, Call]] = {
    "segment": segment.CALLS,
    "classify": classify.CALLS,
    "upscale": upscale.CALLS,
    "prompt": prompt.CALLS,
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def default_refs() -> list[str]:
    """The models of a service for which none is named: bundled weights, one for each task of the page."""
    return [assets.DEFAULTS["prompt"], assets.DEFAULTS["segment"], f"{assets.DEFAULTS['upscale']}.x2"]


def open_models(refs: Sequence[str], batch_size: int, engine: Mapping[str, Any]) -> dict[str, Served]:
    """Open models.

    Args:
        refs: as for :func:`foveal.load`, each also as ``NAME=REF``.
        batch_size: images that run at once.
        engine: options of :func:`foveal.load`.

    Returns:
        The models by their names in addresses.

    Raises:
        ConfigError: a name that is no part of an address or is there twice, or a model without a result or classes.
        FovealError: as :func:`foveal.load`.
    """
    models: dict[str, Served] = {}
    for ref in refs:
        name, target = _split(ref)
        if name in models:
            raise ConfigError(f"{ref}: a second model of the name {name!r}: write NAME={target}")
        predictor = load(target, **engine)
        if predictor.info.task not in CALLS:
            raise ConfigError(
                f"{target} is for {predictor.info.task or 'no task'!r}, which the service does not serve: give a model "
                f"for {', '.join(CALLS)}"
            )
        predictor.check_classes()
        models[name] = Served(name, predictor, Batches(predictor.runner, predictor.prepare, batch_size))
    return models


def _split(ref: str) -> tuple[str, str]:
    """Name and reference of ``NAME=REF`` or ``REF``, whose name is that of the weights, the file or the folder."""
    name, equals, target = ref.partition("=")
    if not (equals and _NAME.fullmatch(name)):
        name, target = Path(ref).name, ref
        for suffix in (".safetensors", ".onnx", ".foveal", ".pt", ".pth", ".xml", ".pte", ".tflite"):
            name = name.removesuffix(suffix)
    if not target:
        raise ConfigError(f"{ref}: no model: write NAME=REF")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{ref}: {name[:100]!r} is no name for an address: write NAME=REF with letters, digits and ._-"
        )
    return name, target


def describe(models: Mapping[str, Served], limits: Limits) -> dict[str, Any]:
    """The models and limits as ``GET /api/models`` gives them."""
    return {
        "version": metadata.version("foveal"),
        "models": [_describe(served) for served in models.values()],
        "limits": {
            "body_bytes": limits.body_bytes,
            "pixels": int(limits.max_pixels),
            "seconds": limits.seconds,
            "prompts": MAX_PROMPTS,
            "points": MAX_PROMPTS,
        },
    }


def calls_of(predictor: Predictor) -> Mapping[str, Call]:
    """What clients may ask of a model."""
    return CALLS[predictor.info.task]


def _describe(served: Served) -> dict[str, Any]:
    predictor, info = served.predictor, served.predictor.info
    calls = calls_of(predictor)
    content: dict[str, Any] = {
        "name": served.name,
        "ref": info.ref,
        "task": info.task,
        "licence": info.licence,
        "runtime": predictor.runtime,
        "in_chans": info.in_chans,
        "dtype": info.preprocess.dtype,
        "calls": list(calls),
        "formats": list(max((call.formats for call in calls.values()), key=len)),
    }
    if info.num_classes:
        labels_pixels = find_task(info.task).labels_pixels
        colours = (
            palette_of(info.labels, info.num_classes)
            if labels_pixels
            else info.labels.palette or (None,) * info.num_classes
        )
        content["classes"] = [
            {"name": name} if colour is None else {"name": name, "colour": list(colour)}
            for name, colour in zip(predictor.names, colours, strict=True)
        ]
    if "scale" in info.options:
        content["scale"] = info.options["scale"]
    return content
