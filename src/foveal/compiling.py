"""Build C++ sources of the package with the system's compiler, once for each machine, and keep the library in a cache.

The library is built at first use by ``CXX``, c++, g++ or clang++ into ``$XDG_CACHE_HOME/foveal`` (``~/.cache/foveal``).
Its file name has a hash of the sources, the flags, and the macros that the compiler predefines (its version and the
instruction sets).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from .errors import DependencyError
from .files import atomic_write
from .text import notice

_RETRY_SECONDS = 3600  # after a failed build, which takes as long as one that succeeds
_FLAGS = ("-std=c++17", "-fPIC", "-shared", "-pthread", "-Wno-psabi")


def build(name: str, title: str, folder: Path, source: str, flags: tuple[str, ...]) -> Path:
    """Return the path of the library, built if it does not exist yet.

    Args:
        name: beginning of the name of the file.
        title: what it is, for messages.
        folder: folder of the sources; all files in it count.
        source: file in ``folder`` that is compiled.
        flags: further flags of the compiler.

    Raises:
        DependencyError: there is no compiler, or it fails, or it failed within the last hour; the message has its first
            line.
        InputError: the cache folder cannot be written.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
    if compiler is None:
        raise DependencyError("no C++ compiler found (c++, g++, clang++ or CXX)")
    command = [compiler, *_FLAGS, *flags]
    macros = _run([*command, "-x", "c++", "-dM", "-E", "-"])
    parts = [path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".cpp", ".h")]
    key = hashlib.sha256(repr((command, macros)).encode() + b"".join(parts)).hexdigest()[:20]
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "foveal"
    except RuntimeError as error:  # a user without a home folder
        raise DependencyError(f"no folder for {title}: set XDG_CACHE_HOME ({error})") from error
    path = cache / f"{name}-{key}{'.dll' if sys.platform == 'win32' else '.so'}"
    if not path.exists():
        failure = path.with_suffix(".failed")
        _raise_recent(failure)
        notice(f"compiling {title} for this CPU (once) into {cache}")
        try:
            # Some linkers replace the file that they write, and would take away the lock on a temporary file of ours.
            with TemporaryDirectory() as work, atomic_write(path) as temporary:
                built = Path(work) / path.name
                _run([*command, str(folder / source), "-o", str(built)])
                shutil.copyfile(built, temporary)
        except DependencyError as error:
            with atomic_write(failure) as temporary:
                temporary.write_text(f"{os.environ.get('PATH', '')}\n{error}", encoding="utf-8")
            raise
    return path


def _raise_recent(failure: Path) -> None:
    """Raise the error of a build that failed within the last hour with the same ``PATH``, instead of trying again."""
    try:
        age = time.time() - failure.stat().st_mtime
        searched, _, reason = failure.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return
    if 0 <= age < _RETRY_SECONDS and searched == os.environ.get("PATH", ""):
        raise DependencyError(f"{reason} ({age / 60:.0f} minutes ago; to try again now, delete {failure})")


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or "failed").splitlines()[0]
        raise DependencyError(f"{command[0]}: {reason}") from None
