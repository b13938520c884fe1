"""Finding the file that a reference names, without reading it (and so without torch)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from .errors import CheckpointError, DependencyError, nearest

SUFFIXES = (".safetensors", ".pt", ".pth", ".tar")  #: of checkpoints


def find_file(ref: str | Path, known: Iterable[str] = ()) -> Path:
    """Find the checkpoint that ``ref`` names: a file, a training run's best one, or a hub repository's.

    Args:
        ref: path of a file or of a run's folder, or hub id (``owner/name``, fetched once by huggingface_hub).
        known: valid names, for the error's hint.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(ref)
    if path.is_dir():
        if not (path / "best.safetensors").exists():
            raise CheckpointError(f"{ref}: no best.safetensors in this folder, so it is no training run")
        return path / "best.safetensors"
    if path.exists() or path.suffix in SUFFIXES:
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(ref)):
        return _download(str(ref))
    raise CheckpointError(f"{ref}: no such file, training run or weights{nearest(str(ref), known)}")


def _download(hub_id: str) -> Path:
    """Fetch ``model.safetensors`` of a hub repository, or find it in the local cache."""
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise DependencyError(f"hub id {hub_id} needs {error.name}: pip install 'foveal[torch]'") from error
    try:
        return Path(hf_hub_download(hub_id, "model.safetensors"))
    except Exception as error:  # the hub client raises many kinds; each means: no weights
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"hub id {hub_id}: {reason}; a local path works offline") from error
