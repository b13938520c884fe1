"""Save and load models as folders with weights, description and model card, on this machine or on the hub."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import ConfigError, InputError
from ..files import atomic_write
from ..info import KEY, ModelInfo, info_of
from ..task import TASKS
from ..text import markdown
from ..weights import hub
from ..weights.checkpoints import save_checkpoint
from ..weights.references import SAVED
from .load_model import load_model

#: The hub's name of each task, where it has one.
_PIPELINES = {
    "classify": "image-classification",
    "segment": "image-segmentation",
    "features": "image-feature-extraction",
    "language": "fill-mask",
}


def save_pretrained(
    model: nn.Module | str | Path,
    folder: str | Path,
    *,
    licence: str = "",
    metrics: Mapping[str, float] | None = None,
    data: str = "",
    half: bool = False,
) -> Path:
    """Write ``model`` as a folder: ``model.safetensors``, ``config.json`` and a model card, ``README.md``.

    The description that loading uses is inside ``model.safetensors``. ``config.json`` repeats it for people and has the
    file's sha256, which loading checks. An existing README.md is not replaced.

    Args:
        model: a model of ``create_model``, ``load_model`` or ``from_pretrained``, or what ``load_model`` takes, for
            example the folder of a training run.
        folder: made if it does not exist. If it has files, hidden ones and README.md aside, it must be a model that was
            saved before, which is replaced.
        licence: SPDX name of the weights' licence; default: the one in the model's description.
        metrics: figures for the model card, for example ``{"mIoU": 58.45}``.
        data: data set, split and size that the figures are for, for example "CamVid test, 480x360".
        half: store weights in float16; norms and biases stay float32. Loading gives float32 again.

    Returns:
        Path: ``folder``.

    Raises:
        ConfigError: a model without a description, figures without their data, a figure that is not finite, or a folder
            with other files.
        CheckpointError: as :func:`foveal.load_model`.
        InputError: the folder cannot be written.
    """
    model = load_model(model) if isinstance(model, str | Path) else model
    info = info_of(model)
    info = info.replace(licence=licence or info.licence)
    figures = dict(metrics or {})
    if figures and not data:
        raise ConfigError("metrics need the data they were measured on, for example data='CamVid test, 480x360'")
    for name, value in figures.items():
        if not math.isfinite(value):
            raise ConfigError(f"metrics: {name} is {value}; give a finite number, or leave it out")
    folder = Path(folder)
    _check_folder(folder)
    try:  # after a crash between the files, no old hash may be next to new weights
        (folder / "config.json").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from error
    save_checkpoint(folder / SAVED, model.state_dict(), info, half)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not (folder / "README.md").exists():
        _write(folder / "README.md", _card(info, parameters, figures, data))
    config = {
        "library_name": "foveal",
        "foveal_version": metadata.version("foveal"),
        "foveal": info.to_dict(),
        "sha256": {SAVED: hub.sha256_of(folder / SAVED)},
    }
    _write(folder / "config.json", json.dumps(config, indent=2) + "\n")
    return folder


def _check_folder(folder: Path) -> None:
    """Refuse a folder of other files, in which a config.json or a README.md would have another meaning.

    Raises:
        ConfigError: it has visible files other than README.md, and is no model that was saved before.
    """
    if not folder.is_dir() or _is_saved_model(folder / SAVED):
        return
    others = sorted(
        path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name != "README.md"
    )
    if others:
        raise ConfigError(f"{folder} is no saved model and has other files ({others[0]}): give a new or empty one")


def _is_saved_model(weights: Path) -> bool:
    try:
        with safe_open(weights, framework="numpy") as file:
            return KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def from_pretrained(ref: str | Path, *, revision: str | None = None) -> nn.Module:
    """Load a model from a folder of :func:`save_pretrained`, a hub id, or anything else that ``load_model`` takes.

    Args:
        ref: folder, hub id (``owner/name``), or ``name.tag``.
        revision: branch, tag or commit of the hub repository; the same as ``owner/name@revision``.

    Returns:
        nn.Module: in evaluation mode, with its ``foveal_info``.

    Raises:
        ConfigError: ``revision`` is given for something that is not a hub id.
        CheckpointError: the weights do not exist, are damaged, or cannot be downloaded.
    """
    if revision is None:
        return load_model(ref)
    if hub.parse(f"{ref}@{revision}", SAVED) is None or Path(ref).exists():
        raise ConfigError(f"{ref}: revision={revision!r} is for a hub id (owner/name); leave it out")
    return load_model(f"{ref}@{revision}")


def push_to_hub(
    model: nn.Module | str | Path,
    repo: str,
    *,
    licence: str = "",
    metrics: Mapping[str, float] | None = None,
    data: str = "",
    private: bool = False,
    revision: str | None = None,
    half: bool = False,
) -> str:
    """Upload the folder of :func:`save_pretrained` to a hub repository, which is made if it does not exist.

    This needs a token with write access, as huggingface_hub finds it (``hf auth login`` or ``HF_TOKEN``).

    Args:
        repo: ``owner/name``.
        private: whether a repository that is made now is visible to its owner only.
        revision: branch to upload to; default: the main one.
        model: as for :func:`save_pretrained`, and so are ``licence``, ``metrics``, ``data`` and ``half``.

    Returns:
        str: address of the commit.

    Raises:
        ConfigError: as :func:`save_pretrained`, or ``repo`` is not a hub id.
        ExportError: the hub does not answer, or refuses.
    """
    if (file := hub.parse(repo, SAVED)) is None or file.repo != repo:
        raise ConfigError(f"{repo!r} is no hub id: write owner/name")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, licence=licence, metrics=metrics, data=data, half=half)
        card = Path(folder, "README.md")
        card.write_text(card.read_text(encoding="utf-8").replace(_PLACE, repo), encoding="utf-8")
        return hub.upload(Path(folder), repo, private=private, revision=revision)


_PLACE = "FOLDER_OR_HUB_ID"  # in the card of a folder, which may be moved


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _card(info: ModelInfo, parameters: int, figures: Mapping[str, float], data: str) -> str:
    """Model card in the hub's format: metadata in YAML, then text."""
    metadata = yaml.safe_dump(_card_metadata(info, figures, data), sort_keys=False, allow_unicode=True).rstrip()
    rows = [
        ("architecture", f"{info.model}, {parameters / 1e6:.2f} M parameters"),
        ("task", info.task),
        ("channels of the image", str(info.in_chans)),
        ("options", ", ".join(f"{key}={value}" for key, value in info.options.items()) or "default"),
        ("classes", ", ".join(info.labels.names) or str(info.num_classes)),
        ("licence of the weights", info.licence or "not stated"),
    ]
    lines = ["---", metadata, "---", "", f"# {markdown(info.ref)}", "", *_card_table("", rows)]
    if figures:
        lines += _card_table(data, figures.items())
    use = [f'model = foveal.from_pretrained("{_PLACE}")  # an nn.Module']
    task = TASKS.get(info.task)
    if task and task.has_head and task.takes_images and info.in_chans == 3:
        use.append(f'result = foveal.load("{_PLACE}")("image.jpg")')
    lines += ["```python", "import foveal", "", *use, "```", ""]
    return "\n".join(lines)


def _card_metadata(info: ModelInfo, figures: Mapping[str, float], data: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"library_name": "foveal", "tags": ["foveal", info.model]}
    pipeline = _PIPELINES.get(info.task)
    if pipeline:
        metadata["pipeline_tag"] = pipeline
    if info.licence:
        metadata["license"] = info.licence.lower()
    if figures:
        result = {
            "task": {"type": pipeline or info.task},
            "dataset": {"name": data, "type": data},
            "metrics": [{"type": metric, "value": float(value)} for metric, value in figures.items()],
        }
        metadata["model-index"] = [{"name": info.ref, "results": [result]}]
    return metadata


def _card_table(title: str, rows: Iterable[tuple[str, Any]]) -> list[str]:
    heading = f"| {markdown(title)} | |" if title else "| | |"
    return [heading, "|---|---|", *(f"| {markdown(key)} | {markdown(value)} |" for key, value in rows), ""]
