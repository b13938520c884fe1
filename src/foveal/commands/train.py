"""The verb ``train``."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter

from ..config import parse_sides, parse_yaml, shown
from ..errors import ConfigError
from ..files import check_overwrites
from .console import Json, print_json, say
from .train_settings import OPTIONS, describe_option, list_settings

_SET_HELP = (
    "Any other setting, for example --set.ema_decay 0.99 --set.loss '{cross_entropy: 1, lovasz: 0.5}'. "
    "'foveal train --help-all' lists them."
)

app = cyclopts.App(name="train", help_on_error=False, usage="Usage: foveal train DATA [OPTIONS]")


@app.command(name="--help-all", group="Parameters")
def help_all() -> None:
    """List every setting with its meaning, type, default and valid range."""
    print(list_settings())  # of this package, in several lines


def _option(name: str) -> Parameter:
    """The option of a setting, with its help text."""
    return Parameter(name=OPTIONS[name], help=describe_option(name))


def _settings(_: Any, tokens: Any) -> dict[str, str]:
    """The values of --set by name."""
    if not isinstance(tokens, dict):
        raise ConfigError("--set: name the setting, such as --set.ema_decay 0.99")
    return {key: values[-1].value for key, values in tokens.items()}


@app.default
def train(
    data: Path,
    /,
    *,
    model: Annotated[str | None, _option("model")] = None,
    task: Annotated[Literal["segment", "classify", "upscale", "regress", "prompt"] | None, _option("task")] = None,
    in_chans: Annotated[int | None, _option("in_chans")] = None,
    weights: Annotated[str | None, _option("weights")] = None,
    tune: Annotated[Literal["head", "norms", "bias", "lora", "prompt"] | None, _option("tune")] = None,
    val_split: Annotated[str | None, _option("val_split")] = None,
    epochs: Annotated[int | None, _option("epochs")] = None,
    batch_size: Annotated[int | Literal["auto"] | None, _option("batch_size")] = None,
    crop: Annotated[str | None, _option("crop")] = None,
    lr: Annotated[float | None, _option("lr")] = None,
    weight_decay: Annotated[float | None, _option("weight_decay")] = None,
    class_weights: Annotated[str | None, _option("class_weights")] = None,
    eval_every: Annotated[int | None, _option("eval_every")] = None,
    patience: Annotated[int | None, _option("patience")] = None,
    precision: Annotated[Literal["fp32", "bf16", "fp16", "fp64"] | None, _option("precision")] = None,
    device: Annotated[str | None, _option("device")] = None,
    num_workers: Annotated[int | None, _option("workers")] = None,
    seed: Annotated[int | None, _option("seed")] = None,
    fsdp: Annotated[bool | None, _option("fsdp")] = None,
    set: Annotated[dict[str, str] | None, Parameter(help=_SET_HELP, converter=_settings)] = None,
    config: Path | None = None,
    out: Path = Path("runs/train"),
    resume: bool = False,
    new_phase: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> int:
    """Train a model on a data set. ``torchrun -m foveal train ...`` runs the same command on several processes.

    Parameters
    ----------
    data
        Folder of the data set, which 'foveal data check' examines, or a pattern of tar files.
    config
        Recipe: YAML file with settings, or the name of one of Foveal's, such as camvid_b0. Unknown keys are errors.
        Paths in it are relative to its folder. Options of the command replace its values.
    out
        Folder of the run.
    resume
        Continue the run in --out from its last saved step.
    new_phase
        With --resume: begin a new phase of the run with other settings, such as more --epochs or another --batch-size.
        Its learning rate rises and falls anew.
    """
    from .. import train as train_model

    options = {
        "model": model,
        "task": task,
        "in_chans": in_chans,
        "weights": weights,
        "tune": tune,
        "val_split": val_split,
        "epochs": epochs,
        "batch_size": batch_size,
        "crop": None if crop is None else _parse_crop(crop),
        "lr": lr,
        "weight_decay": weight_decay,
        "class_weights": None if class_weights is None else _parse_yaml("class_weights", class_weights),
        "eval_every": eval_every,
        "patience": patience,
        "precision": precision,
        "device": device,
        "workers": num_workers,
        "seed": seed,
        "fsdp": fsdp,
    }
    if config is not None and not resume:
        check_overwrites([out / "config.yaml"], [config])  # the run writes all of its settings there
    settings = _merge_settings(options, set or {}) | ({"new_phase": True} if new_phase else {})
    result = train_model(data, config=config, out=out, resume=resume, **settings)
    _print_result(result, json)
    # Under torchrun, exit code 1 would count as a failure, after which it may start the run again.
    return 1 if result.bad and "WORLD_SIZE" not in os.environ else 0


def _merge_settings(options: dict[str, Any], texts: dict[str, str]) -> dict[str, Any]:
    """The settings of the options that were given, and of --set.

    Raises:
        ConfigError: a setting was given both ways.
    """
    settings = {name: value for name, value in options.items() if value is not None}
    for name in texts:
        if name in settings:
            raise ConfigError(f"{OPTIONS[name]} and --set.{name} are the same setting: give one of them")
    return settings | {name: _parse_yaml(name, text) for name, text in texts.items()}


def _parse_yaml(name: str, text: str) -> Any:
    return parse_yaml(text, f"--set.{name} {shown(text)}") if text else ""


def _parse_crop(text: str) -> tuple[int, int]:
    """``"512x1024"`` -> (512, 1024); ``"512"`` -> (512, 512)."""
    sides = parse_sides(text)
    if isinstance(sides, str):
        raise ConfigError(f"--crop {text!r}: give HEIGHTxWIDTH such as 512x1024, or a side such as 512")
    return sides


def _print_result(result: Any, json: bool) -> None:
    from ..evaluation.metrics import in_words

    figure = {result.metric: result.value} if math.isfinite(result.value) else {}
    report = {"folder": str(result.folder), "best": str(result.best), "loss": result.losses[-1], **figure}
    report |= {"bad": dict(result.bad)} if result.bad else {}
    if json:
        print_json(report)
        return
    figures = "".join(f"  {in_words(name, value)}" for name, value in figure.items())
    say(f"{report['best']}  loss {report['loss']:.4f}{figures}")
    if result.bad:
        say(f"bad training images left out: {len(result.bad)}, listed in {result.folder / 'bad.txt'}")
