"""Write files atomically: after a crash the old file or the new one exists, never a part. Parse JSON of others."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

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
    unique = dict(pairs)
    if len(unique) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in unique if keys.count(key) > 1)[:60]!r} is there twice")
    return unique


def ensure_folder(path: str | Path) -> Path:
    """Make a folder with its parents and check that it is writable, before the work whose results go there.

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
    return path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Context manager with a temporary path next to ``path``; on success it is synced and replaces ``path``.

    On failure the temporary file is removed and ``path`` is unchanged.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


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
