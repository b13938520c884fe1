"""The lock of a run's folder: one training at a time, while anything may read from the folder."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from accelerate import Accelerator

from ..errors import ConfigError, InputError
from .distributed import reduce_max

NAME = "training.lock"
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_held: set[Path] = set()  # folders in which this process trains: locks of the system are between processes


@contextmanager
def only_training(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Context manager during which no other training uses ``folder``; the first of several processes holds the lock.

    It is a lock of the operating system, which ends with the process, however that ends.

    Raises:
        ConfigError: another training uses the folder; every process raises it.
        InputError: the folder cannot be written.
    """
    key, new = folder.resolve(), not folder.exists()
    main = accelerator.is_main_process
    file = _acquire(folder) if main and key not in _held else None
    if reduce_max(int(main and file is None), accelerator):
        raise ConfigError(
            f"{folder}: another training is running in this folder: wait for its end, or choose another folder"
        )
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        if file is not None:
            _release(file, folder)
            if new:
                with suppress(OSError):  # it has files
                    folder.rmdir()


def _acquire(folder: Path) -> IO[bytes] | None:
    """Lock the folder's file; ``None`` if another process has it."""
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = path.open("ab")
            try:
                _lock(file)
                if sys.platform == "win32" or os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                    return file
            except FileNotFoundError:
                pass  # the training that held it has just removed it
            except OSError as error:
                if error.errno in _BUSY:
                    file.close()
                    return None
                return file  # a file system without locks
            file.close()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        # Not flock, which the data loading processes would inherit: they outlive a killed run by seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _release(file: IO[bytes], folder: Path) -> None:
    """Remove the file while it is locked, so that nobody locks a file that is about to be removed, and unlock it."""
    path = folder / NAME
    if sys.platform == "win32":  # open files cannot be removed
        file.close()
    with suppress(OSError):
        path.unlink()
    file.close()
