"""Run random and damaged plans in a process of its own, within limits of time and memory: see :func:`run_plans`."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.engine.engine import Engine
from foveal.engine.plan import load_plan
from foveal.errors import FovealError
from helpers.plans import damage, isolated, save_random

SECONDS, MIB = 120, 1024  #: of one plan (a busy machine may be slow), and of memory above what the imports need
MACS = 2 * 10**10
ENDED = "all plans were run"


def run_plans(
    first: int,
    count: int,
    *,
    sanitized: bool = False,
    environment: Mapping[str, str] | None = None,
    dtype: str = "float32",
) -> Counter[str]:
    """Run plans with the seeds from ``first`` in a child process: every second one is damaged.

    Returns:
        How many were run, and how many refused with each class of error; "long": not run, because the plan is correct
        and asks for more than MACS multiply-accumulates; "not-finite": with a result that is not
        finite, "several-lines": refused with more than one line.

    Raises:
        AssertionError: the child crashed, raised another error, or exceeded a limit; the message has its last lines.
    """
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")])
    command = [sys.executable, "-m", "helpers.hostile_plans", str(first), str(count), str(int(sanitized)), dtype]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(environment or {}), "PYTHONPATH": paths}
    )
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1:]) == (0, [ENDED]), (lines[-2:], done.stderr[-3000:])
    assert "runtime error" not in done.stderr, done.stderr[-3000:]  # of the sanitizer for undefined behaviour
    return Counter(line.split()[1] for line in lines[:-1] if " " in line)


def main() -> None:
    first, count, sanitized = map(int, sys.argv[1:4])
    if not sanitized:  # a sanitizer reserves terabytes
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = size + (MIB << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + count):
            signal.alarm(SECONDS)  # ends the process
            print(seed, end=" ", flush=True)
            print(_outcome(Path(folder, "plan.foveal"), seed, sanitized, sys.argv[4]), flush=True)
    print(ENDED)


def _takes_minutes(engine: Engine, x: NDArray[np.float32]) -> bool:
    """Whether the plan asks for so much arithmetic that its time says nothing, as attention over many tokens does."""
    try:
        binding = engine._take((x.shape,))
    except MemoryError:
        return False  # the engine says so
    engine._give_back((x.shape,), binding)
    return sum(binding.macs) > MACS


def _outcome(path: Path, seed: int, sanitized: int, dtype: str) -> str:
    rng = random.Random(seed)
    shape = save_random(path, seed)
    if seed % 2:
        path.write_bytes(damage(path.read_bytes(), rng))
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    try:
        engine = Engine(load_plan(path), rng.choice([1, 3]), dtype=dtype)
        with isolated(float("nan")):
            if _takes_minutes(engine, x):
                return "long"
            result = engine(x)
    except FovealError as error:
        return "several-lines" if "\n" in str(error) else type(error).__name__
    return "run" if np.isfinite(result).all() else "not-finite"


if __name__ == "__main__":
    main()
