"""Run a job: make or read its plan, have its parts done, and say what came of it."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..prediction.devices import cpu_count, torch_gpu
from ..prediction.runtimes import choose, is_exported_file
from ..progress import Bar, Progress
from ..weights.references import find_local
from .inputs import Search
from .manifest import Job, Line, Manifest
from .pool import Event, Pool
from .results import PLAIN, Options, find_kind
from .stores import is_remote, require_pyarrow
from .worker import Setup, Task

_SHOWN = 1000  # inputs that cannot be used, which are kept to be shown
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A job as the user asks for it.

    Attributes:
        input: a folder, a pattern, a list, a tar or a Parquet file, each a path or a URI.
        out: folder of the results, path or URI.
        model: reference of the model.
        result: name of the kind of result.
        engine: options of :func:`foveal.load`.
        options: how images are predicted.
        pack: whether files of results go to tar files.
        workers: number of processes, or of replicas on Ray at most; ``None``: chosen.
        part_size: inputs of a part; ``None``: chosen.
        column: column of Parquet files with the images; empty: the only one with bytes.
        shard: which share of the parts this process does, and how many shares there are.
        ray: address of a Ray cluster, "auto" or "local"; empty: processes of this machine.
        retry_failed: whether parts with inputs that could not be used are done again.
    """

    input: str
    out: str
    model: str
    result: str = "masks"
    engine: dict[str, Any] = field(default_factory=dict)
    options: Options = PLAIN
    pack: bool = False
    workers: int | None = None
    part_size: int | None = None
    column: str = ""
    shard: tuple[int, int] = (0, 1)
    ray: str = ""
    retry_failed: bool = False


class Outcome(NamedTuple):
    """What came of a job, or of a share of it.

    Attributes:
        done: inputs with a result that this start computed.
        before: inputs with a result of earlier starts.
        failed: number of inputs that cannot be used.
        failures: the first of them, each with the reason.
        seconds: duration.
        runtime: what ran the model; empty: nothing was to do.
    """

    done: int
    before: int
    failed: int
    failures: list[tuple[str, str]]
    seconds: float
    runtime: str


def parse_shard(text: str) -> tuple[int, int]:
    """``"3/8"`` -> (3, 8): the fourth of eight shares.

    Raises:
        ConfigError: another text.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise ConfigError(f"--shard {text}: write I/N with I from 0 to N-1, for example 0/8 to 7/8")
    return int(match[1]), int(match[2])


def run_batch(request: Request) -> Outcome:
    """Run a job, or what is left of it. An earlier start with the same request is continued.

    Raises:
        FovealError: as :meth:`Manifest.open` and :meth:`Pool.run`; the results so far stay.
    """
    started = time.perf_counter()
    _check(request)
    setups = _setups(request)
    job = _describe(request)
    search = Search(request.input, request.out, request.part_size, len(setups), request.column)
    manifest, again = Manifest.open(request.out, job, search)
    state = _Run(manifest, request)
    if again and request.retry_failed:
        manifest.reopen(number for number in manifest.with_failures() if state.is_mine(number))
    state.survey()
    setups = [replace(setup, job=manifest.job) for setup in setups]
    runtime = state.work(setups)
    manifest.check_unchanged()
    failed, failures = state.failures()
    return Outcome(state.done, state.before, failed, failures, time.perf_counter() - started, runtime)


def _check(request: Request) -> None:
    """Refuse numbers and combinations that cannot be meant.

    Raises:
        ConfigError: one line about the option.
    """
    if find_kind(request.result).columns is not None:
        require_pyarrow(f"--result {request.result}")
    for name, value in (("--workers", request.workers), ("--part-size", request.part_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} {value}: give 1 or more")
    if request.pack and not find_kind(request.result).suffix:
        raise ConfigError(
            f"--tar goes with results that are files; --result {request.result} are Parquet files already"
        )
    if request.ray and request.shard != (0, 1):
        raise ConfigError("--shard is for starts without Ray: leave out one of --shard and --ray")
    if request.ray and not is_remote(request.out):
        _LOG.info("%s: every node of the cluster must see this folder", request.out)


def _describe(request: Request) -> Job:
    given = {name: value for name, value in request.options._asdict().items() if name != "batch_size"}
    options = {name: value for name, value in given.items() if value or (value == 0 and value is not False)}
    options |= {"tar": True} if request.pack else {}
    options |= {"column": request.column} if request.column else {}
    dtype = request.engine.get("dtype", "auto")
    options |= {"dtype": dtype} if dtype not in ("auto", "float32") else {}  # "auto" means float32
    given_input = request.input.removeprefix("file://")
    location = given_input if is_remote(given_input) else os.path.abspath(given_input)
    return Job(location, request.model, _hash_of(request.model), request.result, options)


def _hash_of(model: str) -> str:
    """SHA-256 of a model's file, its weights beside it included, or of all files of a package; empty: it has none."""
    path = find_local(model) or (Path(model) if is_exported_file(model) else None)
    if path is None:
        return ""
    files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    if is_package := os.path.isdir(path):
        files = sorted(path.rglob("*"))
    digest = hashlib.sha256()
    for file in (files := [each for each in files if os.path.isfile(each)]):
        if is_package:
            digest.update(os.fsencode(file.relative_to(path)) + b"\0")
        with file.open("rb") as opened:
            hashlib.file_digest(opened, lambda: digest)
    return digest.hexdigest() if files else ""


def _setups(request: Request) -> list[Setup]:
    """A setup for each worker: on the CPU a process for each core, otherwise one for each GPU."""
    engine, job = dict(request.engine), Job("", "", "", request.result, {})
    devices = _gpus(request)
    if not devices:
        threads = engine.get("threads") or 1
        engine["threads"] = threads
        devices = [engine.get("device", "auto")] * (request.workers or max(1, cpu_count() // threads))
    elif request.workers:
        devices = [devices[index % len(devices)] for index in range(request.workers)]
    return [
        Setup(request.out, job, request.model, {**engine, "device": device}, request.options, request.pack)
        for device in devices
    ]


def _gpus(request: Request) -> list[str]:
    """The GPUs that the device of a request stands for; none if it is the CPU."""
    engine = request.engine
    device, dtype = engine.get("device", "auto"), engine.get("dtype", "auto")
    if device.startswith("cuda:") or device == "mps":
        return [device]
    if device == "auto" and torch_gpu() == "mps":
        runtime, _ = choose(request.model, engine.get("runtime", "auto"), device, dtype)
        return ["mps"] if runtime.runs("mps", dtype) else []
    if device not in ("auto", "cuda") or torch_gpu() != "cuda":
        return []
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


class _Run:
    """The state of one start.

    Attributes:
        done: inputs with a result that this start computed.
        before: inputs with a result of earlier starts.
    """

    def __init__(self, manifest: Manifest, request: Request) -> None:
        self.manifest, self.request = manifest, request
        self.done = self.before = 0
        self._committed = bytearray()
        self._total = self._left = 0  # inputs, or parts if a part does not know its number of inputs
        self._by_input = manifest.job.inputs >= 0
        self._taken_back = 0  # finished inputs that are done again, because their worker ended

    def is_mine(self, number: int) -> bool:
        """Whether a part belongs to the share of this start."""
        index, count = self.request.shard
        return number % count == index

    def survey(self) -> None:
        """Count what is to do, and what earlier starts did."""
        self._committed = self.manifest.committed()
        known_failures = set(self.manifest.with_failures())
        for line in self.manifest.lines():
            if not self.is_mine(line.number):
                continue
            size = line.part.count if self._by_input else 1
            self._total += size
            if not self._committed[line.number]:
                self._left += size
            elif line.part.count >= 0 and line.number not in known_failures:
                self.before += line.part.count
            elif (entry := self.manifest.entry(line.number)) is not None:
                self.before += entry.done

    def _waiting(self) -> Iterator[Line]:
        """The parts of this share that are to do."""
        return (
            line for line in self.manifest.lines() if self.is_mine(line.number) and not self._committed[line.number]
        )

    def work(self, setups: list[Setup]) -> str:
        """Have the parts done; the runtime."""
        if not self._left:
            return ""
        progress = Progress()
        with progress.bar("batch" if self._by_input else "batch, parts", self._total, self._total - self._left) as bar:
            if self.request.ray:
                from .ray_run import run_on_ray

                events = run_on_ray(setups[0], self._waiting(), self.request.ray, self.request.workers)
                self._follow(events, bar, progress)
                return "Ray"
            pool = Pool(setups)
            self._follow(pool.run(Task(line.number, line.part) for line in self._waiting()), bar, progress)
            return pool.runtime

    def _follow(self, events: Iterator[Event], bar: Bar, progress: Progress) -> None:
        for event in events:
            if event.note:
                progress.note(event.note)
            if event.entry is not None:
                self.done += event.entry.done
                for _, reason in event.entry.failed:
                    progress.note(reason)
            steps = event.finished if self._by_input else int(event.entry is not None)
            steps -= self._taken_back
            self._taken_back = max(0, -steps)
            for _ in range(max(0, steps)):
                bar.advance()

    def failures(self) -> tuple[int, list[tuple[str, str]]]:
        """Number of inputs of this share that cannot be used, and the first of them."""
        count, first = 0, list[tuple[str, str]]()
        for number in self.manifest.with_failures():
            if self.is_mine(number) and (entry := self.manifest.entry(number)) is not None:
                count += len(entry.failed)
                first += entry.failed[: _SHOWN - len(first)]
        return count, first
