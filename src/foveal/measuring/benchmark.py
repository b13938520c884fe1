"""Measure models against each other on one machine.

Candidates take turns (A B C, B C A, ...), so that a drift of the machine's speed affects all of them alike. Ratios are
taken round by round, and their median is reported with a bound of its noise. Outputs are compared before anything is
timed. The report names the machine, the settings and the versions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FovealError
from ..prediction.devices import cpu_count
from ..task import TASKS
from . import machine
from .candidates import CLICK, Candidate, check_settings, parse_candidate
from .energy import energy_counter, joules_per_run
from .memory import peak_memory
from .opening import Opened, image_of, open_all, open_model
from .peers import is_peer, open_peer
from .report import BenchReport, Row
from .rounds import K as K
from .rounds import Work, noise_bound, torch_threads_kept, warm_up
from .rounds import interleaved as interleaved
from .rounds import ratio as ratio

_Key = tuple[int, str]  # place of the candidate, and its part
_Arrays = tuple[NDArray[Any], ...]


class _Times(NamedTuple):
    """Seconds of each round, the median of its runs, and of all runs."""

    rounds: list[float]
    runs: list[float]


def bench(
    refs: Sequence[str | Path],
    *,
    task: str | None = None,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    threads: int | None = None,
    rounds: int = 20,
    warmup: int = 3,
    runtime: str = "auto",
    device: str = "cpu",
    dtype: str = "auto",
    memory: bool = True,
) -> BenchReport:
    """Time the networks alone, without reading and preparing images, in interleaved rounds.

    A candidate is a reference that :func:`foveal.load` takes, the name of an architecture, which gets random weights,
    or ``module:callable``, a network of others (:func:`foveal.measuring.peers.open_peer`). ``REF@NAME=VALUE,...`` gives
    it settings of its own: task, size, batch, threads, runtime, device and dtype, for example
    ``efficientvit_b0@runtime=onnxruntime,threads=2``. The same candidate may be given twice. A promptable model has two
    rows: its image encoder, and a click into an image that is already encoded.

    Args:
        refs: candidates; ratios are relative to the first.
        task: task for which models by name are built; default: each architecture's own.
        size: (H, W) of the input; default: 224x224 for classification, 512x1024 for segmentation, 270x480 for
            upscaling, and the size that a promptable model takes.
        batch: images per run; default: 1.
        threads: threads of each runtime on the CPU; default: as many as there are cores that this process may use.
        rounds: turns of each candidate. In a turn it runs once, or as often as fits into 50 ms, which counts as the
            median of these runs.
        warmup: runs of each before that. On an NVIDIA GPU each candidate also runs until its time is steady, for ten
            seconds at most.
        runtime: "auto" or a runtime of :func:`foveal.load`. Models that it does not open are exported first.
        device: device of :func:`foveal.load`. On a GPU the input is in its memory before a run, and the output stays
            there; a click includes copying. NVIDIA GPUs are timed by their own events.
        dtype: "float32", "float16" or "bfloat16"; "auto" is float32.
        memory: load and run each candidate in a process of its own, too, to measure its peak memory.

    Returns:
        A report with a row for each candidate, or each network of a promptable model, in ``candidates``, with times in
        milliseconds, and with the machine and the versions.

    Raises:
        ConfigError: no candidates, impossible numbers, a setting that cannot apply to a candidate, or a candidate that
            cannot be loaded with these settings.
        InputError: the device is not there.
    """
    _check_numbers(refs, rounds=rounds, warmup=warmup)
    defaults = {"task": task, "size": size, "batch": batch, "threads": threads or None}
    defaults |= {"runtime": runtime, "device": device, "dtype": dtype}
    try:
        check_settings(Candidate("", "", **defaults))
    except ConfigError as error:
        raise ConfigError(f"bench: {error}") from None
    candidates = [parse_candidate(str(ref), defaults) for ref in refs]
    cores = cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with torch_threads_kept(), TemporaryDirectory(prefix="foveal-bench-") as folder:
        opened = open_all(candidates, cores, Path(folder))
        works = {(index, part): work for index, one in enumerate(opened) for part, work in one.works.items()}
        outputs = {key: _arrays(work.finish()) for key, work in works.items()}
        times = _time(works, opened, rounds, warmup)
        joules = {key: _energy(work, opened[key[0]].threads) for key, work in works.items()}
        peaks = {index: _peak(one) for index, one in enumerate(opened) if memory}
    rows = tuple(_row(key, opened, times, outputs, peaks, joules) for key in works)
    noise = None if any(row.noise is None for row in rows) else max(row.noise or 0.0 for row in rows)
    return BenchReport(
        rows,
        _common([row.size for row in rows]),
        _common([row.batch for row in rows]),
        _common([row.threads for row in rows]),
        rounds,
        warmup,
        noise,
        None if load is None else round(load, 2),
        machine.describe() | _gpu(works.values()),
    )


def _check_numbers(refs: Sequence[str | Path], rounds: int, warmup: int) -> None:
    if not refs:
        raise ConfigError("bench: give at least one model")
    if rounds < 1:
        raise ConfigError(f"bench: rounds={rounds}: give 1 or more")
    if warmup < 0:
        raise ConfigError(f"bench: warmup={warmup}: give 0 or more")


def _common(values: Sequence[Any]) -> Any:
    """The value that all have in common, or ``None``."""
    return values[0] if len(set(values)) == 1 else None


# ---- timing


def _time(works: dict[_Key, Work], opened: Sequence[Opened], rounds: int, warmup: int) -> dict[_Key, _Times]:
    """Time all works in turn."""
    threads = {key: opened[key[0]].threads for key in works}
    runs: dict[_Key, list[float]] = {key: [] for key in works}

    def before(key: _Key) -> None:
        """Set torch's number of threads, which holds for the whole process; its first run with others is untimed."""
        if _set_torch_threads(threads[key]):
            works[key].finish()

    def seconds(key: _Key) -> float:
        turn = works[key].turn()
        runs[key] += turn
        return float(np.median(turn))

    for key, work in works.items():
        if work.device is not None and work.device.type == "cuda":
            before(key)
            warm_up(work.seconds)
    finish = {key: work.finish for key, work in works.items()}
    turns = interleaved(finish, rounds=rounds, warmup=warmup, before=before, seconds=seconds)
    return {key: _Times(turns[key], runs[key]) for key in works}


def _set_torch_threads(threads: int) -> bool:
    """Whether torch is in use and had another number of threads."""
    torch = sys.modules.get("torch")
    if torch is None or torch.get_num_threads() == threads:
        return False
    torch.set_num_threads(threads)
    return True


def _energy(work: Work, threads: int) -> float | None:
    """Joules of one run; ``None``: the machine does not measure them."""
    counter = energy_counter(work.device)
    if counter is None:
        return None
    _set_torch_threads(threads)
    return joules_per_run(work.finish, counter)


def _row(
    key: _Key,
    opened: Sequence[Opened],
    times: dict[_Key, _Times],
    outputs: dict[_Key, _Arrays | None],
    peaks: dict[int, float | None],
    joules: dict[_Key, float | None],
) -> Row:
    """Figures of one part of one candidate."""
    index, part = key
    one, own = opened[index], times[key]
    batch = one.candidate.batch or 1
    first = next(other for other in times if (other[1] == CLICK) == (part == CLICK))
    divisor = opened[first[0]].candidate.batch or 1
    reference = [seconds / divisor for seconds in times[first].rounds]
    each = [seconds / batch for seconds in own.rounds]
    p50, p90 = (float(x) for x in np.percentile(own.runs, (50, 90)) * 1e3)
    params, macs = _costs(one, part)
    difference, agreement = _likeness(key, opened, outputs)
    bound = 0.0 if key == first else noise_bound(each, reference)
    return Row(
        ref=one.candidate.ref,
        candidate=one.candidate.text,
        task=one.task,
        part=part,
        runtime=one.runtime,
        device=one.candidate.device,
        dtype=one.candidate.dtype,
        threads=one.threads,
        size=one.candidate.size or (0, 0),
        batch=batch,
        p50_ms=round(p50, 4),
        p90_ms=round(p90, 4),
        images_per_second=round(batch * 1e3 / p50, 2),
        ratio=round(ratio(each, reference), 4),
        noise=None if bound is None or len(own.rounds) < 2 else round(bound, 4),
        params=params,
        macs=macs,
        peak_mib=None if part == CLICK else peaks.get(index),
        joules=joules[key],
        difference=difference,
        agreement=agreement,
        times_ms=tuple(round(1e3 * seconds, 4) for seconds in own.rounds),
    )


# ---- what else is said about a candidate


def _arrays(output: Any) -> _Arrays | None:
    """The arrays of an output; ``None``: it is something else than an array or several of them."""
    parts = output if isinstance(output, tuple | list) else [output]
    arrays = [part.detach().float().cpu().numpy() if hasattr(part, "detach") else part for part in parts]
    return tuple(arrays) if arrays and all(isinstance(array, np.ndarray) for array in arrays) else None


def _likeness(
    key: _Key, opened: Sequence[Opened], outputs: dict[_Key, _Arrays | None]
) -> tuple[float | None, float | None]:
    """Difference and agreement with the output of the first candidate that computes the same; see :class:`Row`."""
    one = opened[key[0]]

    def comparable(other: _Key) -> bool:
        reference = opened[other[0]]
        same_images = all(
            getattr(one.candidate, name) == getattr(reference.candidate, name) for name in ("size", "batch")
        )
        if other == key:
            return True
        if other[1] != key[1] or not same_images or reference.info is None:
            return False
        return one.info is None or _identity(one) == _identity(reference)

    reference = next(other for other in outputs if comparable(other))
    if one.info is None and reference == key:
        return None, None
    output, expected = outputs[key], outputs[reference]
    if not output or not expected or output[0].shape != expected[0].shape:
        return None, None
    scale = max(float(np.abs(expected[0]).max()), 1e-30)
    difference = float(np.abs(output[0] - expected[0]).max() / scale)
    if not np.isfinite(difference):  # a type in which the network overflows; JSON has no such number
        return None, None
    if one.task not in TASKS or not TASKS[one.task].has_classes:
        return difference, None
    return difference, float((output[0].argmax(1) == expected[0].argmax(1)).mean())


def _identity(one: Opened) -> tuple[Any, ...]:
    info = one.info
    return () if info is None else (info.model, info.task, info.tag, info.labels)


def _costs(one: Opened, part: str) -> tuple[int | None, int | None]:
    """Parameters, and multiply-accumulates of one run; ``None`` where torch or the architecture is missing."""
    if part == CLICK or (one.info is None and one.model is None):
        return None, None
    try:
        import torch

        from ..factory.create import create_described
        from .costs import count
    except ModuleNotFoundError:
        return None, None
    channels = one.info.in_chans if one.info else 3
    try:
        if one.info is None:
            params, macs = count(one.model, channels, one.candidate.size or (0, 0))
        else:
            with torch.device("meta"):  # counting needs shapes only
                model: Any = create_described(one.info).eval()
            params, macs = count(getattr(model, "image_encoder", model), channels, one.candidate.size or (0, 0))
    except FovealError:
        return None, None
    return params, (one.candidate.batch or 1) * macs


def _peak(one: Opened) -> float | None:
    """Peak memory, in MiB, of a process that loads the candidate and runs it once."""
    candidate = one.candidate.replace(ref=one.source)
    settings = {name: getattr(candidate, name) for name in Candidate.__dataclass_fields__}
    return peak_memory(_load_and_run, settings).total


def _load_and_run(settings: dict[str, Any]) -> Callable[[], object]:
    """The work whose memory :func:`bench` reports: load a candidate and run it once, on one thread."""
    candidate = Candidate(**{**settings, "size": tuple(settings["size"]), "threads": None})

    def work() -> object:
        if is_peer(candidate.ref):
            return open_peer(candidate, 1, image_of(candidate, 3)).work.finish()
        with torch_threads_kept(), TemporaryDirectory(prefix="foveal-bench-") as folder:
            opened = open_model(candidate, 1, Path(folder))
            return next(iter(opened.works.values())).finish()

    return work


def _gpu(works: Any) -> dict[str, str | int]:
    """Name of the GPU and version of CUDA, if one ran a network."""
    devices = {work.device for work in works if work.device is not None and work.device.type == "cuda"}
    if not devices:
        return {}
    import torch

    names = ", ".join(torch.cuda.get_device_name(device) for device in sorted(devices, key=str))
    return {"gpu": names, "cuda": str(torch.version.cuda)}
