"""Maps on disk, and the folder that holds the state of a computation, from which it can be resumed.

A piece of work counts as done when its values are on the disk and the record of progress after it is: the record is
replaced in one step after the files of the maps were synced. A process that is killed at any moment therefore leaves
the state of some earlier moment, and the pieces after it are computed again, to the same values.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..files import atomic_write, parse_json
from .regions import Extent, Region

if sys.platform != "win32":
    import fcntl


class KeptMap(Protocol):
    """A map of which regions are written and read: ``(rows, columns, channels)`` arrays."""

    def read(self, region: Region) -> NDArray[Any]:
        """The values of a region, which were written before."""
        ...

    def write(self, region: Region, values: NDArray[Any]) -> None:
        """Store the values of a region."""
        ...

    def sync(self) -> None:
        """Return when everything that was written would survive a crash."""
        ...


class MemoryMap:
    """A map in memory, for images that fit."""

    def __init__(self, extent: Extent, channels: int, dtype: str) -> None:
        self.values = np.zeros((extent.height, extent.width, channels), dtype)

    def read(self, region: Region) -> NDArray[Any]:
        return self.values[region.within(extent_of(self.values))]

    def write(self, region: Region, values: NDArray[Any]) -> None:
        self.values[region.within(extent_of(self.values))] = values

    def sync(self) -> None:
        pass


def extent_of(values: NDArray[Any]) -> Region:
    """The region of all places of an array ``(H, W, ...)``."""
    return Region(0, values.shape[0], 0, values.shape[1])


class DiskMap:
    """A map in a file of plain values, row by row, channels last.

    Rows are read and written by file operations and not mapped into memory, so that the process stays small whatever
    the size of the file. Values that were never written are zero and take no room on most file systems.
    """

    def __init__(self, path: Path, extent: Extent, channels: int, dtype: str) -> None:
        self.extent, self.channels, self.dtype = extent, channels, np.dtype(dtype).newbyteorder("<")
        size = extent.places * channels * self.dtype.itemsize
        with path.open("ab") as file:
            if file.tell() != size:
                file.truncate(size)
        self.file = path.open("r+b", buffering=0)

    def _offset(self, row: int, column: int) -> int:
        return (row * self.extent.width + column) * self.channels * self.dtype.itemsize

    def read(self, region: Region) -> NDArray[Any]:
        values = np.empty((region.height, region.width, self.channels), self.dtype)
        for index, row in enumerate(values):
            self.file.seek(self._offset(region.top + index, region.left))
            if self.file.readinto(row.data.cast("B")) != row.nbytes:
                raise InputError(f"{self.file.name}: truncated; remove the folder and start again")
        return values

    def write(self, region: Region, values: NDArray[Any]) -> None:
        values = np.ascontiguousarray(values, self.dtype)
        for index, row in enumerate(values):
            self.file.seek(self._offset(region.top + index, region.left))
            if self.file.write(row.data.cast("B")) != row.nbytes:  # of a full disk, before the error
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.file.name)

    def sync(self) -> None:
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        self.file.close()


@dataclass(frozen=True)
class Progress:
    """How far a computation is.

    Attributes:
        index: of the pass.
        piece: number of its pieces that are done.
        sums: of the pieces of this process so far, float64, by the name of the reduction.
        complete: sums of earlier passes over all pieces of all processes.
    """

    index: int
    piece: int
    sums: dict[str, NDArray[np.float64]]
    complete: dict[str, NDArray[np.float64]]


class MemoryState:
    """The state of a computation that ends with its process."""

    def __init__(self) -> None:
        self.progress = Progress(0, 0, {}, {})

    def open_map(self, name: str, extent: Extent, channels: int, dtype: str) -> KeptMap:
        """A new map."""
        return MemoryMap(extent, channels, dtype)

    def save(self, progress: Progress) -> None:
        """Note the progress."""
        self.progress = progress

    def drop(self, name: str) -> None:
        """Forget a map; its memory is freed with the object."""


class StateFolder:
    """The state of a computation in a folder; open it with :func:`open_state`."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self._record = folder, folder / f"progress-{rank}.npz"
        self.maps: dict[str, DiskMap] = {}
        self.progress = self._read()

    def open_map(self, name: str, extent: Extent, channels: int, dtype: str) -> KeptMap:
        """The map of this name, new or from before."""
        self.maps[name] = DiskMap(self.folder / f"{name}.map", extent, channels, dtype)
        return self.maps[name]

    def save(self, progress: Progress) -> None:
        """Note the progress, after all maps were synced."""
        for kept in self.maps.values():
            kept.sync()
        arrays = {
            f"{kind}-{name}": values
            for kind in ("sums", "complete")
            for name, values in getattr(progress, kind).items()
        }
        with atomic_write(self._record) as path, path.open("wb") as file:
            np.savez(file, place=np.array([progress.index, progress.piece]), **arrays)
        self.progress = progress

    def drop(self, name: str) -> None:
        """Remove a map that no pass reads any more."""
        if name in self.maps:
            self.maps.pop(name).close()
        (self.folder / f"{name}.map").unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        for kept in self.maps.values():
            kept.close()

    def _read(self) -> Progress:
        path = self._record
        if not path.exists():
            return Progress(0, 0, {}, {})
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as record:
                index, piece = map(int, record["place"])
                sums, complete = (
                    {key.removeprefix(kind): record[key] for key in record.files if key.startswith(kind)}
                    for kind in ("sums-", "complete-")
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: damaged; remove {self.folder} and start again") from error
        return Progress(index, piece, sums, complete)


@contextmanager
def open_state(
    folder: Path,
    description: Mapping[str, Any],
    *,
    resume: bool,
    rank: int = 0,
    wait: Callable[[], None] = lambda: None,
) -> Iterator[StateFolder]:
    """Open the folder of a computation for this process, or for all that compute it together.

    Args:
        folder: made if it does not exist.
        description: of the model, the image and the settings, values of JSON. A computation is resumed only with the
            same ones.
        resume: whether to continue what the folder holds; otherwise that is removed.
        rank: of the process; the first one prepares the folder.
        wait: returns when all processes have called it.

    Raises:
        ConfigError: the folder is of another computation, or another process uses it.
        InputError: the folder cannot be written.
    """
    text = json.dumps(description, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) if rank == 0 else nullcontext():
            if rank == 0:
                _prepare(folder, json.loads(text), resume)
            wait()
            state = StateFolder(folder, rank)
            try:
                yield state
            finally:
                state.close()
    except OSError as error:
        failure = InputError(f"cannot write {folder}: {error.strerror or error}; --resume continues there")
        failure.exit_code = 1
        raise failure from error


def _prepare(folder: Path, description: dict[str, Any], resume: bool) -> None:
    """Make the folder one of this computation, which may be one that began before."""
    path = folder / "plan.json"
    if path.exists() and resume:
        try:
            before = parse_json(path.read_bytes())
        except ValueError:
            before = None
        if before == description:
            return
        before = before if isinstance(before, dict) else {}
        changed = sorted(key for key in {*description, *before} if description.get(key) != before.get(key))
        raise ConfigError(
            f"--resume: {folder} was begun with another {', '.join(changed)}: repeat the command that began it, or "
            "leave out --resume to start again"
        )
    for entry in folder.iterdir():
        if entry.suffix in (".map", ".npz", ".json"):
            entry.unlink()
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(description, sort_keys=True))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock ends with the process, however that ends."""
    with (folder / "lock").open("wb") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{folder}: another process works there") from None
        yield


def remove_state(folder: Path) -> None:
    """Remove the folder of a computation that is complete."""
    shutil.rmtree(folder, ignore_errors=True)


def check_disk(folder: Path, needed: int) -> None:
    """Refuse a computation whose maps do not fit on the disk of ``folder``, or its nearest parent that exists.

    Raises:
        InputError: too little room.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(
            f"{folder}: the maps of this image need {math.ceil(needed / 1e6):,} MB of disk, and {free // 10**6:,} MB "
            "are free: free some, write to another disk, or halve it with --keep float16"
        )
