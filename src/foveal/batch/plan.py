"""The plan of a job: which inputs each part has. It is written once, at the first start, and read by all others.

A part is the unit of work: its results are computed by one process and committed together. A line of the plan is a part
as JSON, so that a plan is read line by line, whatever its length.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any

#: Inputs of a part, unless the user says otherwise or they are in large row groups of a Parquet file.
LARGEST_PART = 256
_SMALLEST_PART = 8
_PARTS_PER_WORKER = 8  # so that the last parts keep all workers busy


@dataclasses.dataclass(frozen=True)
class Part:
    """Some inputs.

    Attributes:
        kind: key of :data:`foveal.batch.reading.READERS`, which reads it: "files", "tar" or "parquet".
        root: the store that the sources are in.
        names: names of the inputs, for files; of tar and Parquet files the file's own name.
        sources: where files are, if that is not their name below ``root``.
        start: first byte of a tar file, or first row of a Parquet file.
        stop: where it ends: a byte, or a row; 0: at the end of the file.
        size: bytes of the tar or Parquet file.
        count: number of inputs; -1: unknown before it is read.
        column: column of a Parquet file that has the images.
    """

    kind: str
    root: str
    names: tuple[str, ...]
    sources: tuple[str, ...] = ()
    start: int = 0
    stop: int = 0
    size: int = 0
    count: int = -1
    column: str = ""

    def to_json(self) -> str:
        """One line; default values are left out."""
        fields = dataclasses.fields(self)
        given = {field.name: getattr(self, field.name) for field in fields}
        return json.dumps({name: value for name, value in given.items() if value not in ((), 0, "")})

    @classmethod
    def from_json(cls, line: str | bytes) -> Part:
        """Read a line that :meth:`to_json` wrote."""
        read: dict[str, Any] = json.loads(line)
        tuples = {name: tuple(read[name]) for name in ("names", "sources") if name in read}
        return cls(**{"root": "", "count": 0, **read, **tuples})


def divide(found: Iterable[Part], part_size: int | None, workers: int) -> Iterator[Part]:
    """Join files that were found one by one to parts; others pass through.

    Args:
        found: parts; of files, each has one.
        part_size: files of a part; ``None``: so many that each worker has several parts, at most LARGEST_PART.
        workers: number of processes that will work.
    """
    waiting: list[Part] = []
    most = workers * _PARTS_PER_WORKER * LARGEST_PART if part_size is None else 0
    size = part_size or LARGEST_PART
    for part in found:
        if part.kind != "files":
            yield part
            continue
        waiting.append(part)
        if len(waiting) > most:  # enough for parts of the largest size
            most = 0
            while len(waiting) >= size:
                yield _joined(waiting[:size])
                del waiting[:size]
    if most:
        size = choose_part_size(len(waiting), workers)
    for first in range(0, len(waiting), size):
        yield _joined(waiting[first : first + size])


def choose_part_size(count: int, workers: int) -> int:
    """Inputs of a part so that each worker has several parts."""
    return max(_SMALLEST_PART, min(LARGEST_PART, -(-count // (workers * _PARTS_PER_WORKER))))


def _joined(files: list[Part]) -> Part:
    names = tuple(name for part in files for name in part.names)
    sources = tuple(source for part in files for source in part.sources)
    return dataclasses.replace(files[0], names=names, sources=sources, count=len(files))
