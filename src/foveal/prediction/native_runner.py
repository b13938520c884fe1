"""Run models with the native CPU engine on numpy arrays; exported plans need no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..engine.engine import Engine
from ..engine.library import available
from ..engine.plan import SUFFIX, Plan, load_plan
from ..errors import CheckpointError, ConfigError, InputError
from ..info import say_licence
from ..task import find_task
from ..weights.references import missing_file
from .runner import Opened, Runtime


class NativeRunner:
    """Run a plan on numpy arrays. It can be used by several threads at once, copied, pickled and forked.

    Args:
        plan: the plan.
        threads: number of threads of a run; 0: as many as this process may use cores.

    Raises:
        DependencyError: the engine cannot be built.
    """

    def __init__(self, plan: Plan, threads: int = 0) -> None:
        self.engine = Engine(plan, threads or usable_cores())

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return self.engine(batch)
        except MemoryError as error:
            raise InputError(f"the network cannot run on {batch.shape}: {error}") from error

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.engine.plan, self.engine.threads)


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_native(ref: str, device: str, dtype: str, threads: int | None) -> Opened:
    """Open a plan file, or derive the plan of a checkpoint, for which torch is needed.

    Raises:
        CheckpointError: no such file, or a plan that contradicts itself.
        NotCoveredError: the engine does not compute a layer of the model.
    """
    if Path(ref).suffix == SUFFIX:
        if not Path(ref).is_file():
            raise CheckpointError(missing_file(ref))
        plan = load_plan(Path(ref))
        try:
            find_task(plan.info.task)
        except ConfigError as error:
            raise ConfigError(f"{ref}: {error}") from error
        say_licence(ref, plan.info.licence)
    else:
        from ..engine.lowering import make_plan
        from ..factory.load_model import load_model

        plan = make_plan(load_model(ref))
    runner = NativeRunner(plan, threads or 0)
    return Opened(runner, plan.info, f"cpu, {runner.engine.library.name}")


def why_not() -> str:
    """The reason why the engine cannot run here; empty if it can."""
    usable, reason = available()
    return "" if usable else reason


NATIVE = Runtime(
    "native", suffixes=(SUFFIX,), devices=("cpu",), dtypes=("float32",), open=open_native, checkpoints=True,
    why_not=why_not,
)  # fmt: skip
