"""Verbs that train: ``train``, and ``data check`` before it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import ConfigError
from .console import Json, print_json

if TYPE_CHECKING:
    pass


_SET_HELP = "Any other setting: --set.epochs 50 --set.lr 1e-3 --set.loss '{cross_entropy: 1, lovasz: 0.5}'."


def _settings(_: Any, tokens: Any) -> dict[str, str]:
    """Values of --set by name."""
    if not isinstance(tokens, dict):
        raise ConfigError("--set: name the setting, such as --set.epochs 50")
    return {key: given[-1].value for key, given in tokens.items()}


def train(
    data: Path,
    /,
    *,
    model: str | None = None,
    task: str | None = None,
    config: Path | None = None,
    out: Path = Path("runs/train"),
    resume: bool = False,
    fsdp: bool | None = None,
    set: Annotated[dict[str, str] | None, Parameter(help=_SET_HELP, converter=_settings)] = None,
    json: Json = False,
) -> int:
    """Train on images and masks, or on a folder per class. ``torchrun -m foveal train ...`` scales the same command.

    Parameters
    ----------
    data
        Folder of the data set, which 'foveal data check' looks into, or a pattern of tar files.
    model
        Architecture to train.
    task
        What to train it for.
    config
        Recipe in YAML; unknown keys are errors.
    out
        Folder of the run.
    resume
        Go on from the run in --out.
    fsdp
        Shard the model over torchrun's processes (FSDP2), where it does not fit on each of them.
    """
    from .. import train as train_model

    overrides = {key: _yaml_value(key, text) for key, text in (set or {}).items()}
    named = {"model": model, "task": task, "fsdp": fsdp}
    overrides |= {key: value for key, value in named.items() if value is not None}
    result = train_model(data, config=config, out=out, resume=resume, **overrides)
    figure = {result.metric: result.value} if math.isfinite(result.value) else {}
    report = {"folder": str(result.folder), "best": str(result.best), "loss": result.losses[-1], **figure}
    report |= {"bad": dict(result.bad)} if result.bad else {}
    if json:
        print_json(report)
    else:
        from ..evaluation.metrics import in_words

        scored = "".join(f"  {in_words(name, value)}" for name, value in figure.items())
        print(f"{report['best']}  loss {report['loss']:.4f}{scored}")
        if result.bad:
            print(f"bad training images left out: {len(result.bad)}, listed in {result.folder / 'bad.txt'}")
    under_torchrun = "WORLD_SIZE" in os.environ  # it would take 1 for a failure, and may start all anew
    return 1 if result.bad and not under_torchrun else 0


def _yaml_value(key: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"--set.{key} {text!r}: {' '.join(str(error).split())}") from error
