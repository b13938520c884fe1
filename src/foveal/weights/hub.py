"""The model hub: finding its files on this machine, fetching what is missing once, sending folders there.

Transport, cache and credentials are huggingface_hub's (``HF_ENDPOINT``, ``HF_HUB_CACHE``, ``HF_TOKEN``,
``HF_HUB_OFFLINE``). What is ours: one line before a download, failing within seconds, and a hash for every file. The
hash is the published one, or the first download's, which is kept beside the cached repository with its commit: a name
gives the same weights from then on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import CheckpointError, ConfigError, DependencyError, ExportError, FovealError
from ..files import atomic_write

FOLDER_VARIABLE = "FOVEAL_WEIGHTS"  #: environment variable: a folder of weight files, looked into before any download
_SECONDS = 5.0  # to wait for the hub's answer about a file
_ID = re.compile(r"(?!.*\.\.)(?:hf[-_]hub:)?(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?")


class HubFile(NamedTuple):
    """One file of a repository on the hub.

    Attributes:
        repo: ``owner/name``.
        file: path inside the repository.
        revision: branch, tag or commit.
        sha256: of the content, 64 hexadecimal digits; empty: unknown, the first download counts.
        licence: of the content, an SPDX name; empty: unknown, see the repository.
        name: what its user calls it; empty: the hub id.
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
    """The ``file`` of the hub id ``ref``: ``owner/name``, with ``hf-hub:`` before it or ``@revision`` behind it."""
    found = _ID.fullmatch(ref)
    return HubFile(found["repo"], file, found["revision"] or "main") if found else None


def fetch(wanted: HubFile) -> Path:
    """Path of a hub file: from the cache, from the folder in ``FOVEAL_WEIGHTS``, or downloaded into the cache.

    Raises:
        CheckpointError: it is nowhere, the hub does not answer, or its content is not what it should be.
        ConfigError: ``FOVEAL_WEIGHTS`` is no folder.
        DependencyError: a download is needed and huggingface_hub is not installed.
    """
    path = _cached(wanted)
    if path is not None:
        return _checked_in_cache(wanted, path)
    path = _in_folder(wanted)
    if path is not None:
        converted = path.suffix != PurePosixPath(wanted.file).suffix  # so its bytes are others
        check_sha256(path, "" if converted else wanted.sha256)
        return path
    path, stated = _download(wanted)
    return _checked_in_cache(wanted, path, stated)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Check a file of the user's against a known hash, if there is one; the file stays where it is.

    Raises:
        CheckpointError: another content.
    """
    if expected and (found := sha256_of(path)) != expected:
        raise CheckpointError(f"{path}: damaged or another file: sha256 is {found}, expected {expected}")


def upload(folder: Path, repo: str, *, private: bool, revision: str | None) -> str:
    """Send a folder to a repository on the hub, which is made where it does not exist; returns the commit's address.

    A README.md that the repository has already stays.

    Raises:
        ExportError: the hub does not answer, or refuses.
        DependencyError: huggingface_hub is not installed.
    """
    client = _client(f"sending to {repo}")
    if _offline():
        raise ExportError(f"{repo}: nothing was sent: HF_HUB_OFFLINE is set")
    api = client.HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        kept = ["README.md"] if api.file_exists(repo, "README.md", revision=revision) else None
        commit = api.upload_folder(repo_id=repo, folder_path=folder, revision=revision, ignore_patterns=kept)
    except Exception as error:  # the client raises its own kinds, its transport's, and ValueError for bad names
        raise ExportError(f"{repo}: nothing was sent: {_reason(error)}") from error
    return str(commit.commit_url)


# ---- this machine


def _cached(wanted: HubFile) -> Path | None:
    """The file in the cache: of the commit that was first used, if one was."""
    try:
        client = _client(str(wanted))
    except DependencyError:
        return None
    revision = _pin(wanted).get("commit", wanted.revision)
    return _local(client, wanted._replace(revision=revision), None)


def _local(client: Any, wanted: HubFile, cache: Path | None) -> Path | None:
    found = client.try_to_load_from_cache(wanted.repo, wanted.file, cache_dir=cache, revision=wanted.revision)
    return Path(found) if isinstance(found, str) else None


def _in_folder(wanted: HubFile) -> Path | None:
    """The file in the user's folder: by the reference's or its own name, in ``owner/name/``, or as in the cache."""
    if not (setting := os.environ.get(FOLDER_VARIABLE)):
        return None
    folder = Path(setting).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{FOLDER_VARIABLE}={setting}: no such folder")
    places = [folder / wanted.repo / wanted.file] if wanted.revision == "main" else []
    if wanted.name:  # file names such as model.safetensors say nothing about a hub id
        suffixes = dict.fromkeys((PurePosixPath(wanted.file).suffix, ".safetensors"))  # as published, or converted
        places += [folder / f"{wanted.name}{suffix}" for suffix in suffixes]
        places += [folder / wanted.file] if wanted.file != "model.safetensors" else []
    for place in places:
        if place.is_file():
            return place
    try:
        return _local(_client(str(wanted)), wanted, folder)
    except DependencyError:
        return None


def _checked_in_cache(wanted: HubFile, path: Path, stated: str = "") -> Path:
    """``path``, if its content has the right hash: the published one, that of the first use, or the hub's own."""
    found = sha256_of(path)
    expected = wanted.sha256 or _pin(wanted).get("sha256") or stated or found
    if found != expected:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{wanted}: sha256 of {wanted.file} is {found}, expected {expected}: damaged or replaced; it was removed "
            "from the cache, and the next use fetches it again"
        )
    if not _pin(wanted):
        commit = path.parents[len(PurePosixPath(wanted.file).parts) - 1].name
        try:
            with atomic_write(_pin_path(wanted)) as temporary:
                temporary.write_text(json.dumps({"commit": commit, "sha256": found}))
        except FovealError:
            pass  # a cache that is mounted read-only cannot change either
    return path


def _pin(wanted: HubFile) -> dict[str, str]:
    """Commit and sha256 of the first use; empty before it."""
    try:
        return json.loads(_pin_path(wanted).read_text())
    except (OSError, ValueError):
        return {}


def _pin_path(wanted: HubFile) -> Path:
    """Inside the cached repository, so that whoever removes that starts afresh."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{wanted.repo.replace('/', '--')}" / "foveal"
    return folder / wanted.revision / f"{wanted.file}.json"


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


def _download(wanted: HubFile) -> tuple[Path, str]:
    """Fetch into the cache; returns the path and the hash that the hub states (empty if it states none)."""
    client = _client(str(wanted))
    if _offline():
        raise CheckpointError(
            f"{wanted}: {wanted.file} is not on this machine and HF_HUB_OFFLINE is set; a local path works offline"
        )
    revision = _pin(wanted).get("commit", wanted.revision)
    try:
        # Asked first, and once: the client's own download would ask again and again for half a minute.
        about = client.get_hf_file_metadata(
            client.hf_hub_url(wanted.repo, wanted.file, revision=revision), timeout=_SECONDS
        )
        size = "size unknown" if about.size is None else f"{about.size / 2**20:.1f} MiB"
        source, licence = f"{wanted.repo}/{wanted.file}", wanted.licence or "licence unknown"
        print(f"downloading {wanted} once: {source}, {size}, {licence}", file=sys.stderr, flush=True)
        path = client.hf_hub_download(wanted.repo, wanted.file, revision=revision, etag_timeout=_SECONDS)
    except Exception as error:  # the client raises its own kinds, its transport's, OSError and ValueError
        raise CheckpointError(
            f"{wanted}: {wanted.file} is not on this machine and {_reason(error)}; a local path works offline"
        ) from error
    stated = about.etag or ""  # of large files: their sha256; of small ones: a git hash
    return Path(path), stated if re.fullmatch("[0-9a-f]{64}", stated) else ""


def _reason(error: Exception) -> str:
    """Why the hub did not do it, in one line."""
    from huggingface_hub.constants import ENDPOINT

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{ENDPOINT} refuses (HTTP {status}): no such repository, or it needs a token (hf auth login, HF_TOKEN)"
    if status == 404:
        return f"{ENDPOINT} has no such file (HTTP 404): check repository, revision and file name"
    if status is not None:
        return f"{ENDPOINT} answers HTTP {status}"
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{ENDPOINT} gave nothing ({text})"
