"""The verb ``convert``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..errors import ConfigError
from ..files import check_overwrites
from ..task import TASKS
from ..text import notice
from .console import Json, print_json, say


def convert(
    source: Path,
    target: Path,
    /,
    *,
    half: bool = False,
    tag: str = "",
    licence: str = "",
    max_side: int | None = None,
    mask_thresholds: tuple[float, float] | None = None,
    json: Json = False,
) -> int:
    """Read any published checkpoint and write it as a safetensors file with the model's description inside.

    Parameters
    ----------
    source
        Checkpoint or training run.
    target
        File to write, ending in .safetensors.
    half
        Store weights in float16; norms and biases stay float32. Loading gives float32 again.
    tag
        Name of the data set or setting, for the description.
    licence
        SPDX name of the weights' licence, for the description; default: the licence in the source.
    max_side
        Downscale larger images to this many pixels on their longer side, for weights trained on small images.
    mask_thresholds
        For promptable models: predicted IoU and stability above which an automatic mask is kept; default: SAM's.
    """
    from ..factory.load_model import check_torch, load_model

    check_torch(source)
    from ..data.class_map import abbreviate
    from ..info import info_of
    from ..weights.checkpoints import save_checkpoint

    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: the new file must end in .safetensors; give another name")
    check_overwrites([target], [source, *source.glob("*.safetensors")])
    model = load_model(source)
    info = info_of(model)
    info = info.replace(tag=tag or info.tag, licence=licence or info.licence)
    if max_side is not None:
        task = TASKS[info.task]
        if info.preprocess.size is not None or not (task.has_classes or task.has_maps):
            raise ConfigError(
                f"--max-side {max_side}: images for {source} ({info.task}) are not shrunk to a side: leave it out"
            )
        info = info.replace(preprocess=dataclasses.replace(info.preprocess, max_side=max_side))
    if mask_thresholds is not None:
        if not TASKS[info.task].takes_prompts or not all(0 <= value <= 1 for value in mask_thresholds):
            raise ConfigError(f"--mask-thresholds {mask_thresholds}: give two numbers of 0 to 1, for promptable models")
        info = info.replace(mask_thresholds=mask_thresholds)
    state = model.state_dict()
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        notice(f"{source}: NaN or infinite values in {abbreviate(broken)}, which are kept: results may be NaN")
    save_checkpoint(target, state, info, half)
    if json:
        print_json({"source": str(source), "file": str(target), "model": info.model, "task": info.task})
    else:
        say(f"{source} is {info.model} for {info.task}; written as {target}")
    return 0
