"""A file of measurements, one line of JSON for each, that an interrupted run continues."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError, InputError
from ..files import ensure_folder, parse_json
from . import machine

Row = dict[str, Any]
_MACHINE = "machine"  # kind of the first line


class RowFile:
    """Rows of measurements of this machine, in memory and in a file.

    Every row has a ``kind`` and a ``key``, a mapping that says what was measured; a later row replaces one of the same
    kind and key.

    Args:
        path: the file; it may exist already. ``None``: rows are in memory only.

    Raises:
        DataError: the file has other content, or was measured on another machine or with other versions.
        InputError: it cannot be read or written.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.machine = machine.describe()
        self._rows: dict[str, Row] = {}
        if self.path is None:
            return
        if self.path.exists():
            for row in read_rows(self.path, self.machine):
                self._rows[_identity(row["kind"], row["key"])] = row
        else:
            ensure_folder(self.path.parent)
            self._append({"kind": _MACHINE, **self.machine})

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order in which they were measured first."""
        return list(self._rows.values())

    def find(self, kind: str, key: Mapping[str, Any]) -> Row | None:
        """The row of this kind and key, if it was measured."""
        return self._rows.get(_identity(kind, key))

    def add(self, row: Row) -> None:
        """Add a row, in the file as well before this returns; it is kept as it will be read."""
        row = json.loads(json.dumps(row))
        self._rows[_identity(row["kind"], row["key"])] = row
        self._append(row)

    def _append(self, row: Row) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error


def read_rows(path: Path, here: Mapping[str, Any] | None = None) -> list[Row]:
    """Read the rows of a file; a last line that was not finished is removed from it.

    Args:
        path: the file.
        here: description of the machine that the rows must be of; ``None``: any.

    Raises:
        DataError: other content, or another machine.
        InputError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
        whole, _, rest = content.rpartition(b"\n")
        if rest and whole:
            os.truncate(path, len(whole) + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    rows: list[Row] = []
    for number, line in enumerate(whole.splitlines(), 1):
        row = _parse(path, number, line)
        if number > 1:
            rows.append(row)
        elif here is not None:
            _check_machine(path, row, here)
    if not whole:
        raise DataError(f"{path}: not a file of measurements; give a new name")
    return rows


def machine_of(path: Path) -> Row:
    """The machine that the rows of a file are of, the file's first line.

    Raises:
        DataError: other content.
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _parse(path, 1, file.readline(1 << 16))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _parse(path: Path, number: int, line: bytes) -> Row:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error}); give a new name") from None
    fits = isinstance(row, dict) and (row.get("kind") == _MACHINE) == (number == 1)
    if not fits or (number > 1 and not (isinstance(row.get("kind"), str) and isinstance(row.get("key"), dict))):
        raise DataError(f"{path}, line {number}: not a row of measurements; give a new name")
    return row


def _check_machine(path: Path, there: Row, here: Mapping[str, Any]) -> None:
    other = {name for name in here.keys() | there.keys() if name != "kind" and here.get(name) != there.get(name)}
    if other:
        differences = ", ".join(f"{name} {there.get(name)} there, {here.get(name)} here" for name in sorted(other))
        raise DataError(f"{path} was measured elsewhere ({differences}): give a new name")


def _identity(kind: str, key: Mapping[str, Any]) -> str:
    return json.dumps([kind, dict(sorted(key.items()))])
