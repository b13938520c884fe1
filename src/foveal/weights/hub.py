"""Files of the model hub: find them on this machine, download missing ones once, upload folders.

Transport, cache and credentials are huggingface_hub's (``HF_ENDPOINT``, ``HF_HUB_CACHE``, ``HF_TOKEN``,
``HF_HUB_OFFLINE``). This module adds one line before a download, an error within seconds if the hub does not answer,
and a hash check for every file. The hash is the published one, or that of the first download, which is stored with its
commit in the cached repository, so that a name gives the same weights from then on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import CheckpointError, ConfigError, DependencyError, ExportError, FovealError
from ..files import atomic_write
from ..text import notice

FOLDER_VARIABLE = "FOVEAL_WEIGHTS"  #: environment variable: a folder of weight files, searched before any download
_TIMEOUT = 5.0  # seconds to wait for the hub's answer about a file
_ID = re.compile(r"(?!.*\.\.)(?:hf[-_]hub:)?(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?")


class HubFile(NamedTuple):
    """One file of a repository on the hub.

    Attributes:
        repo: ``owner/name``.
        file: path inside the repository.
        revision: branch, tag or commit.
        sha256: of the content, 64 hexadecimal digits; empty: unknown, that of the first download is stored.
        licence: of the content, an SPDX name; empty: unknown, see the repository.
        name: name for messages; empty: the hub id.
    """

    repo: str
    file: str
    revision: str = "main"
    sha256: str = ""
    licence: str = ""
    name: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return self.name or f"hub id {self.repo}{revision}"


def parse(ref: str, file: str) -> HubFile | None:
    """The ``file`` of a hub id, ``owner/name`` or ``hf-hub:owner/name@revision``; ``None`` if ``ref`` is none."""
    match = _ID.fullmatch(ref)
    return HubFile(match["repo"], file, match["revision"] or "main") if match else None


def fetch(file: HubFile) -> Path:
    """Return the path of a hub file: in the cache, in the folder ``FOVEAL_WEIGHTS``, or downloaded into the cache.

    Raises:
        CheckpointError: it is not on this machine and cannot be downloaded, or its content has another hash.
        ConfigError: ``FOVEAL_WEIGHTS`` is not a folder.
        DependencyError: a download is needed and huggingface_hub is not installed.
    """
    path = _find_in_cache(file)
    if path is not None:
        return _check_cached(file, path)
    path = _find_in_folder(file)
    if path is not None:
        converted = path.suffix != PurePosixPath(file.file).suffix  # its bytes then differ from the published ones
        check_sha256(path, "" if converted else file.sha256)
        return path
    path, hub_sha256 = _download(file)
    return _check_cached(file, path, hub_sha256)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Compare a user's file with its known hash, unless that is empty; the file is never removed.

    Raises:
        CheckpointError: the hashes differ.
    """
    if expected and (actual := sha256_of(path)) != expected:
        raise CheckpointError(
            f"{path}: damaged or another file; replace or remove it: sha256 is {actual}, expected {expected}"
        )


def upload(folder: Path, repo: str, *, private: bool, revision: str | None) -> str:
    """Upload a folder to a repository on the hub, which is made if necessary; return the address of the commit.

    An existing README.md in the repository is not replaced.

    Raises:
        ExportError: the hub does not answer, or refuses.
        DependencyError: huggingface_hub is not installed.
    """
    client = _client(f"sending to {repo}")
    if _offline():
        raise ExportError(f"{repo}: nothing was sent: HF_HUB_OFFLINE is set; unset it to upload")
    api = client.HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        skip = ["README.md"] if api.file_exists(repo, "README.md", revision=revision) else None
        commit = api.upload_folder(repo_id=repo, folder_path=folder, revision=revision, ignore_patterns=skip)
    except Exception as error:  # the client's own types, its transport's, and ValueError for invalid names
        raise ExportError(f"{repo}: nothing was sent: {_reason(error)}") from error
    return str(commit.commit_url)


# ---- files on this machine


def _find_in_cache(file: HubFile) -> Path | None:
    """The file in the cache, of the commit that was first used."""
    try:
        client = _client(str(file))
    except DependencyError:
        return None
    revision = _read_pin(file).get("commit", file.revision)
    return _find_in_hub_cache(client, file._replace(revision=revision), None)


def _find_in_hub_cache(client: Any, file: HubFile, cache: Path | None) -> Path | None:
    path = client.try_to_load_from_cache(file.repo, file.file, cache_dir=cache, revision=file.revision)
    return Path(path) if isinstance(path, str) else None


def _find_in_folder(file: HubFile) -> Path | None:
    """The file in the user's folder: under its reference or its own name, in ``owner/name/``, or as in the cache."""
    if (folder := weights_folder()) is None:
        return None
    paths = [folder / file.repo / file.file] if file.revision == "main" else []
    if file.name:  # not for hub ids: names such as model.safetensors say nothing about the repository
        suffixes = dict.fromkeys((PurePosixPath(file.file).suffix, ".safetensors"))  # as published, or converted
        paths += [folder / f"{file.name}{suffix}" for suffix in suffixes]
        paths += [folder / file.file] if file.file != "model.safetensors" else []
    for path in paths:
        if path.is_file():
            return path
    try:
        return _find_in_hub_cache(_client(str(file)), file, folder)
    except DependencyError:
        return None


def weights_folder() -> Path | None:
    """The user's folder of weights, ``FOVEAL_WEIGHTS``; ``None`` if it is not set.

    Raises:
        ConfigError: it does not exist.
    """
    if not (setting := os.environ.get(FOLDER_VARIABLE)):
        return None
    folder = Path(setting).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{FOLDER_VARIABLE}={setting}: no such folder; name an existing one, or unset the variable")
    return folder


def _check_cached(file: HubFile, path: Path, hub_sha256: str = "") -> Path:
    """Check the hash of a cached file: the published one, that of the first use, or the one that the hub states."""
    actual = sha256_of(path)
    expected = file.sha256 or _read_pin(file).get("sha256") or hub_sha256 or actual
    if actual != expected:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{file}: sha256 of {file.file} is {actual}, expected {expected}: damaged or replaced; it was removed from "
            "the cache, and the next use downloads it again"
        )
    if not _read_pin(file):
        commit = path.parents[len(PurePosixPath(file.file).parts) - 1].name
        try:
            with atomic_write(_pin_path(file)) as temporary:
                temporary.write_text(json.dumps({"commit": commit, "sha256": actual}))
        except FovealError:
            pass  # a read-only cache: its files cannot change either
    return path


def _read_pin(file: HubFile) -> dict[str, str]:
    """Commit and sha256 of the first use; empty before it."""
    try:
        return json.loads(_pin_path(file).read_text())
    except (OSError, ValueError):
        return {}


def _pin_path(file: HubFile) -> Path:
    """Where the pin is stored: inside the cached repository, so that removing the repository removes the pin."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{file.repo.replace('/', '--')}" / "foveal"
    return folder / file.revision / f"{file.file}.json"


# ---- the hub


def _client(what: str) -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise DependencyError(f"{what} needs {error.name}: pip install 'foveal[hub]'") from error
    return huggingface_hub


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _download(file: HubFile) -> tuple[Path, str]:
    """Download a file into the cache.

    Returns:
        Its path, and the SHA-256 that the hub states (empty if it states none).
    """
    client = _client(str(file))
    if _offline():
        raise CheckpointError(
            f"{file}: {file.file} is not on this machine and HF_HUB_OFFLINE is set; a local path works offline"
        )
    revision = _read_pin(file).get("commit", file.revision)
    try:
        # Ask for the metadata first: the client's download alone would retry for half a minute.
        metadata = client.get_hf_file_metadata(
            client.hf_hub_url(file.repo, file.file, revision=revision), timeout=_TIMEOUT
        )
        size = "size unknown" if metadata.size is None else f"{metadata.size / 2**20:.1f} MiB"
        source, licence = f"{file.repo}/{file.file}", file.licence or "licence unknown"
        notice(f"downloading {file} once: {source}, {size}, {licence}")
        path = client.hf_hub_download(file.repo, file.file, revision=revision, etag_timeout=_TIMEOUT)
    except Exception as error:  # the client's own types, its transport's, OSError and ValueError
        raise CheckpointError(
            f"{file}: {file.file} is not on this machine and {_reason(error)}; a local path works offline"
        ) from error
    etag = metadata.etag or ""  # of large files their sha256, of small ones a git hash
    return Path(path), etag if re.fullmatch("[0-9a-f]{64}", etag) else ""


def _reason(error: Exception) -> str:
    """Why a request to the hub failed, in one line."""
    from huggingface_hub.constants import ENDPOINT

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{ENDPOINT} refuses (HTTP {status}): no such repository, or it needs a token (hf auth login, HF_TOKEN)"
    if status == 404:
        return f"{ENDPOINT} has no such file (HTTP 404): check repository, revision and file name"
    if status is not None:
        return f"{ENDPOINT} answers HTTP {status}: try again later"
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{ENDPOINT} gave no usable answer ({text}): check the connection, HF_ENDPOINT and the name"
