"""The manifest of a job: what it computes, its plan, and one entry for each part whose results are complete.

In the folder of the results::

    part-000000.parquet               results of the first part (.tar, or PNG files by the names of the inputs)
    _foveal/job.json                  the job: inputs, model, result, digest of the plan; decides which plan is used
    _foveal/DIGEST/plan.jsonl         the parts, a line each
    _foveal/DIGEST/parts/000000.json  entry: the results of this part are complete
    _foveal/DIGEST/failed/000000      mark: some inputs of this part cannot be used; the entry names them

Results of a part have the same names whoever computes it, and appear whole. So it does no harm if two processes compute
a part, for example because one was believed dead: the second replaces the files by equal ones. Without its entry a part
is computed again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..errors import ConfigError, InputError
from ..files import parse_json
from .inputs import Search, find
from .plan import Part, divide
from .stores import FOLDER, JOB, ArrowStore, LocalStore, StoreError, open_store

_IDENTITY = ("input", "model", "model_sha256", "result", "options")


class Line(NamedTuple):
    """A part of the plan.

    Attributes:
        number: number of the part.
        start: first byte of its line in the plan.
        length: bytes of its line.
        part: the part.
    """

    number: int
    start: int
    length: int
    part: Part


@dataclasses.dataclass(frozen=True)
class Job:
    """What a job computes; a second start must agree with it.

    Attributes:
        input: where the inputs are.
        model: reference of the model.
        model_sha256: hash of the model's file; empty: it has none, as the bundled models.
        result: name of the kind of result.
        options: further options that change results.
        digest: of the plan.
        parts: number of parts.
        inputs: number of inputs; -1: not known before they are read.
    """

    input: str
    model: str
    model_sha256: str
    result: str
    options: dict[str, Any]
    digest: str = ""
    parts: int = 0
    inputs: int = 0

    def same(self, other: Job) -> bool:
        """Whether both compute the same, from the same inputs."""
        return not self._difference(other)

    def check_same(self, other: Job, out: str) -> None:
        """Check that a second start means the same job.

        Raises:
            ConfigError: it differs; the message says in what.
        """
        if name := self._difference(other):
            words = {"model_sha256": "content of the model's file"}.get(name, name)
            then, now = getattr(self, name), getattr(other, name)
            raise ConfigError(
                f"{out} has results of another job, of {words} {then!r}, not {now!r}: choose another folder"
            )

    def _difference(self, other: Job) -> str:
        """The first field in which two jobs differ; empty: none. A file is known by its content, not by its path."""
        same_file = self.model_sha256 and self.model_sha256 == other.model_sha256
        names = (name for name in _IDENTITY if not (same_file and name == "model"))
        return next((name for name in names if getattr(self, name) != getattr(other, name)), "")


class Entry(NamedTuple):
    """What an entry of the manifest says.

    Attributes:
        done: number of inputs with a result.
        failed: inputs that cannot be used: name and reason.
        files: names, sizes and SHA-256 hashes of the files of the results, unless each input has its own.
    """

    done: int
    failed: list[tuple[str, str]]
    files: list[tuple[str, int, str]]


class Manifest:
    """The manifest in the folder of the results.

    Attributes:
        store: the folder of the results.
        job: the job.
    """

    def __init__(self, store: LocalStore | ArrowStore, job: Job) -> None:
        self.store, self.job = store, job
        self._folder = f"{FOLDER}/{job.digest}"
        self._plan = f"{self._folder}/plan.jsonl"

    @classmethod
    def open(cls, out: str, job: Job, search: Search) -> tuple[Manifest, bool]:
        """Open the manifest of a job, and make the plan at the first start.

        Returns:
            The manifest, and whether an earlier start made it.

        Raises:
            ConfigError: the folder has results of another job, or other files.
            FovealError: as :func:`foveal.batch.inputs.find`.
        """
        store = open_store(out)
        known = _read_job(store)
        other = store.first_besides(FOLDER)
        if known is not None and not known.same(job) and not other and not any(cls(store, known).committed()):
            store.remove(JOB)  # of a start that failed before it had any results
            known = None
        if known is None:
            if other:
                raise ConfigError(f"{out} has other files ({other}): choose a new or empty folder for the results")
            planned = _make_plan(store, job, search)
            store.put_new(JOB, json.dumps(dataclasses.asdict(planned), indent=1).encode())
            known = _read_job(store)  # another process may have been faster
            if known is None:
                raise StoreError(f"{out}: {JOB} was removed while the job began: start again")
            known.check_same(job, out)
            return cls(store, known), False
        known.check_same(job, out)
        return cls(store, known), True

    def lines(self) -> Iterator[Line]:
        """The parts of the plan in order, read piece by piece."""
        rest, start, number = b"", 0, 0
        with self.store.open(self._plan, stream=True) as file:
            while piece := file.read(1 << 20):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield Line(number, start, len(line), Part.from_json(line))
                    start += len(line) + 1
                    number += 1

    def part(self, start: int, length: int) -> Part:
        """The part whose line is at this place of the plan."""
        return Part.from_json(self.store.read(self._plan, start, length))

    def committed(self) -> bytearray:
        """For each part 1 if its entry exists, else 0."""
        done = bytearray(self.job.parts)
        for file in self.store.list(f"{self._folder}/parts"):
            if (number := _number(file.name)) is not None and number < len(done):
                done[number] = 1
        return done

    def with_failures(self) -> list[int]:
        """Numbers of the parts of which some inputs cannot be used."""
        numbers = (_number(file.name) for file in self.store.list(f"{self._folder}/failed"))
        return sorted(number for number in numbers if number is not None)

    def entry(self, number: int) -> Entry | None:
        """The entry of a part; ``None``: it is not complete."""
        try:
            read = parse_json(self.store.read(self._entry(number)), 1 << 28)
        except FileNotFoundError:
            return None
        return Entry(read["done"], [tuple(each) for each in read["failed"]], [tuple(each) for each in read["files"]])

    def commit(self, number: int, entry: Entry) -> None:
        """Say that the results of a part are complete. They must be stored when this is called."""
        if entry.failed:
            self.store.put(f"{self._folder}/failed/{number:06}", b"")
        self.store.put(self._entry(number), json.dumps(entry._asdict()).encode())

    def reopen(self, numbers: Iterable[int]) -> None:
        """Let parts be computed again: their entries are removed first."""
        for number in numbers:
            self.store.remove(self._entry(number))
            self.store.remove(f"{self._folder}/failed/{number:06}")

    def check_unchanged(self) -> None:
        """Check at the end that all processes used the same plan.

        Raises:
            StoreError: another process began with other inputs at the same time.
        """
        if (known := _read_job(self.store)) is None or known.digest != self.job.digest:
            raise StoreError(f"{self.store.uri}: another process began this job with other inputs: start again")

    def note_name(self, number: int) -> str:
        """Name of a file for notes on a part that is not complete."""
        return f"{self._folder}/begun/{number:06}.json"

    def _entry(self, number: int) -> str:
        return f"{self._folder}/parts/{number:06}.json"


def _number(name: str) -> int | None:
    stem = name.rpartition("/")[2].removesuffix(".json")
    return int(stem) if stem.isdecimal() else None


def _read_job(store: LocalStore | ArrowStore) -> Job | None:
    try:
        return Job(**parse_json(store.read(JOB)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise InputError(f"{store.uri}/{JOB}: damaged ({error}): choose another folder") from error


def _make_plan(store: LocalStore | ArrowStore, job: Job, search: Search) -> Job:
    """Write the plan; the job says what it has."""
    digest = hashlib.sha256(json.dumps([job.input, job.model, job.model_sha256, job.result, job.options]).encode())
    parts, inputs = 0, 0
    with tempfile.TemporaryFile() as file:  # the digest is part of the plan's name
        for part in divide(find(search), search.part_size, search.workers):
            line = part.to_json().encode()
            digest.update(line)
            file.write(line + b"\n")
            parts += 1
            inputs = inputs + part.count if part.count >= 0 and inputs >= 0 else -1
        if not parts:
            raise InputError(f"{job.input}: no images in these files")
        planned = dataclasses.replace(job, digest=digest.hexdigest()[:16], parts=parts, inputs=inputs)
        file.seek(0)
        with store.create(f"{FOLDER}/{planned.digest}/plan.jsonl") as path, path.open("wb") as plan:
            shutil.copyfileobj(file, plan)
    return planned
