"""Measure one of our models and a network of others in several runtimes, all in turn, in a process of its own.

A process per pair gives back its memory, and one that is killed for want of memory ends only its own pair. It is bound
to as many cores as it has threads, and both sides run with the same settings of the memory allocator.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..errors import DependencyError, FovealError, InputError
from .candidates import CLICK, Candidate
from .memory import reset_peak, resident
from .opening import image_of, open_model
from .peers import open_peer, torch_work
from .rounds import TURN, Work, interleaved, noise_bound, ratio

#: torch modules as they are created, neither folded nor prepacked, in place of a runtime.
EAGER = "eager"
#: Runtimes of our models, and of those of others.
OUR_RUNTIMES = (EAGER, "native", "onnxruntime", "openvino", "torch")
PEER_RUNTIMES = (EAGER, "onnxruntime", "openvino")
_RUNTIMES = {"ours": OUR_RUNTIMES, "peer": PEER_RUNTIMES}
#: Runtimes that are kept where memory does not suffice for all of them in one process: first these, then those.
_FEWER = (("native", "onnxruntime", "openvino"), ("native", "openvino"))
_KILLED = "the process was killed by signal"
_AGAIN = "again"  # suffix of the candidate that is opened twice
_LEAST_ROUNDS = 3
_SLOW = 10.0  # seconds
#: The allocator of glibc keeps freed memory instead of returning it and asking for it again, which costs networks with
#: large maps up to half of their time.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
_SCRIPT = """
import json, os, sys
task = json.loads(sys.stdin.read())
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
from foveal.measuring.pairwise import PairRun, measure
print(json.dumps(measure(PairRun(**task))))
"""


@dataclass(frozen=True)
class PairRun:
    """A pair and the settings that it is measured in: plain values, which can be sent to another process.

    Attributes:
        ours: reference of our model; empty: the peer alone.
        peer: ``module:callable``; empty: ours alone.
        task: task of the models.
        size: (H, W) of our images; ``None``: the model's own.
        peer_size: (H, W) of the peer's images.
        batch: images per run.
        threads: threads of each runtime.
        dtype: "float32", "bfloat16" or "float16".
        device: "cpu" or "cuda".
        runtimes: of :data:`OUR_RUNTIMES` and :data:`PEER_RUNTIMES`.
        rounds: turns of each candidate at most.
        seconds: of all rounds together; slow networks have fewer rounds, but three at least.
        folder: that keeps our exported models for the next pairs; empty: a temporary one.
    """

    ours: str
    peer: str
    task: str
    size: tuple[int, int] | None
    peer_size: tuple[int, int] | None
    batch: int = 1
    threads: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    runtimes: tuple[str, ...] = OUR_RUNTIMES
    rounds: int = 20
    seconds: float = 60.0
    folder: str = ""

    @property
    def sides(self) -> list[str]:
        """Which of "ours" and "peer" are measured."""
        return [side for side in ("ours", "peer") if getattr(self, side)]


def measure_apart(task: PairRun) -> dict[str, Any]:
    """:func:`measure` in a new process.

    Returns:
        What :func:`measure` returns, or ``{"failed": reason}``.
    """
    environment = os.environ | _ALLOCATOR | {"OMP_NUM_THREADS": str(task.threads)}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], input=json.dumps(asdict(task)), capture_output=True, text=True, env=environment
    )
    if done.returncode < 0:
        return {"failed": f"{_KILLED} {-done.returncode}, probably for want of memory"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        reason = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failed": (reason[-1] if reason else f"it ended with code {done.returncode}")[:300]}


def measure_within_memory(task: PairRun) -> dict[str, Any]:
    """:func:`measure_apart`; if the process is killed for want of memory, it is tried again with fewer runtimes.

    A process has both networks in all runtimes at the same time. What was dropped is in ``left_out``.
    """
    row, runtimes = measure_apart(task), task.runtimes
    for fewer in _FEWER:
        kept = tuple(name for name in runtimes if name in fewer)
        if kept in ((), runtimes) or not row.get("failed", "").startswith(_KILLED):
            continue
        row, runtimes = measure_apart(replace(task, runtimes=kept)), kept
    if "failed" not in row:
        dropped = [name for name in task.runtimes if name not in runtimes]
        sides = [(side, name) for side in task.sides for name in dropped if name in _RUNTIMES[side]]
        row["left_out"] |= {f"{side} {name}": "memory did not suffice for all runtimes" for side, name in sides}
    return row


def measure(task: PairRun) -> dict[str, Any]:
    """Time both networks in all runtimes that have the device and type, and one of them twice.

    Returns:
        ``candidates`` (milliseconds of each round by "ours native", "peer onnxruntime" and so on), ``left_out`` (the
        reasons), ``ratios`` (see :func:`ratios_of`), ``again`` (ratio and noise bound of one candidate that is given
        twice), ``grown_mib`` (what the first run added to the memory of the process), ``costs``, ``rounds`` and
        ``load``; ``{"failed": reason}`` if a side runs nowhere.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    set_torch_threads(task.threads)
    with TemporaryDirectory(prefix="foveal-bench-") as temporary:
        sides = _open_sides(task, Path(task.folder or temporary))
        for side in task.sides:
            if not any(name.startswith(side) for name in sides.works):
                reasons = "; ".join(f"{name}: {why}" for name, why in sides.left_out.items() if name.startswith(side))
                return {"failed": reasons[:300]}
        works = dict(sides.works)
        again = _open_again(task, sides, works)
        rounds = _rounds(task, [max(sides.first[name.removesuffix(f" {_AGAIN}")], TURN) for name in works])
        times = interleaved(
            {name: work.finish for name, work in works.items()},
            rounds=rounds, warmup=0, seconds=lambda name: float(np.median(works[name].turn())),
        )  # fmt: skip
        check = {} if again is None else _ratio(times.pop(f"{again} {_AGAIN}"), times[again])
        return {
            "candidates": {name: [round(1e3 * seconds, 4) for seconds in values] for name, values in times.items()},
            "left_out": sides.left_out,
            "ratios": ratios_of(times),
            "again": check and {"candidate": again, **check},
            "grown_mib": sides.grown,
            "costs": sides.costs(),
            "rounds": rounds,
            "load": None if load is None else round(load, 2),
        }


def _open_again(task: PairRun, sides: _Sides, works: dict[str, Work]) -> str | None:
    """Open our fastest candidate a second time, to check the noise bound of a pair, and return its name."""
    if len(task.sides) < 2:
        return None
    fastest = min((name for name in works if name.startswith("ours")), key=lambda name: sides.first[name])
    works[f"{fastest} {_AGAIN}"] = sides.open(fastest)
    works[f"{fastest} {_AGAIN}"].finish()
    return fastest


def _rounds(task: PairRun, turns: Sequence[float]) -> int:
    """As many rounds as fit into the task's seconds, but not fewer than :data:`_LEAST_ROUNDS` unless asked for."""
    return min(task.rounds, max(_LEAST_ROUNDS, int(task.seconds / sum(turns))))


def ratios_of(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """How many times faster than the peer ours is, by runtime, with noise bounds.

    The keys are runtimes that both ran in; "same", the runtime in which the peer is fastest, if both ran in it; and
    "fastest", where each runs as fast as it can. "same" is what the algorithm gains, and "fastest" over "same" what our
    runtime gains.
    """
    ratios: dict[str, dict[str, Any]] = {}
    of: dict[str, dict[str, Sequence[float]]] = {"ours": {}, "peer": {}}
    for name, values in times.items():
        side, _, runtime = name.partition(" ")
        of[side][runtime] = values
    for runtime in of["peer"]:
        if runtime in of["ours"]:
            ratios[runtime] = _ratio(of["peer"][runtime], of["ours"][runtime])
    if not all(of.values()):
        return ratios
    best = {side: min(values, key=lambda runtime: float(np.median(values[runtime]))) for side, values in of.items()}
    if best["peer"] in ratios:
        ratios["same"] = {"runtime": best["peer"], **ratios[best["peer"]]}
    fastest = _ratio(of["peer"][best["peer"]], of["ours"][best["ours"]])
    return ratios | {"fastest": {"ours": best["ours"], "peer": best["peer"], **fastest}}


def _ratio(times: Sequence[float], reference: Sequence[float]) -> dict[str, float | None]:
    bound = noise_bound(times, reference)
    return {"ratio": round(ratio(times, reference), 4), "noise": None if bound is None else round(bound, 4)}


def best_of(candidates: Mapping[str, Sequence[float]], side: str) -> tuple[float, str] | None:
    """The smallest median of a side, "ours" or "peer", and the name of the runtime; ``None``: it ran nowhere."""
    medians = {
        name.partition(" ")[2]: float(np.median(values))
        for name, values in candidates.items()
        if name.startswith(f"{side} ")
    }
    return min((value, name) for name, value in medians.items()) if medians else None


def set_torch_threads(threads: int) -> None:
    """Set torch's number of threads.

    Raises:
        DependencyError: torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise DependencyError("this comparison needs torch: pip install 'foveal[torch]'") from error
    torch.set_num_threads(threads)


class _Sides:
    """Both networks, opened in each runtime.

    Attributes:
        works: by side and runtime.
        first: seconds of a run, estimated.
        left_out: why a runtime is missing.
        grown: MiB that the first run added to the resident memory at its peak.
    """

    def __init__(self, task: PairRun, folder: Path) -> None:
        self.task, self.folder = task, folder
        self.grown: dict[str, float] = {}
        self.works: dict[str, Work] = {}
        self.first: dict[str, float] = {}
        self.left_out: dict[str, str] = {}

    def add(self, name: str) -> None:
        """Open a candidate and run it, or note why that is not possible."""
        try:
            work = self.open(name)
            before = reset_peak()
            started = time.perf_counter()
            _check_finite(work.finish())
            seconds = time.perf_counter() - started
            peak = resident("VmHWM")
            if seconds < _SLOW:  # else the first run, which prepares some runtimes, is a good estimate
                seconds = work.seconds()
        except FovealError as error:
            self.left_out[name] = str(error)
            return
        self.works[name], self.first[name] = work, seconds
        if before is not None and peak is not None:
            self.grown[name] = round(peak - before, 1)

    def open(self, name: str) -> Work:
        """Open a candidate.

        Raises:
            FovealError: it cannot run in this runtime.
        """
        task = self.task
        side, _, runtime = name.partition(" ")
        settings: dict[str, Any] = {"task": task.task, "batch": task.batch, "device": task.device, "dtype": task.dtype}
        if side == "ours":
            if runtime == EAGER:
                return _open_eager(Candidate(task.ours, task.ours, size=task.size, **settings))
            candidate = Candidate(task.ours, task.ours, size=task.size, runtime=runtime, **settings)
            if "." in task.ours:  # weights have a task of their own
                candidate = candidate.replace(task=None)
            works = open_model(candidate, task.threads, self.folder).works
            return next(work for part, work in works.items() if part != CLICK)
        candidate = Candidate(task.peer, task.peer, size=task.peer_size, **settings)
        candidate = candidate.replace(runtime="torch" if runtime == EAGER else runtime)
        return open_peer(candidate, task.threads, image_of(candidate, 3)).work

    def costs(self) -> dict[str, list[int]]:
        """Parameters and multiply-accumulates of both."""
        return {side: found for side in self.task.sides if (found := _costs(self.task, side))}


def _open_sides(task: PairRun, folder: Path) -> _Sides:
    sides = _Sides(task, folder)
    runtimes = {side: [name for name in _RUNTIMES[side] if name in task.runtimes] for side in task.sides}
    for name in (f"{side} {runtime}" for side in task.sides for runtime in runtimes[side]):
        sides.add(name)
        gc.collect()
    return sides


def our_network(ref: str, task: str) -> Any:
    """The torch module of our model that is timed: of a promptable model its image encoder."""
    from ..factory.create import create_model, list_models
    from ..factory.load_model import load_model

    model: Any = create_model(ref, task) if ref in list_models() else load_model(ref)
    return getattr(model, "image_encoder", model).eval()


def _open_eager(candidate: Candidate) -> Work:
    """Our model as a torch module, as :func:`foveal.create_model` returns it."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = our_network(candidate.ref, candidate.task or "")
    if candidate.size is None:
        candidate = candidate.replace(size=encoder_size(candidate.ref, candidate.task or ""))
    options = {"upsample": False} if hasattr(model, "stride") else {}
    image = image_of(candidate, 3)
    return torch_work(candidate.ref, model, candidate.device, candidate.dtype, image, options)


def encoder_size(ref: str, task: str) -> tuple[int, int]:
    """(H, W) of the images of a model that has a size of its own.

    Raises:
        InputError: it takes images of any size.
    """
    import torch

    from ..factory.create import create_model, list_models
    from ..factory.load_model import load_model
    from ..info import info_of

    if ref in list_models():
        with torch.device("meta"):
            size = info_of(create_model(ref, task)).preprocess.size
    else:
        size = info_of(load_model(ref)).preprocess.size
    if size is None:
        raise InputError(f"{ref} takes images of any size: give one")
    return size


def _costs(task: PairRun, side: str) -> list[int] | None:
    """Parameters and multiply-accumulates of one run; ``None`` where they cannot be counted."""
    import torch

    from .costs import count
    from .peers import find_peer

    try:
        with torch.device("meta"):
            model = our_network(task.ours, task.task) if side == "ours" else find_peer(task.peer)().eval()
        size = task.peer_size if side == "peer" else task.size or encoder_size(task.ours, task.task)
        params, macs = count(model, 3, size or (0, 0))
    except (FovealError, TypeError):
        return None
    return [params, task.batch * macs]


def _check_finite(output: object) -> None:
    """Refuse outputs that are not numbers: their time says nothing.

    Raises:
        InputError: some are not finite.
    """
    first: Any = output[0] if isinstance(output, tuple | list) else output
    values = first.detach().float().cpu().numpy() if hasattr(first, "detach") else np.asarray(first)
    if not np.isfinite(values).all():
        raise InputError("its output is not finite with random weights, so that its time says nothing")
