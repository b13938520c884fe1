"""Files of the model hub: find them on this machine, download missing ones once, upload folders.

Addresses, the layout of the cache and credentials are huggingface_hub's (``HF_ENDPOINT``, ``HF_HUB_CACHE``,
``HF_TOKEN``, ``HF_HUB_OFFLINE``). This module adds one line before a download, limits of size and time, and a hash
check for every file. The hash is the published one, or that of the first download, which is stored with its commit in
the cached repository, so that a name gives the same weights from then on.

What a server or a cache says is not trusted: commits and hashes must be hexadecimal digits, and nothing outside the
folder of the repository in the cache is written or removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CheckpointError, ConfigError, DependencyError, ExportError, FovealError
from ..files import atomic_write
from ..text import notice

if TYPE_CHECKING:
    from email.message import Message

FOLDER_VARIABLE = "FOVEAL_WEIGHTS"  #: environment variable: a folder of weight files, searched before any download
_TIMEOUT = 5.0  # seconds to wait for the hub's answer about a file
_COMMIT_HEADER = "X-Repo-Commit"
_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")
_ETAG = re.compile('"?([0-9a-f]{40}|[0-9a-f]{64})"?')
#: A folder or file of a repository; names that Windows reserves and names that begin or end with a dot are left out.
_PART = re.compile(r"(?!(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))\w(?:[\w.+ -]*[\w+-])?", re.IGNORECASE | re.ASCII)
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
        ConfigError: ``FOVEAL_WEIGHTS`` is not a folder, or the names of the file cannot be paths.
        DependencyError: a download is needed and huggingface_hub is not installed.
    """
    _check_names(file)
    with suppress(ModuleNotFoundError):  # without the hub's client there is no cache
        if (path := _find_in_cache(file, _cache())) is not None:
            return _check_cached(file, path, _cache())
    path = _find_in_folder(file)
    if path is not None:
        converted = path.suffix != PurePosixPath(file.file).suffix  # its bytes then differ from the published ones
        check_sha256(path, "" if converted else file.sha256)
        return path
    path, hub_sha256 = _download(file)
    return _check_cached(file, path, _cache(), hub_sha256)


def _check_names(file: HubFile) -> None:
    """Refuse names that would lead out of the repository's cache, or that some system does not take for a file."""
    for kind, name in (("repository", file.repo), ("file", file.file), ("revision", file.revision)):
        if not all(_PART.fullmatch(part) for part in name.split("/")) or len(name) > 200:
            raise ConfigError(f"{name[:80]!r} cannot be the {kind} of weights on the hub: check the name")


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
    """Upload a folder to a repository on the hub; return the address of the commit.

    The repository and the branch ``revision`` are made if they do not exist.

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
        if revision and not revision.startswith("refs/"):  # of pull requests, which the hub makes
            api.create_branch(repo, branch=revision, exist_ok=True)
        skip = ["README.md"] if api.file_exists(repo, "README.md", revision=revision) else None
        commit = api.upload_folder(repo_id=repo, folder_path=folder, revision=revision, ignore_patterns=skip)
    except Exception as error:  # the client's own types, its transport's, and ValueError for invalid names
        raise ExportError(f"{repo}: nothing was sent: {_reason(error)}") from error
    return str(commit.commit_url)


# ---- files on this machine


def _cache() -> Path:
    """The hub's cache on this machine."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _repository(file: HubFile, cache: Path) -> Path:
    """The folder of a repository in a cache of huggingface_hub."""
    return cache / f"models--{file.repo.replace('/', '--')}"


def _find_in_cache(file: HubFile, cache: Path) -> Path | None:
    """The file in a cache of huggingface_hub: of the commit of its first use, or of the one that the revision names."""
    repository = _repository(file, cache)
    commit = _read_pin(file, cache).get("commit")
    with suppress(OSError):
        if commit is None and (reference := repository / "refs" / file.revision).is_file():
            with reference.open(encoding="ascii", errors="replace") as text:
                commit = text.read(100).strip()
    path = repository / "snapshots" / (commit or file.revision) / file.file
    return path if (commit is None or _COMMIT.fullmatch(commit)) and path.is_file() else None


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
    return _find_in_cache(file, folder)


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


def _check_cached(file: HubFile, path: Path, cache: Path, hub_sha256: str = "") -> Path:
    """Check the hash of a cached file: the published one, that of the first use, or the one that the hub states."""
    actual, pin = sha256_of(path), _read_pin(file, cache)
    expected = file.sha256 or pin.get("sha256") or hub_sha256 or actual
    if actual != expected:
        removed = remove_cached(path, _repository(file, cache))
        raise CheckpointError(
            f"{file}: sha256 of {file.file} is {actual}, expected {expected}: damaged or replaced; "
            + ("it was removed from the cache, and the next use downloads it again" if removed else f"remove {path}")
        )
    if not pin:
        commit = path.parents[len(PurePosixPath(file.file).parts) - 1].name
        with suppress(FovealError), _cache_file(_pin_path(file, cache), _repository(file, cache)) as temporary:
            temporary.write_text(json.dumps({"commit": commit, "sha256": actual}))  # no pin in a read-only cache
    return path


def _read_pin(file: HubFile, cache: Path) -> dict[str, str]:
    """Commit and sha256 of the first use; empty before it."""
    try:
        with _pin_path(file, cache).open("rb") as stored:
            pin = json.loads(stored.read(1000))
    except (OSError, ValueError, RecursionError):
        return {}
    valid = isinstance(pin, dict) and isinstance(pin.get("commit"), str) and isinstance(pin.get("sha256"), str)
    return pin if valid and _COMMIT.fullmatch(pin["commit"]) and _SHA256.fullmatch(pin["sha256"]) else {}


def _pin_path(file: HubFile, cache: Path) -> Path:
    """Where the pin is stored: inside the cached repository, so that removing the repository removes the pin."""
    return _repository(file, cache) / "foveal" / file.revision / f"{file.file}.json"


@contextmanager
def _cache_file(path: Path, folder: Path) -> Iterator[Path]:
    """Write ``path`` atomically, unless a link leads its folder out of ``folder``."""
    if not is_inside(path, folder):
        raise CheckpointError(f"{path.parent} leads out of {folder}: nothing was written; remove the link")
    with atomic_write(path) as temporary:
        yield temporary


def is_inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` itself is below ``folder``, whatever links are on the way; what it links to does not matter."""
    try:
        return path.parent.resolve().is_relative_to(folder.parent.resolve() / folder.name)
    except (OSError, RuntimeError):  # a loop of links
        return False


def remove_cached(path: Path, folder: Path) -> bool:
    """Remove a cached file, and the file that it links to, as far as both are below ``folder``.

    Returns:
        bool: whether it is gone.
    """
    with suppress(OSError):
        linked = [path.parent / os.readlink(path)] if path.is_symlink() else []
        for file in (*linked, path):
            if is_inside(file, folder):
                file.unlink(missing_ok=True)
    return not os.path.lexists(path)


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
    from . import transfer  # its modules of HTTP take time, and few commands download

    client = _client(str(file))
    if _offline():
        raise CheckpointError(
            f"{file}: {file.file} is not on this machine and HF_HUB_OFFLINE is set; a local path works offline"
        )
    cache = _cache()
    revision = _read_pin(file, cache).get("commit", file.revision)
    try:
        headers = _request_headers(client)
        # One question first: without it, a hub that does not answer would cost as long as a slow download.
        url = client.hf_hub_url(file.repo, file.file, revision=revision)
        commit, sha256, size = _facts(transfer.head(url, headers, _COMMIT_HEADER, _TIMEOUT))
        shown = "size unknown" if size is None else f"{size / 2**20:.1f} MiB"
        source, licence = f"{file.repo}/{file.file}", file.licence or "licence unknown"
        notice(f"downloading {file} once: {source}, {shown}, {licence}")
        url = client.hf_hub_url(file.repo, file.file, revision=commit)
        repository = _repository(file, cache)
        path = repository / "snapshots" / commit / file.file
        with _cache_file(path, repository) as temporary:
            transfer.Transfer(url, temporary, size, headers).run()
        if revision != commit:
            with _cache_file(repository / "refs" / revision, repository) as temporary:
                temporary.write_text(commit)
    except (transfer.TransferError, ValueError) as error:  # ValueError: the hub's client refuses a name
        raise CheckpointError(
            f"{file}: {file.file} is not on this machine and {_reason(error)}; a local path works offline"
        ) from error
    return path, sha256


def _request_headers(client: Any) -> dict[str, str]:
    """The headers of a request: our name, and the user's token. The client's own function asks the hub for more."""
    from huggingface_hub.constants import HF_HUB_DISABLE_IMPLICIT_TOKEN

    token = None if HF_HUB_DISABLE_IMPLICIT_TOKEN else client.get_token()
    return {"User-Agent": "foveal", **({"Authorization": f"Bearer {token}"} if token else {})}


def _facts(headers: Message) -> tuple[str, str, int | None]:
    """Commit, SHA-256 (empty if it is another hash) and size of a file (``None``: unknown), as the hub states them.

    Raises:
        TransferError: they are not in the form of a hub, or the file is larger than any weights.
    """
    from . import transfer

    commit = headers.get(_COMMIT_HEADER, "")
    etag = headers.get("X-Linked-Etag") or headers.get("ETag") or ""
    if not _COMMIT.fullmatch(commit):
        raise transfer.TransferError(f"it states the commit {commit[:40]!r}, not 40 hexadecimal digits")
    if not (match := _ETAG.fullmatch(etag)):
        raise transfer.TransferError(f"it states the ETag {etag[:40]!r}, not a hash")
    size = transfer.stated_size(headers)
    if size is not None and size > transfer.MAX_BYTES:
        raise transfer.TransferError(f"it states {size} bytes, above the limit of {transfer.MAX_BYTES}")
    return commit, match[1] if len(match[1]) == 64 else "", size


def _reason(error: Exception) -> str:
    """Why a request to the hub failed, in one line."""
    from huggingface_hub.constants import ENDPOINT

    status = getattr(error, "code", 0) or getattr(getattr(error, "response", None), "status_code", 0)
    if status in (401, 403):
        return f"{ENDPOINT} refuses (HTTP {status}): no such repository, or it needs a token (hf auth login, HF_TOKEN)"
    if status == 404:
        return f"{ENDPOINT} has no such file (HTTP 404): check repository, revision and file name"
    if status:
        return f"{ENDPOINT} answers HTTP {status}: try again later"
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{ENDPOINT} gave no usable answer ({text}): check the connection, HF_ENDPOINT and the name"
