"""Measuring models against each other on one machine, so that the figures can be believed.

Candidates take turns (A B C, B C A, ...), so that a machine whose speed drifts is fair to all; ratios are taken round
by round and their median is reported; outputs are compared before anything is timed; machine, threads and versions
stand beside the figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DependencyError, FovealError
from ..prediction.load import load
from ..prediction.onnx_runner import OnnxRunner
from ..prediction.predictor import Predictor
from ..prediction.torch_runner import TorchRunner
from . import machine

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Candidate:
    """Figures of one model.

    Attributes:
        ref: what was measured.
        runtime: what ran it, where.
        p50_ms: median time of one run of the network.
        p90_ms: nine of ten runs were at most this long.
        images_per_second: batch over the median time.
        ratio: its time over the first candidate's, median over the rounds.
        params: number of weights.
        macs: multiply-accumulates of one run, ``None`` where torch or the architecture is missing.
        peak_mib: largest resident memory of a fresh process that loads it and runs once, imports included.
        difference: largest output difference to the first candidate with the same classes, over its largest output.
        agreement: share of positions with the same class as that one; ``None`` for other kinds of output.
    """

    ref: str
    runtime: str
    p50_ms: float
    p90_ms: float
    images_per_second: float
    ratio: float
    params: int | None
    macs: int | None
    peak_mib: float | None
    difference: float | None
    agreement: float | None


@dataclass(frozen=True)
class BenchReport:
    """Candidates side by side, with what the figures depend on.

    Attributes:
        candidates: in the order given; the first is the reference of the ratios.
        size: (H, W) of the input.
        batch: images per run.
        threads: of the runtimes.
        rounds: timed runs of each candidate.
        machine: processor, cores, system and versions.
    """

    candidates: tuple[Candidate, ...]
    size: tuple[int, int]
    batch: int
    threads: int
    rounds: int
    machine: dict[str, str | int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> list[tuple[str, ...]]:
        """Header and one row per candidate, as text."""
        header = (
            "model",
            "runtime",
            "p50 ms",
            "p90 ms",
            "images/s",
            "ratio",
            "params",
            "MACs",
            "peak MiB",
            "same class",
        )
        rows = [
            (
                c.ref,
                c.runtime,
                f"{c.p50_ms:.1f}",
                f"{c.p90_ms:.1f}",
                f"{c.images_per_second:.1f}",
                f"{c.ratio:.2f}",
                "" if c.params is None else f"{c.params / 1e6:.2f} M",
                "" if c.macs is None else f"{c.macs / 1e9:.2f} G",
                "" if c.peak_mib is None else f"{c.peak_mib:.0f}",
                "" if c.agreement is None else f"{c.agreement:.3%}",
            )
            for c in self.candidates
        ]
        return [header, *rows]


def bench(
    refs: Sequence[str | Path],
    *,
    size: tuple[int, int] = (512, 1024),
    batch: int = 1,
    threads: int | None = None,
    rounds: int = 20,
    warmup: int = 3,
    runtime: str = "auto",
) -> BenchReport:
    """Time the networks alone (no reading, no preparing) on the CPU, interleaved.

    Args:
        refs: whatever :func:`foveal.load` takes, and architectures without weights (random ones then).
        size: (H, W) of the input.
        batch: images per run.
        threads: of each runtime; default: all cores.
        rounds: timed runs of each.
        warmup: runs before that.
        runtime: "auto", "onnxruntime" or "torch".

    Raises:
        ConfigError: no candidates, impossible numbers, or a reference that cannot be loaded.
    """
    if not refs or min(batch, rounds, *size) < 1 or warmup < 0:
        raise ConfigError("bench needs at least one model, and positive size, batch and rounds")
    if len({str(ref) for ref in refs}) < len(refs):
        raise ConfigError("bench: the same model is named twice")
    threads = threads or int(machine.describe()["cores"])
    predictors = {str(ref): _open(str(ref), runtime, threads) for ref in refs}
    images = {name: _image(batch, p.info.in_chans, size) for name, p in predictors.items()}
    outputs = {name: p.runner(images[name]) for name, p in predictors.items()}
    runs = {name: lambda p=p, x=images[name]: p.runner(x) for name, p in predictors.items()}
    times = interleaved(runs, rounds=rounds, warmup=warmup)
    first = next(iter(times.values()))
    candidates = []
    for name, predictor in predictors.items():
        p50, p90 = np.percentile(times[name], (50, 90)) * 1e3
        params, macs = _counts(predictor, images[name])
        candidates.append(
            Candidate(
                ref=name,
                runtime=predictor.runtime,
                p50_ms=round(float(p50), 3),
                p90_ms=round(float(p90), 3),
                images_per_second=round(batch * 1e3 / float(p50), 2),
                ratio=round(ratio(times[name], first), 4),
                params=params,
                macs=macs,
                peak_mib=peak_memory(_opening, name, runtime, batch, *size).total,
                **_likeness(name, outputs, predictors),
            )
        )
    return BenchReport(tuple(candidates), size, batch, threads, rounds, machine.describe())


def interleaved(
    candidates: Mapping[K, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    after: Callable[[], object] = lambda: None,
) -> dict[K, list[float]]:
    """Run every candidate once per round, starting with another one each time.

    Args:
        candidates: what to run, by name.
        rounds: timed runs of each.
        warmup: runs before that.
        clock: seconds; ``time.process_time`` leaves out what other processes take, for candidates of one thread.
        after: called behind every run, untimed; shows progress.

    Returns:
        Seconds per candidate, one entry per round, so that ratios can be taken round by round.
    """
    names = list(candidates)
    for _ in range(warmup):
        for name in names:
            candidates[name]()
            after()
    times: dict[K, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            started = clock()
            candidates[name]()
            times[name].append(clock() - started)
            after()
    return times


def ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Median of the round-by-round ratios."""
    return float(np.median(np.divide(times, reference)))


def _image(batch: int, channels: int, size: tuple[int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((batch, channels, *size)).astype(np.float32)


def _open(ref: str, runtime: str, threads: int) -> Predictor:
    try:
        predictor = load(ref, runtime=runtime, device="cpu")
    except FovealError:
        predictor = _untrained(ref)
        if predictor is None:
            raise
    if isinstance(predictor.runner, OnnxRunner):
        predictor.runner = OnnxRunner(predictor.runner.path, threads)
    else:
        import torch

        torch.set_num_threads(threads)
    return predictor


def _untrained(ref: str) -> Predictor | None:
    """An architecture with random weights, for its speed alone; ``None`` if ``ref`` names none."""
    try:
        from ..factory.create import create_model, list_models
        from ..info import info_of
        from ..layers.optimize import optimize
    except ModuleNotFoundError as error:
        raise DependencyError(f"{ref}: architectures need {error.name}: pip install 'foveal[torch]'") from error
    if ref not in list_models():
        return None
    model = create_model(ref, "segment")
    return Predictor(TorchRunner(optimize(model)), info_of(model), "torch on cpu, random weights")


def _likeness(
    name: str, outputs: Mapping[str, NDArray[np.float32]], predictors: Mapping[str, Predictor]
) -> dict[str, float | None]:
    """How close the output is to that of the first candidate for the same model and classes (itself: 0 and 1)."""
    info = predictors[name].info
    reference = next(
        other
        for other, p in predictors.items()
        if (p.info.model, p.info.tag, p.info.labels) == (info.model, info.tag, info.labels)
    )
    mine, theirs = outputs[name], outputs[reference]
    if mine.shape != theirs.shape:
        return {"difference": None, "agreement": None}
    difference = float(np.abs(mine - theirs).max() / max(float(np.abs(theirs).max()), 1e-30))
    return {"difference": difference, "agreement": float((mine.argmax(1) == theirs.argmax(1)).mean())}


def _counts(predictor: Predictor, image: NDArray[np.float32]) -> tuple[int | None, int | None]:
    """(parameters, multiply-accumulates); what cannot be counted without torch is ``None``."""
    try:
        import torch

        from ..factory.create import create_model
        from .costs import count
    except ModuleNotFoundError:
        return None, None
    info = predictor.info
    try:
        with torch.device("meta"):  # counting needs shapes only
            model = create_model(
                info.model, info.task, num_classes=info.num_classes, in_chans=info.in_chans, **info.options
            ).eval()
    except FovealError:
        return None, None
    batch, channels, height, width = image.shape
    params, macs = count(model, channels, (height, width))
    return params, batch * macs


_MEMORY_SCRIPT = """
import importlib, json, sys
module, function, arguments = json.loads(sys.argv[1])
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))
work = getattr(importlib.import_module(module), function)(*arguments)
before, importing = status("VmRSS"), status("VmHWM")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
work()
peak = status("VmHWM")
print(max(peak, importing), max(peak - before, 0))
"""


class PeakMemory(NamedTuple):
    """Largest resident memory of a process of its own, in MiB."""

    total: float | None  #: of the whole process, imports included
    grown: float | None  #: how far the work itself raised it


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> PeakMemory:
    """Measure ``prepare(*arguments)()`` in a fresh process, from Linux's VmHWM; ``None`` twice where that fails.

    Not ``ru_maxrss``: a child inherits that figure from the process that started it.

    Args:
        prepare: a function at the top of a module; imports and does what is not to be counted as growth, and returns
            the work.
        *arguments: for it, of JSON's types.
    """
    call = json.dumps([prepare.__module__, prepare.__name__, arguments])
    done = subprocess.run([sys.executable, "-c", _MEMORY_SCRIPT, call], capture_output=True, text=True)
    lines = done.stdout.split()
    if done.returncode or len(lines) < 2:
        return PeakMemory(None, None)
    return PeakMemory(round(int(lines[-2]) / 1024, 1), round(int(lines[-1]) / 1024, 1))


def _opening(ref: str, runtime: str, batch: int, height: int, width: int) -> Callable[[], object]:
    """The work whose memory :func:`bench` reports: loading a model and running it once, on one thread."""

    def work() -> object:
        predictor = _open(ref, runtime, 1)
        return predictor.runner(_image(batch, predictor.info.in_chans, (height, width)))

    return work
