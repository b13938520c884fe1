"""Measure models against each other on one machine.

Candidates take turns (A B C, B C A, ...), so that a drift of the machine's speed affects all of them alike. Ratios are
taken round by round, and their median is reported. Outputs are compared before anything is timed. The report names the
machine, the number of threads and the versions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DependencyError, FovealError
from ..prediction.load import load
from ..prediction.onnx_runner import OnnxRunner
from ..prediction.predictor import Predictor
from ..prediction.torch_runner import TorchRunner
from . import machine
from .memory import peak_memory

DTypeName = Literal["auto", "float32", "float16", "bfloat16"]
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Candidate:
    """Figures of one model.

    Attributes:
        ref: reference of the model.
        runtime: what ran it, on which device.
        p50_ms: median time of one run of the network.
        p90_ms: 90th percentile of that time.
        images_per_second: batch size over the median time.
        ratio: its time over the first candidate's time, median over the rounds.
        params: number of weights.
        macs: multiply-accumulates of one run, ``None`` where torch or the architecture is missing.
        peak_mib: largest resident memory of a fresh process that loads it and runs once, imports included.
        difference: largest output difference to the first candidate of the same model and classes, relative to that
            candidate's largest output; ``None`` where the outputs have different shapes.
        agreement: share of positions with the same class as that candidate; ``None`` as for ``difference``.
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
    """Figures of all candidates, and the settings that they depend on.

    Attributes:
        candidates: in the order given; ratios are relative to the first.
        size: (H, W) of the input.
        batch: images per run.
        threads: threads of the runtimes.
        rounds: timed runs of each candidate.
        machine: processor, cores, operating system and versions, and the GPU if one was used.
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
        columns = "model,runtime,p50 ms,p90 ms,images/s,ratio,params,MACs,peak MiB,same class"
        return [tuple(columns.split(",")), *map(_row, self.candidates)]


def _row(c: Candidate) -> tuple[str, ...]:
    return (
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


class _Settings(NamedTuple):
    """How the candidates are loaded."""

    runtime: Literal["auto", "onnxruntime", "torch"]
    device: str
    dtype: str


def bench(
    refs: Sequence[str | Path],
    *,
    size: tuple[int, int] = (512, 1024),
    batch: int = 1,
    threads: int | None = None,
    rounds: int = 20,
    warmup: int = 3,
    runtime: Literal["auto", "onnxruntime", "torch"] = "auto",
    device: str = "cpu",
    dtype: DTypeName = "auto",
) -> BenchReport:
    """Time the networks alone, without reading and preparing images, in interleaved rounds.

    Args:
        refs: references that :func:`foveal.load` takes, or names of architectures, which get random weights.
        size: (H, W) of the input.
        batch: images per run.
        threads: threads of each runtime; default: all cores.
        rounds: timed runs of each candidate.
        warmup: runs of each before that.
        runtime: "auto", "onnxruntime" or "torch".
        device: torch device; "auto" is a GPU if there is one. On a GPU the time includes copying the input there and
            the output back.
        dtype: "float32", "float16" or "bfloat16" for torch; "auto" is float32.

    Raises:
        ConfigError: no candidates, impossible numbers, or a reference that cannot be loaded with these settings.
        InputError: the device is not there.
    """
    _check_numbers(refs, size=size, batch=batch, threads=threads, rounds=rounds, warmup=warmup)
    threads = threads or int(machine.describe()["cores"])
    settings = _Settings(runtime, device, dtype)
    predictors = {str(ref): _open(str(ref), settings, threads) for ref in refs}
    images = {ref: _image(batch, predictor.info.in_chans, size) for ref, predictor in predictors.items()}
    runs = {ref: run_of(predictor, images[ref]) for ref, predictor in predictors.items()}
    outputs = {ref: run() for ref, run in runs.items()}
    times = interleaved(runs, rounds=rounds, warmup=warmup)
    first = next(iter(times.values()))
    candidates = []
    for ref, predictor in predictors.items():
        p50, p90 = (float(value) for value in np.percentile(times[ref], (50, 90)) * 1e3)
        params, macs = _costs(predictor, images[ref])
        difference, agreement = _likeness(ref, outputs, predictors)
        candidates.append(
            Candidate(
                ref=ref,
                runtime=predictor.runtime,
                p50_ms=round(p50, 3),
                p90_ms=round(p90, 3),
                images_per_second=round(batch * 1e3 / p50, 2),
                ratio=round(ratio(times[ref], first), 4),
                params=params,
                macs=macs,
                peak_mib=peak_memory(_load_and_run, ref, settings, batch, *size).total,
                difference=difference,
                agreement=agreement,
            )
        )
    facts = machine.describe() | _gpu(predictors.values())
    return BenchReport(tuple(candidates), size, batch, threads, rounds, facts)


def _check_numbers(refs: Sequence[str | Path], *, size: tuple[int, int], **numbers: int | None) -> None:
    if not refs:
        raise ConfigError("bench: give at least one model")
    if len({str(ref) for ref in refs}) < len(refs):
        twice = next(ref for i, ref in enumerate(refs) if str(ref) in map(str, refs[:i]))
        raise ConfigError(f"bench: {twice} is named twice; name each model once")
    if min(size) < 1:
        raise ConfigError(f"bench: size={size}: height and width are positive")
    for name, value in numbers.items():
        smallest = 1 if name in ("batch", "rounds") else 0
        if value is not None and value < smallest:
            raise ConfigError(f"bench: {name}={value}: give {smallest} or more")


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
        candidates: functions to run, by name.
        rounds: timed runs of each.
        warmup: runs of each before that.
        clock: gives seconds; ``time.process_time`` leaves out the time of other processes, for candidates of one
            thread.
        after: called after every run, untimed, for example to show progress.

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


def _open(ref: str, settings: _Settings, threads: int) -> Predictor:
    """Load a candidate and set the number of threads of its runtime."""
    try:
        predictor = load(ref, runtime=settings.runtime, device=settings.device, dtype=settings.dtype)
    except FovealError:
        predictor = _with_random_weights(ref, settings)
        if predictor is None:
            raise
    if isinstance(predictor.runner, OnnxRunner):
        predictor.runner = OnnxRunner(predictor.runner.path, threads)
    else:
        import torch

        torch.set_num_threads(threads)
    return predictor


def _with_random_weights(ref: str, settings: _Settings) -> Predictor | None:
    """An architecture with random weights, for its speed alone; ``None`` if ``ref`` names none that can run so."""
    try:
        import torch

        from ..factory.create import create_model, list_models
        from ..info import info_of
        from ..layers.optimize import optimize
        from ..prediction.load import _device
    except ModuleNotFoundError as error:
        raise DependencyError(f"{ref}: architectures need {error.name}: pip install 'foveal[torch]'") from error
    if ref not in list_models() or settings.runtime == "onnxruntime" or settings.dtype not in get_args(DTypeName):
        return None
    device, dtype = _device(settings.device), "float32" if settings.dtype == "auto" else settings.dtype
    model = create_model(ref, "segment")
    runner = TorchRunner(optimize(model), device, getattr(torch, dtype))
    kind = "" if dtype == "float32" else f", {dtype}"
    return Predictor(runner, info_of(model), f"torch on {device}{kind}, random weights")


def run_of(predictor: Predictor, image: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    """One run of the network as a function that returns when the device has finished."""
    device = getattr(predictor.runner, "device", None)
    if device is None or device.type == "cpu":
        return lambda: predictor.runner(image)
    import torch

    def run() -> NDArray[np.float32]:
        output = predictor.runner(image)
        torch.accelerator.synchronize(device)
        return output

    return run


def _costs(predictor: Predictor, image: NDArray[np.float32]) -> tuple[int | None, int | None]:
    """Parameters, and multiply-accumulates of one run; ``None`` where torch or the architecture is missing."""
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


def _likeness(
    ref: str, outputs: Mapping[str, NDArray[np.float32]], predictors: Mapping[str, Predictor]
) -> tuple[float | None, float | None]:
    """Difference and agreement with the output of the first candidate of the same model and classes.

    For that candidate itself they are 0 and 1; for outputs of different shapes, ``None``.
    """
    info = predictors[ref].info
    reference = next(
        other
        for other, p in predictors.items()
        if (p.info.model, p.info.tag, p.info.labels) == (info.model, info.tag, info.labels)
    )
    output, expected = outputs[ref], outputs[reference]
    if output.shape != expected.shape:
        return None, None
    difference = float(np.abs(output - expected).max() / max(float(np.abs(expected).max()), 1e-30))
    return difference, float((output.argmax(1) == expected.argmax(1)).mean())


def _load_and_run(
    ref: str, settings: Sequence[Any], batch: int, height: int, width: int
) -> Callable[[], NDArray[np.float32]]:
    """The work whose memory :func:`bench` reports: load a model and run it once, on one thread."""

    def work() -> NDArray[np.float32]:
        predictor = _open(ref, _Settings(*settings), 1)
        return predictor.runner(_image(batch, predictor.info.in_chans, (height, width)))

    return work


def _gpu(predictors: Iterable[Predictor]) -> dict[str, str]:
    """Name of the GPU, if one ran a network."""
    devices = {getattr(predictor.runner, "device", None) for predictor in predictors}
    cuda = sorted(str(device) for device in devices if device is not None and device.type == "cuda")
    if not cuda:
        return {}
    import torch

    return {"gpu": ", ".join(torch.cuda.get_device_name(device) for device in cuda)}
