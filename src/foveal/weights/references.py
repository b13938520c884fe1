"""Find the file that a reference names, without reading it and therefore without torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from ..errors import CheckpointError, closest, nearest
from ..files import parse_json
from ..info import MAX_JSON
from . import hub

SUFFIXES = (".safetensors", ".pt", ".pth", ".tar")  #: of checkpoints
SAVED = "model.safetensors"  #: weights in a folder of ``save_pretrained`` and in a hub repository
BASE = "base.txt"  #: in the folder of a training run: path of the weights that its files are tuned on top of
_RUN = ("best.safetensors", "last.safetensors")  # weights in the folder of a training run, the first that exists
_OTHERS = (".onnx", ".bin", ".ckpt", ".json", ".yaml")  # of other files that users name
_FOLDERS = ("runs", "out", "output", "outputs", "checkpoints", "weights", "models", "exports")  # no owners of models
_LISTED = 1000  # entries of a folder that are looked at for a hint


def find_file(ref: str | Path, known: Iterable[str] = ()) -> Path:
    """Find the checkpoint that ``ref`` names: a file, one in a folder, or one in a hub repository.

    Args:
        ref: path of a file, of a training run's folder (its best checkpoint) or of a folder of ``save_pretrained``, or
            hub id (``owner/name``, also ``hf-hub:owner/name@revision``).
        known: valid names, for the suggestion in the error message.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if (path := find_local(ref)) is not None:
        return path
    if Path(ref).is_dir():
        raise CheckpointError(
            f"{ref}: no {_RUN[0]} in this folder (training run), and no {SAVED} (saved model); name a folder with "
            "one, or a file"
        )
    if is_path(ref):
        raise missing_file(ref)
    if file := hub.parse(str(ref), SAVED):
        return hub.fetch(file)
    raise CheckpointError(f"{ref}: no such file, training run or weights{nearest(str(ref), known)}")


def is_path(ref: str | Path) -> bool:
    """Whether ``ref`` can only be meant as a path: neither a name with a tag nor a hub id, which is never looked up.

    ``owner/name`` is a path if ``owner`` is a folder here or a usual name of one; ``hf-hub:owner/name`` never is.
    """
    text = str(ref)
    if text.startswith(("hf-hub:", "hf_hub:")):
        return False
    if Path(text).suffix.lower() in (*SUFFIXES, *_OTHERS) or text.startswith((".", "~")) or "\\" in text:
        return True
    first, slash, _ = text.partition("/")
    return bool(slash) and (hub.parse(text, SAVED) is None or first in _FOLDERS or Path(first).is_dir())


def missing_file(ref: str | Path) -> CheckpointError:
    """The error for a path that does not exist, with the most similar name in its folder, or the names there."""
    path = Path(ref)
    while not path.parent.is_dir():
        path = path.parent
    try:
        entries = [Path(entry) for entry in islice(os.scandir(path.parent), _LISTED) if entry.name[0] != "."]
        names = sorted(each.name for each in entries if each.is_dir() or each.suffix.lower() in (*SUFFIXES, *_OTHERS))
    except OSError:
        names = []
    found = closest(path.name, names)
    hint = f"; {path.parent} has {', '.join(names[:12])}" if names and path.parent != Path() else ""
    hint = f"; did you mean {path.parent / found}?" if found is not None else hint
    return CheckpointError(f"{ref}: no such file or training run{hint}")


def find_local(ref: str | Path) -> Path | None:
    """The checkpoint at the path ``ref``, or in the folder of this path; ``None`` if it does not exist.

    Raises:
        CheckpointError: the weights of a saved model are not the ones that were saved.
    """
    path = Path(ref)
    try:
        if not path.is_dir():
            return path if path.exists() else None
    except (OSError, ValueError):  # a name that is too long for a path, or not one
        return None
    for name in _RUN:
        if (path / name).exists():
            return path / name
    if (path / SAVED).exists():
        hub.check_sha256(path / SAVED, _saved_sha256(path / "config.json"))
        return path / SAVED
    return None


def find_base(name: str, folder: Path) -> Path:
    """Find a file or training run that others were tuned on top of.

    Args:
        name: its last part.
        folder: of the tuned file. It is looked for where the folder's ``base.txt`` says, in this folder, in that of
            ``FOVEAL_WEIGHTS``, and in the working directory.

    Raises:
        CheckpointError: it is in none of these places.
    """
    places = [folder / name, *((root / name,) if (root := hub.weights_folder()) else ()), Path(name)]
    try:
        with (folder / BASE).open(encoding="utf-8") as file:
            places.insert(0, Path(file.read(4096).strip()))
    except (OSError, ValueError):  # none, or damaged: the other places are tried
        pass
    for place in places:
        if find_local(place) is not None:
            return place
    raise CheckpointError(
        f"{name} is not here: put it next to the tuned file, or into the folder that {hub.FOLDER_VARIABLE} names"
    )


def _saved_sha256(config: Path) -> str:
    """The hash that ``save_pretrained`` stored in config.json; empty if other software wrote the folder."""
    try:
        with config.open("rb") as file:
            content = parse_json(file.read(MAX_JSON + 1), MAX_JSON)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{config}: cannot be read ({error}); restore it, or remove it to load the weights without their hash"
        ) from error
    sha256 = content.get("sha256", {}) if isinstance(content, dict) else {}
    return str(sha256.get(SAVED, "")) if isinstance(sha256, dict) else ""
