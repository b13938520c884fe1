"""A file of measurements, one line of JSON for each, that an interrupted run continues."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, InputError
from ..files import ensure_folder, parse_json
from . import machine

Row = dict[str, Any]
_MACHINE = "machine"  # kind of the lines that say where the rows below them were measured


class RowFile:
    """Rows of measurements, in memory and in a file, which may hold those of several machines.

    Every row has a ``kind`` and a ``key``, a mapping that says what was measured; a later row replaces one of the same
    kind and key. A machine is known by its processor, its system and the versions of the packages.

    Args:
        path: the file; it may exist already. ``None``: rows are in memory only.
        of_any_machine: also take the rows of other machines, for results that do not depend on it, such as scores.

    Raises:
        DataError: the file has other content.
        InputError: it cannot be read or written.
    """

    def __init__(self, path: str | Path | None, *, of_any_machine: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self.machine = machine.describe()
        self._rows: dict[str, Row] = {}
        self._where: dict[str, Row] = {}  # by the same keys: the machines of the rows
        self._last_machine: Row | None = None  # of the file, which the next line would belong to
        if self.path is None:
            return
        if not self.path.exists():
            ensure_folder(self.path.parent)
            return
        for where, row in _lines(self.path):
            self._last_machine = where
            if row is not None and (of_any_machine or where == self.machine):
                self._keep(row, where)

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order in which they were measured first."""
        return list(self._rows.values())

    def find(self, kind: str, key: Mapping[str, Any]) -> Row | None:
        """The row of this kind and key, if it was measured."""
        return self._rows.get(_identity(kind, key))

    def machines_of(self, rows: Iterable[Row]) -> list[Row]:
        """The machines that measured some of the rows of this file, the earliest first."""
        found: list[Row] = []
        for row in rows:
            where = self._where[_identity(row["kind"], row["key"])]
            if where not in found:
                found.append(where)
        return found

    def add(self, row: Row) -> None:
        """Add a row, in the file as well before this returns; it is kept as it will be read."""
        row = json.loads(json.dumps(row))
        self._keep(row, self.machine)
        if self._last_machine != self.machine:
            self._append({"kind": _MACHINE, **self.machine})
            self._last_machine = self.machine
        self._append(row)

    def _keep(self, row: Row, where: Row) -> None:
        identity = _identity(row["kind"], row["key"])
        self._rows[identity], self._where[identity] = row, where

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


@dataclass(frozen=True)
class Measured:
    """What one machine measured.

    Attributes:
        machine: its description, as :func:`foveal.measuring.machine.describe` gives it.
        rows: in the order in which they were measured first.
    """

    machine: Row
    rows: list[Row]


def read_rows(path: Path) -> list[Measured]:
    """Read the rows of a file by machine; a last line that was not finished is removed from the file.

    Raises:
        DataError: other content.
        InputError: the file cannot be read.
    """
    machines: list[Row] = []
    rows: list[dict[str, Row]] = []
    for where, row in _lines(path):
        if row is None:
            continue
        if where not in machines:
            machines.append(where)
            rows.append({})
        rows[machines.index(where)][_identity(row["kind"], row["key"])] = row
    return [Measured(where, list(found.values())) for where, found in zip(machines, rows, strict=True)]


def _lines(path: Path) -> Iterator[tuple[Row, Row | None]]:
    """Every machine with ``None``, and every row with the machine whose line stands above it."""
    try:
        whole, _, rest = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not whole:
        raise DataError(f"{path}: not a file of measurements; give a new name")
    parsed = [_parse(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]
    if rest:  # only now: before, it could be any file
        try:
            os.truncate(path, len(whole) + 1)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
    where: Row = {}
    for number, row in enumerate(parsed, 1):
        if row["kind"] == _MACHINE:
            where = {name: value for name, value in row.items() if name != "kind"}
            yield where, None
        elif not where:
            raise DataError(f"{path}, line {number}: a row stands before the machine's; give a new name")
        else:
            yield where, row


def _parse(path: Path, number: int, line: bytes) -> Row:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error}); give a new name") from None
    kind = row.get("kind") if isinstance(row, dict) else None
    if not (kind == _MACHINE or (isinstance(kind, str) and isinstance(row.get("key"), dict))):
        raise DataError(f"{path}, line {number}: not a row of measurements; give a new name")
    return row


def _identity(kind: str, key: Mapping[str, Any]) -> str:
    return json.dumps([kind, dict(sorted(key.items()))])
