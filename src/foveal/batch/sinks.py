"""Where the records of a part go: files by the names of the inputs, one tar file, or one Parquet file."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..errors import InputError
from .inputs import safe_name
from .results import Kind
from .stores import ArrowStore, LocalStore

_ROWS = 64  # of a table that are held before they are compressed


class Written(NamedTuple):
    """A file of a part: its name, its size in bytes and its SHA-256 hash."""

    name: str
    size: int
    sha256: str


class Sink(Protocol):
    """Takes the records of one part."""

    def add(self, name: str, record: Any) -> None:
        """Take the record of the input of this name."""
        ...

    def close(self) -> list[Written]:
        """Store what was added, so that it survives a power failure; the files of the part, if it has its own."""
        ...

    def abandon(self) -> None:
        """Leave no partial file."""
        ...


_LONGEST_NAME = 255  # bytes of a file name on Linux and macOS, units of UTF-16 on Windows


def _length(name: str) -> int:
    return len(name.encode("utf-16-le", "surrogatepass")) // 2 if sys.platform == "win32" else len(os.fsencode(name))


class FilesSink:
    """A file for each input, by its name: ``FOLDER/street.jpg`` gives ``FOLDER/street.jpg.png``."""

    def __init__(self, store: LocalStore | ArrowStore, suffix: str) -> None:
        self.store, self.suffix = store, suffix
        self.names: list[str] = []

    def add(self, name: str, record: bytes) -> None:
        file = f"{safe_name(name)}{self.suffix}"
        if self.store.is_local and any(_length(part) > _LONGEST_NAME for part in file.split("/")):
            raise InputError(f"{name}: its result {file} would have too long a name for a file")
        self.store.put(file, record, sync=False)
        self.names.append(file)

    def close(self) -> list[Written]:
        self.store.sync(self.names)
        return []

    def abandon(self) -> None:
        """Nothing: each file is whole, and is replaced when the part is done again."""


class _OneFile(ABC):
    """A file for the part: it is written to a temporary file, which gets its name at the end."""

    def __init__(self, store: LocalStore | ArrowStore, name: str) -> None:
        self.name, self._stack = name, ExitStack()
        self.path: Path = self._stack.enter_context(store.create(name))

    def close(self) -> list[Written]:
        self._finish()
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        written = Written(self.name, self.path.stat().st_size, digest)
        self._stack.close()
        return [written]

    def abandon(self) -> None:
        error = _AbandonedError()
        self._stack.__exit__(_AbandonedError, error, None)

    @abstractmethod
    def _finish(self) -> None:
        """Write what ends the file, and close it."""


class _AbandonedError(Exception):
    """Ends the writing of a file that is not wanted."""


class TarSink(_OneFile):
    """A tar file with a member for each input, by its name."""

    def __init__(self, store: LocalStore | ArrowStore, name: str, suffix: str) -> None:
        super().__init__(store, f"{name}.tar")
        self.suffix = suffix
        self._archive = tarfile.open(self.path, "w")  # noqa: SIM115 (it is open until the part is done)

    def add(self, name: str, record: bytes) -> None:
        member = tarfile.TarInfo(f"{safe_name(name)}{self.suffix}")
        member.size = len(record)
        self._archive.addfile(member, io.BytesIO(record))

    def _finish(self) -> None:
        self._archive.close()


class TableSink(_OneFile):
    """A Parquet file with a row for each input."""

    def __init__(self, store: LocalStore | ArrowStore, name: str, schema: Any) -> None:
        import pyarrow.parquet as pq

        super().__init__(store, f"{name}.parquet")
        self._schema, self._rows = schema, list[dict[str, Any]]()
        self._writer = pq.ParquetWriter(self.path, schema, compression="zstd")

    def add(self, name: str, record: dict[str, Any]) -> None:
        # A name that is no text has its bytes as escapes.
        self._rows.append({"image": name.encode("utf-8", "backslashreplace").decode(), **record})
        if len(self._rows) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows.clear()

    def _finish(self) -> None:
        self._flush()
        self._writer.close()


def choose_sink(kind: Kind, schema: Any, pack: bool) -> Callable[[LocalStore | ArrowStore, int], Sink]:
    """What opens the sink of a part, given the store and the number of the part.

    Args:
        kind: kind of result.
        schema: columns of the table; ``None``: files.
        pack: whether files go to one tar file for each part.
    """

    def open_sink(store: LocalStore | ArrowStore, number: int) -> Sink:
        name = f"part-{number:06}"
        if schema is not None:
            return TableSink(store, name, schema)
        return TarSink(store, name, kind.suffix) if pack else FilesSink(store, kind.suffix)

    return open_sink
