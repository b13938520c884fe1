"""Write files atomically: after a crash the old file or the new one exists, never a part. Parse JSON of others."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import ConfigError, InputError

if sys.platform != "win32":
    import fcntl

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_TEMPORARY = re.compile(r"\..*-foveal-[a-z0-9_]{8}(\.[^.]*)?", re.DOTALL)
_cleaned: set[Path] = set()  # folders whose temporary files this process has looked for

_SYNCS = 16  # at once
MAX_DEPTH = 32  #: of nested lists and objects in JSON


def parse_json(content: str | bytes, max_bytes: int = 16 << 20) -> Any:
    """Parse JSON that others wrote: bounded in size and nesting, and no key may occur twice in an object.

    Raises:
        ValueError: it is not such JSON.
    """
    if len(content) > max_bytes:
        raise ValueError(f"{len(content)} bytes of JSON, above the limit of {max_bytes}")
    try:
        value = json.loads(content, object_pairs_hook=_no_duplicates)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"key {key[:60]!r} is there twice")
        unique[key] = value
    return unique


def ensure_folder(path: str | Path) -> Path:
    """Make a folder with its parents and check that it is writable, before the work whose results go there.

    Temporary files that killed processes left in it are removed.

    Raises:
        InputError: the folder cannot be made or written, or the path is a file.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise InputError(f"cannot write {path}: Permission denied")
    remove_leftovers(path)
    return path


def check_overwrites(outputs: Iterable[Path], inputs: Iterable[Path], kind: str = "file") -> None:
    """Check that no output replaces an input, whatever its name: links and other cases of letters included.

    Args:
        outputs: files that will be written.
        inputs: files, and folders, of which every file counts.
        kind: what the inputs are, for the message.

    Raises:
        ConfigError: an output is an input.
    """
    inputs = list(inputs)
    known = {identity: path for path in inputs if (identity := _identity(path)) is not None}
    folders = {path.resolve() for path in inputs if path.is_dir()}
    for output in outputs:
        identity = _identity(output)
        if identity is None:
            continue
        taken = known.get(identity) or (output if folders.intersection(output.resolve().parents) else None)
        if taken is not None:
            raise ConfigError(f"{output} would overwrite the {kind} {taken}: choose another name or folder")


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of an existing file: equal for all names that a file has."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL character in the name
        return None
    return status.st_dev, status.st_ino


def beside(target: Path, ending: str) -> Path:
    """A file next to a result: ``x.png`` and ``.overlay.jpg`` give ``x.overlay.jpg``."""
    return target.with_name(f"{target.stem}{ending}")


def ignores_case(folder: Path) -> bool:
    """Whether two names in a folder that differ only in the case of letters are one file."""
    with tempfile.NamedTemporaryFile(prefix=".Case-", dir=folder) as file:
        path = Path(file.name)
        return path.with_name(path.name.swapcase()).exists()


@contextmanager
def atomic_write(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """Context manager with a temporary path next to ``path``; on success it is synced and replaces ``path``.

    On failure the temporary file is removed and ``path`` is unchanged. A killed process leaves its temporary file; the
    next one that writes to the folder removes it.

    Args:
        path: the file.
        sync: whether the file is on the disk when this returns. Without it, a power failure can leave a part of the
            file until :func:`sync_files` has synced it; many small files are written faster so.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _cleaned:
            remove_leftovers(path.parent)
        handle, temporary = _open_temporary(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        failure = InputError(f"cannot write {path}: {error.strerror or error}")
        if error.errno in _FULL:
            failure.exit_code = 1  # the request was right, the work failed
        raise failure from error
    finally:
        temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until files that were written without ``sync`` are on the disk, with their names.

    Raises:
        InputError: a file is not there, or the disk is full.
    """

    def sync(path: Path) -> None:
        try:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error

    from concurrent.futures import ThreadPoolExecutor  # here, because it takes longer than most commands need

    paths = list(paths)
    with ThreadPoolExecutor(_SYNCS) as threads:  # a disk completes many syncs at once, one after the other takes long
        list(threads.map(sync, paths))
    for folder in dict.fromkeys(path.parent for path in paths):
        _sync_folder(folder)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Context manager with a temporary folder next to ``path``; on success it replaces the file or folder ``path``.

    On failure the temporary folder is removed and ``path`` is unchanged.

    Raises:
        InputError: the parent folder cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        outer = tempfile.TemporaryDirectory(prefix=f".{path.stem[:40]}-foveal-", dir=path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    with outer as name:
        inner, old = Path(name) / path.name, Path(name) / "old"
        yield inner
        try:
            if path.exists():
                path.rename(old)
            inner.rename(path)
        except OSError as error:
            if old.exists() and not path.exists():
                old.rename(path)
            raise InputError(f"cannot write {path}: {error.strerror}") from error


def _open_temporary(path: Path) -> tuple[int | None, Path]:
    """A new temporary file next to ``path``, and the handle whose lock shows that its process lives."""
    while True:
        handle, name = tempfile.mkstemp(path.suffix, f".{path.stem[:40]}-foveal-", path.parent)
        if sys.platform == "win32":  # where open files can neither be renamed nor removed
            os.close(handle)
            return None, Path(name)
        with suppress(OSError):  # a file system without locks: the file is then never taken for a leftover
            fcntl.flock(handle, fcntl.LOCK_EX)  # never waits long: others lock it only to remove it
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # removed by another process before it was locked


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of :func:`atomic_write` whose processes have ended, however they ended."""
    _cleaned.add(folder)
    if sys.platform == "win32":
        return
    with suppress(OSError):
        for entry in os.scandir(folder):
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                _remove_if_dead(entry.path)


def expect_leftovers() -> None:
    """Have the next :func:`atomic_write` in each folder look for temporary files again: another process was killed."""
    _cleaned.clear()


def _remove_if_dead(name: str) -> None:
    """Remove a temporary file unless a process has locked it; a lock ends with its process."""
    with suppress(OSError):
        handle = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name)
        finally:
            os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make the rename durable, on systems where folders can be synced (not Windows)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
