"""One worker: a predictor that does one part after the other, whoever gives it parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import InputError
from ..files import expect_leftovers
from ..prediction.load import load
from .manifest import Entry, Job, Manifest
from .plan import Part
from .reading import read_part
from .results import PLAIN, Options, find_kind
from .sinks import choose_sink
from .stores import StoreError, open_store


@dataclass(frozen=True)
class Setup:
    """What a worker needs; it is sent to other processes and machines.

    Attributes:
        out: folder of the results.
        job: the job.
        model: reference of the model.
        engine: options of :func:`foveal.load`.
        options: how images are predicted.
        pack: whether files of results go to tar files.
    """

    out: str
    job: Job
    model: str
    engine: Mapping[str, Any] = field(default_factory=dict)
    options: Options = PLAIN
    pack: bool = False


class Task(NamedTuple):
    """A part that is to do.

    Attributes:
        number: number of the part.
        part: the part.
        careful: whether images run one by one, so that it is known which one ends the process.
        skip: inputs that are left out, by their place in the part, each with the reason.
    """

    number: int
    part: Part
    careful: bool = False
    skip: Mapping[int, str] = {}


def _ignore(begun: int, done: int) -> None:
    """Nobody is told about the progress."""


class Worker:
    """Loads the model once, and does parts.

    Raises:
        FovealError: the model cannot be loaded, or does not go with the kind of result.
    """

    def __init__(self, setup: Setup) -> None:
        def open_predictor(runtime: str) -> Any:
            return load(setup.model, **{**setup.engine, **({"runtime": runtime} if runtime else {})})

        self.setup, self.kind = setup, find_kind(setup.job.result)
        self.predictor = self.kind.open(open_predictor, setup.engine.get("runtime", "auto"))
        self.kind.check(self.predictor, setup.options, setup.job.result)
        self.manifest = Manifest(open_store(setup.out), setup.job)
        self._open_sink = choose_sink(self.kind, self.kind.schema(self.predictor), setup.pack)

    def run(self, task: Task, progress: Callable[[int, int], None] = _ignore) -> Entry:
        """Do a part: read, predict, store the results, and commit them.

        Args:
            task: the part.
            progress: called with the number of inputs that were begun, and of those that are finished.

        Raises:
            StoreError: an input cannot be read now, or the results cannot be stored.
            FovealError: the work cannot be done at all.
        """
        if task.careful:  # another process was killed in this part, perhaps while it wrote
            expect_leftovers()
        with storing(task.number):
            sink = self._open_sink(self.manifest.store, task.number)
        failed: list[tuple[str, str]] = []
        done = 0
        try:
            for name, record in self._records(task, progress):
                if isinstance(record, InputError):
                    failed.append((name, str(record)))
                else:
                    try:
                        with storing(task.number):
                            sink.add(name, record)
                        done += 1
                    except InputError as error:  # its name cannot be that of a file
                        failed.append((name, str(error)))
                progress(0, done + len(failed))
            with storing(task.number):
                files = sink.close()
        except BaseException:
            sink.abandon()
            raise
        entry = Entry(done, failed, [(each.name, each.size, each.sha256) for each in files])
        self.manifest.commit(task.number, entry)
        return entry

    def _records(self, task: Task, progress: Callable[[int, int], None]) -> Iterator[tuple[str, Any]]:
        """Name and record, or error, of each input of a part, in their order."""
        waiting: deque[tuple[str, InputError | None]] = deque()  # inputs that were begun

        def images() -> Iterator[Any]:
            for index, (name, image) in enumerate(read_part(task.part)):
                progress(index + 1, -1)
                reason = task.skip.get(index)
                if reason is not None:
                    image = InputError(f"{name}: {reason}")
                if isinstance(image, InputError):
                    waiting.append((name, image))
                else:
                    waiting.append((name, None))
                    yield image

        options = self.setup.options._replace(batch_size=None) if task.careful else self.setup.options
        for record in self.kind.answers(self.predictor, images(), options):
            while waiting[0][1] is not None:
                yield waiting.popleft()
            yield waiting.popleft()[0], record
        yield from waiting


@contextmanager
def storing(number: int) -> Iterator[None]:
    """Context manager in which an error of a disk is a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write part {number} of the results: {error.strerror or error}") from error


def reason_of(error: BaseException) -> str:
    """What went wrong, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
