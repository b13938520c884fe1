"""A network of an exported file that can be copied, pickled, and used in a forked process, whatever runs it."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, InputError, OutOfMemoryError, is_out_of_memory

Content: TypeAlias = Path | bytes  #: a file, or what is in it
Outputs: TypeAlias = dict[str, NDArray[np.float32]]  #: by name, in the order of the file


class Network(Protocol):
    """A network that a runtime has opened."""

    def __call__(self, feed: Mapping[str, NDArray[Any]], /) -> Outputs:
        """Run on inputs by name. Any exception means that it cannot run on them."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a runtime opens a network.

    Attributes:
        name: of the file, in messages.
        threads: number of threads, the calling one included; 0: as many as this process may use CPUs.
        device: as users write it, without "auto".
        dtype: type that it computes in, "float32" or another one that the runtime has.
    """

    name: str
    threads: int = 0
    device: str = "cpu"
    dtype: str = "float32"


#: Opens the files of one network: ``(files, settings) -> network``. A function of a module, so that it can be pickled.
OpenNetwork: TypeAlias = Callable[[Sequence[Content], Settings], Any]


class FileNetwork:
    """A network of an exported file.

    A copy shares the opened network, since runs do not change it. A pickle holds the content of the files. A forked
    process opens the files again, because the threads of the runtime do not exist there.

    Args:
        open_network: opens the files.
        files: of one network, for example the graph and its weights.
        settings: for ``open_network``.

    Raises:
        CheckpointError: the files cannot be opened.
    """

    def __init__(self, open_network: OpenNetwork, files: Sequence[Content], settings: Settings) -> None:
        self._open_network, self.settings = open_network, settings
        self.files = tuple(file if isinstance(file, bytes) else Path(file).absolute() for file in files)
        self._network: Network | None = open_network(self.files, settings)
        self._stamps = [_stamp(file) for file in self.files]
        _OPEN.add(self)

    @property
    def network(self) -> Any:
        """The opened network, opened again if this process was forked.

        Raises:
            CheckpointError: a file was removed or changed.
        """
        if self._network is None:
            self._network = self._open_network(self._contents(), self.settings)
        return self._network

    def leave_parent(self) -> None:
        """Give up the network of the process from which this one was forked, without closing it."""
        # Closing it would wait for its threads, which do not exist here: it must never be destroyed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._network))
        self._network = None

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> Outputs:
        """Run the network: outputs by name for inputs by name.

        Raises:
            InputError: it cannot run on these inputs; OutOfMemoryError: there is not enough memory.
            CheckpointError: in a forked process, the file cannot be opened again.
        """
        network = self.network
        try:
            return network(feed)
        except Exception as error:  # out of memory, or a size that the file does not accept
            shapes = " and ".join(str(value.shape) for value in feed.values())
            kind = OutOfMemoryError if is_out_of_memory(error) else InputError
            raise kind(f"the network cannot run on {shapes}: {first_line(error)}") from error

    def _contents(self) -> tuple[bytes, ...]:
        """What is in the files.

        Raises:
            CheckpointError: one was removed or changed after it had been opened.
        """
        contents = []
        for file, stamp in zip(self.files, self._stamps, strict=True):
            try:
                content, unchanged = (file if isinstance(file, bytes) else file.read_bytes()), _stamp(file) == stamp
            except OSError as error:
                raise CheckpointError(
                    f"{self.settings.name}: cannot be opened again ({error.strerror}): load the model again"
                ) from None
            if not unchanged:
                raise CheckpointError(
                    f"{self.settings.name}: the file has changed since it was opened: load the model again"
                )
            contents.append(content)
        return tuple(contents)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._open_network, self._contents(), self.settings)


_OPEN: weakref.WeakSet[FileNetwork] = weakref.WeakSet()


def _after_fork() -> None:
    for network in _OPEN:
        network.leave_parent()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def _stamp(file: Content) -> tuple[int, int]:
    """What changes when a file is written again: its size and time."""
    if isinstance(file, bytes):
        return len(file), 0
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)
