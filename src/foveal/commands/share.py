"""The verbs ``save`` and ``push``: a model as a folder with its card, on this machine or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import ConfigError
from ..files import ensure_folder
from .console import Json, print_json, say

Metrics = Annotated[
    list[str] | None,
    Parameter(name="--metric", negative="", help="Figure for the model card, NAME=VALUE; repeat the option for more."),
]
Data = Annotated[str, Parameter(help="Data set, split and size that the figures are for: 'CamVid test, 480x360'.")]
Licence = Annotated[str, Parameter(help="SPDX name of the weights' licence; default: the one in the weights.")]
Half = Annotated[bool, Parameter(negative="", help="Store weights in float16; norms and biases stay float32.")]


def save(
    ref: str,
    folder: Path,
    /,
    *,
    metrics: Metrics = None,
    data: Data = "",
    licence: Licence = "",
    half: Half = False,
    json: Json = False,
) -> int:
    """Save a model as a folder with weights, description and model card, which foveal.load and the hub read.

    Parameters
    ----------
    ref
        Training run, checkpoint, name of weights, or hub id.
    folder
        Folder to write; an existing README.md in it is not replaced.
    """
    figures = read_metrics(metrics)
    from ..factory.load_model import check_torch, load_model

    check_torch(ref)
    from ..factory.pretrained import save_pretrained

    model = load_model(ref)  # before anything is written
    ensure_folder(folder)
    save_pretrained(model, folder, licence=licence, metrics=figures, data=data, half=half)
    files = [str(folder / name) for name in ("model.safetensors", "config.json", "README.md")]
    if json:
        print_json({"ref": ref, "files": files})
    else:
        for file in files:
            say(file)
    return 0


def push(
    ref: str,
    repo: str,
    /,
    *,
    metrics: Metrics = None,
    data: Data = "",
    licence: Licence = "",
    half: Half = False,
    private: Annotated[bool, Parameter(negative="")] = False,
    revision: str | None = None,
    json: Json = False,
) -> int:
    """Upload a model with its card to the hub. This needs a token with write access: 'hf auth login', or HF_TOKEN.

    Parameters
    ----------
    ref
        Training run, checkpoint, saved folder, or name of weights.
    repo
        Repository, owner/name; it is made if it does not exist.
    private
        A repository that is made now is visible to its owner only.
    revision
        Branch to upload to; default: the main one.
    """
    figures = read_metrics(metrics)
    from ..factory.load_model import check_torch

    check_torch(ref)
    from ..factory.pretrained import push_to_hub

    address = push_to_hub(
        ref, repo, licence=licence, metrics=figures, data=data, private=private, revision=revision, half=half
    )
    if json:
        print_json({"ref": ref, "repo": repo, "commit": address})
    else:
        say(address)
    return 0


def read_metrics(texts: list[str] | None) -> dict[str, float]:
    """``["mIoU=64.45"]`` -> ``{"mIoU": 64.45}``.

    Raises:
        ConfigError: another form, or a name that is given twice.
    """
    found: dict[str, float] = {}
    for text in texts or ():
        name, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = None
        if number is None or not name.strip() or name in found:
            raise ConfigError(f"--metric {text}: write NAME=VALUE, each name once, for example --metric mIoU=64.45")
        found[name] = number
    return found
