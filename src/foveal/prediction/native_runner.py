"""Run models with the native CPU engine on numpy arrays; exported plans need no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .. import assets
from ..engine.engine import Engine
from ..engine.library import DTYPES, available
from ..engine.plan import POINT_ARRAYS, SUFFIX, Plan, load_plan
from ..errors import CheckpointError, ConfigError
from ..images.sam_frame import FRAME
from ..info import info_of, say_licence
from ..task import TASKS, find_task
from .devices import cpu_count, why_cpu
from .exported import PARTS, check_exists, part_files
from .native_graphs import SUFFIX as GRAPHS
from .native_graphs import encode_positions, fill_plans, graph_file
from .runner import Opened, Runtime


class NativeRunner:
    """Run a plan on numpy arrays. It can be used by several threads at once, copied, pickled and forked.

    Args:
        plan: the plan.
        threads: number of threads of a run; 0: as many as this process may use cores.
        dtype: type that it computes in, see :class:`~foveal.engine.engine.Engine`.

    Raises:
        DependencyError: the engine cannot be built.
    """

    def __init__(self, plan: Plan, threads: int = 0, dtype: str = "float32") -> None:
        self.engine = Engine(plan, threads or cpu_count(), dtype=dtype)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.engine(batch)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.engine.plan, self.engine.threads, self.engine.library.dtype)


class NativePrompter:
    """Run the plans of a promptable model; a :class:`~foveal.prediction.runner.PromptRunner`.

    It can be used by several threads at once, copied, pickled and forked.

    Args:
        plans: the plans of :data:`~foveal.prediction.exported.PARTS`, see engine/lowering_prompts.py.
        threads: number of threads of a run; 0: as many as this process may use cores.
        dtype: type that it computes in, see :class:`~foveal.engine.engine.Engine`.

    Raises:
        DependencyError: the engine cannot be built.
        CheckpointError: the plan for prompts has no arrays for points.
    """

    at_once = 16  #: prompts in one run; more need memory and gain no time

    def __init__(self, plans: Sequence[Plan], threads: int = 0, dtype: str = "float32") -> None:
        encoder, prompts, masks = (NativeRunner(plan, threads, dtype) for plan in plans)
        self.encoder, self.prompts, self.masks = encoder, prompts, masks
        self.encoder_id = str(encoder.engine.plan.info.notes.get("encoder", ""))
        encode_points(prompts.engine.plan, np.zeros((1, 1, 2), np.float32), np.zeros((1, 1), np.int64))

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.encoder(batch)

    def decode(
        self,
        embedding: NDArray[np.float32],
        coords: NDArray[np.float32],
        labels: NDArray[np.int64],
        masks: NDArray[np.float32] | None,
        least_iou: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See :meth:`foveal.prediction.runner.PromptRunner.decode`. ``least_iou`` is ignored: no mask is left empty."""
        engine = self.prompts.engine
        if masks is not None:
            embedding = embedding + self.masks(masks)
        iou, low_res = engine.run(embedding, encode_points(engine.plan, coords, labels))[0]
        return low_res, iou

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        runners = (self.encoder, self.prompts, self.masks)
        engine = self.encoder.engine
        return type(self), ([runner.engine.plan for runner in runners], engine.threads, engine.library.dtype)


def encode_points(plan: Plan, coords: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """The tokens of the decoder and those of points.

    Args:
        plan: the plan for prompts, which holds the arrays of the encoding.
        coords: ``(P, N, 2)`` x and y in the frame of 1024.
        labels: ``(P, N)`` from -1 to 3, see :class:`~foveal.prediction.runner.PromptRunner`.

    Returns:
        ``(P, 256, 1, tokens)``.

    Raises:
        CheckpointError: the plan has no such arrays.
    """
    found = [plan.weights.get(name, np.zeros(0)) for name in POINT_ARRAYS]
    frequencies, kinds, own = (array.astype(np.float64) for array in found)
    channels = 2 * frequencies.shape[-1]
    if frequencies.shape != (2, channels // 2) or kinds.shape != (5, channels) or own.shape[1:] != (channels,):
        raise CheckpointError("the plan for prompts has no arrays for points: export the model again")
    position = encode_positions((coords.astype(np.float64) + 0.5) / FRAME, frequencies)
    points = np.where(labels[..., None] < 0, 0, position) + kinds[labels + 1]
    tokens = np.concatenate([np.broadcast_to(own, (len(points), *own.shape)), points], 1)
    return np.ascontiguousarray(tokens.transpose(0, 2, 1)[:, :, None], np.float32)


def open_native(ref: str, device: str, dtype: str, threads: int | None) -> Opened:
    """Open a plan file, or derive the plan of a checkpoint, for which torch is needed.

    Raises:
        CheckpointError: no such file, or a plan that contradicts itself.
        NotCoveredError: the engine does not compute a layer of the model.
    """
    if Path(ref).suffix == SUFFIX:
        plans = _read_plans(Path(ref))
        say_licence(ref, plans[0].info.licence)
    elif Path(ref).suffix == GRAPHS and Path(ref).parent == assets.FOLDER:  # others could ask for any memory
        promptable = Path(ref).name.endswith(f".{PARTS[0]}{GRAPHS}")
        plans = fill_plans(part_files(Path(ref), PARTS) if promptable else [Path(ref)])
        say_licence(ref, plans[0].info.licence)
    else:
        from ..factory.load_model import load_model

        plans = make_plans(load_model(ref))
    dtype = "float32" if dtype == "auto" else dtype
    runner = (
        NativeRunner(plans[0], threads or 0, dtype) if len(plans) == 1 else NativePrompter(plans, threads or 0, dtype)
    )
    library = (runner if isinstance(runner, NativeRunner) else runner.encoder).engine.library
    place = f"cpu, {library.name}" + (f", {dtype}" if dtype != "float32" else "")
    return Opened(runner, plans[0].info, place, why_cpu(NATIVE.name) if device == "auto" else "")


def make_plans(model: Any) -> list[Plan]:
    """The plan of a torch model; of a promptable one, those of :data:`~foveal.prediction.exported.PARTS`.

    Raises:
        NotCoveredError: the engine does not compute a layer of the model.
    """
    from ..engine.lowering import make_plan

    if not TASKS[info_of(model).task].takes_prompts:
        return [make_plan(model)]
    encoder, *others = (make_plan(model, part) for part in PARTS)
    notes = encoder.info.notes | {"encoder": model.image_encoder.fingerprint()}
    return [replace(encoder, info=encoder.info.replace(notes=notes)), *others]


def _read_plans(path: Path) -> list[Plan]:
    """The plan of a file; of a promptable model, those of all its files.

    Raises:
        CheckpointError: a file is missing or cannot be used.
    """
    check_exists(path, PARTS)
    plan = load_plan(path)
    try:
        task = find_task(plan.info.task)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not task.takes_prompts:
        return [plan]
    return [plan, *(load_plan(file) for file in part_files(path, PARTS)[1:])]


def why_not() -> str:
    """The reason why the engine cannot run here; empty if it can."""
    usable, reason = available()
    return "" if usable else reason


NATIVE = Runtime(
    "native", suffixes=(SUFFIX,), devices=("cpu",), dtypes=tuple(DTYPES), open=open_native, checkpoints=True,
    graph_file=graph_file, why_not=why_not,
)  # fmt: skip
