"""Find the file that a reference names, without reading it and therefore without torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError, nearest
from ..files import parse_json
from ..info import MAX_JSON
from . import hub

SUFFIXES = (".safetensors", ".pt", ".pth", ".tar")  #: of checkpoints
SAVED = "model.safetensors"  #: weights in a folder of ``save_pretrained`` and in a hub repository
_RUN = "best.safetensors"  # weights in the folder of a training run


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
            f"{ref}: no {_RUN} in this folder (training run), and no {SAVED} (saved model); name a folder with one, or "
            "a file"
        )
    if Path(ref).suffix in SUFFIXES:
        return Path(ref)
    if file := hub.parse(str(ref), SAVED):
        return hub.fetch(file)
    raise CheckpointError(f"{ref}: no such file, training run or weights{nearest(str(ref), known)}")


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
    if (path / _RUN).exists():
        return path / _RUN
    if (path / SAVED).exists():
        hub.check_sha256(path / SAVED, _saved_sha256(path / "config.json"))
        return path / SAVED
    return None


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
