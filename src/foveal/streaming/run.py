"""Run the passes of a plan piece by piece, in a fixed order."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..progress import Report
from .executor import Executor
from .maps import KeptMap, MemoryState, Progress, StateFolder
from .passes import Pass, Plan, map_extent
from .regions import Region
from .steps import SOURCE
from .team import Team
from .validity import Mask, Validity

SAVE_SECONDS = 2.0  # between two records of progress: what a killed process has lost at most, and a piece


class Image(Protocol):
    """What the network sees.

    Attributes:
        has_gaps: whether some pixels may have no data. :meth:`read` gives zeros for them.
    """

    has_gaps: bool

    def valid(self, region: Region) -> NDArray[np.bool_]:
        """Which pixels of a region have data, ``(h, w)``."""
        ...

    def read(self, region: Region) -> NDArray[Any]:
        """The network's input in a region, ``(1, C, h, w)``."""
        ...


class Outputs:
    """The outputs of the network, in the order in which it returns them: kept maps, or tensors without places."""

    def __init__(self, plan: Plan, maps: dict[str, KeptMap], executor: Executor) -> None:
        self.plan = plan
        self.values: list[KeptMap | NDArray[Any]] = [
            maps[name] if name in maps else executor.tensor(name) for name in plan.program.outputs
        ]

    def kept(self) -> list[KeptMap]:
        """The outputs that are maps."""
        return [value for value in self.values if not isinstance(value, np.ndarray)]

    def arrays(self) -> list[NDArray[Any]]:
        """The outputs in memory: maps as ``(C, H, W)``, others as the network returns them."""
        found = []
        for name, value in zip(self.plan.program.outputs, self.values, strict=True):
            if not isinstance(value, np.ndarray):
                value = value.read(map_extent(self.plan.program.steps, name).whole).transpose(2, 0, 1)
            found.append(value)
        return found


class _Execution:
    """The maps and sums of a run so far."""

    def __init__(
        self, plan: Plan, image: Image, state: MemoryState | StateFolder, dtype: str, executor: Executor
    ) -> None:
        self.plan, self.image, self.state, self.dtype, self.executor = plan, image, state, dtype, executor
        self.steps = plan.program.steps
        self.maps: dict[str, KeptMap] = {}
        self.sums: dict[str, NDArray[np.float64]] = dict(state.progress.sums)  # of this process, in this pass
        self.complete: dict[str, NDArray[np.float64]] = dict(state.progress.complete)
        self.validity: Validity | None = None
        if image.has_gaps:
            self.validity = Validity(plan, image.valid, lambda name, extent: state.open_map(name, extent, 1, "uint8"))

    def open_map(self, name: str) -> None:
        """Open a map that is kept."""
        step = self.steps[name]
        assert step.extent is not None
        self.maps[name] = self.state.open_map(name, step.extent, step.channels, step.dtype or self.dtype)

    def begin(self, index: int) -> None:
        """Open the maps of a pass, and compute the tensors without places that it needs."""
        part = self.plan.passes[index]
        for name in part.keeps:
            self.open_map(name)
        self.executor.compute(part.functions)
        self.executor.begin(part)

    def end(self, index: int) -> None:
        """Complete the sums of a pass, and drop the maps that it was the last to read."""
        for name in self.plan.passes[index].sums:
            if name not in self.complete:
                raise InputError("no pixel of the image has data")
            self.executor.finish(name, self.complete[name], int(self.complete[_count_of(name)]))
        for name in [name for name in self.maps if self.plan.last_reader(name) <= index]:
            del self.maps[name]
            self.state.drop(name)

    def piece(self, part: Pass, index: int) -> None:
        """Compute one piece: write its part of the maps, and add its part of the sums."""
        if self.validity is not None:
            if part is self.plan.passes[0]:
                self.validity.prepare(part, index)
            if self.validity.lacks(part, index, (map_extent(self.steps, name) for name in part.targets)):
                self._blank(part, index)
                return
        regions = {name: part.grid.piece(index, map_extent(self.steps, name)) for name in part.targets}
        valid = self._valid(regions)
        for name, values in self.executor.piece(part, index, self._read, valid).items():
            step, region, counted = self.steps[name], regions[name], valid.get(name)
            if step.reduction is None:
                if counted is not None:
                    values = np.where(counted[..., None], values, values.dtype.type(step.blank))
                self.maps[name].write(region, values)
            else:
                self._add(name, values)
                places = region.places if counted is None else counted.sum()
                self._add(_count_of(name), np.array(places, np.float64))

    def _valid(self, regions: dict[str, Region]) -> dict[str, Mask]:
        """Which places have data, for the regions in which some have none."""
        if self.validity is None:
            return {}
        found = {
            name: self.validity.places(region, map_extent(self.steps, name).stride)
            for name, region in regions.items()
            if not region.is_empty
        }
        return {name: mask for name, mask in found.items() if not mask.all()}

    def _add(self, name: str, partial: NDArray[np.float64]) -> None:
        self.sums[name] = self.sums[name] + partial if name in self.sums else partial

    def _blank(self, part: Pass, index: int) -> None:
        """Write the maps of a piece without data, where they are not zero."""
        for name in part.keeps:
            step = self.steps[name]
            region = part.grid.piece(index, map_extent(self.steps, name))
            if step.blank and not region.is_empty:
                values = np.full((region.height, region.width, step.channels), step.blank, step.dtype or self.dtype)
                self.maps[name].write(region, values)

    def _read(self, name: str, region: Region) -> NDArray[Any]:
        if name == SOURCE:
            return self.image.read(region)
        return np.asarray(self.maps[name].read(region)).transpose(2, 0, 1)[None]


def _count_of(name: str) -> str:
    """Key, among the sums, of the number of places of a reduction."""
    return f"{name} places"


def run(
    plan: Plan,
    image: Image,
    state: MemoryState | StateFolder | None = None,
    *,
    dtype: str = "float32",
    report: Report | None = None,
    team: Team | None = None,
    executor: Executor | None = None,
) -> Outputs:
    """Run all passes, from where ``state`` is.

    Args:
        plan: the passes.
        image: the network's input.
        state: where maps and progress are kept; default: in memory.
        dtype: of the kept maps, "float32" or "float16". With the latter the result is not exact.
        report: told the progress after each piece.
        team: the processes that compute the image together, with a state folder that all of them see.
        executor: computes the pieces; default: torch.
    """
    if executor is None:
        from .torch_executor import TorchExecutor

        executor = TorchExecutor(plan)
    state, team = state or MemoryState(), team or Team()
    state.progress = team.agree(state.progress)
    execution = _Execution(plan, image, state, dtype, executor)
    total = sum(part.arithmetic for part in plan.passes) or 1
    done, saved = 0.0, time.monotonic()
    begun, first = state.progress.index, state.progress.piece
    for index, part in enumerate(plan.passes):
        if index < begun:
            _skip(execution, index)
            done += part.arithmetic
            continue
        execution.begin(index)
        share = team.share(part.grid.count)
        start = first if index == begun else 0
        done += part.arithmetic * start / max(len(share), 1)
        for number, piece in enumerate(share[start:], start + 1):
            execution.piece(part, piece)
            done += part.arithmetic / len(share)
            if report is not None:
                report(done / total, f"pass {index + 1} of {len(plan.passes)}")
            if time.monotonic() - saved >= SAVE_SECONDS and number < len(share):
                state.save(Progress(index, number, execution.sums, execution.complete))
                saved = time.monotonic()
        state.save(Progress(index, len(share), execution.sums, execution.complete))
        execution.complete |= team.add(execution.sums)
        execution.sums = {}
        state.save(Progress(index + 1, 0, {}, execution.complete))
        execution.end(index)
    executor.compute(plan.functions)
    return Outputs(plan, execution.maps, executor)


def _skip(execution: _Execution, index: int) -> None:
    """Take over a pass that an earlier process completed, without the maps that were dropped after it."""
    part, plan = execution.plan.passes[index], execution.plan
    for name in part.keeps:
        if plan.last_reader(name) >= execution.state.progress.index:
            execution.open_map(name)
    execution.executor.compute(part.functions)
    execution.end(index)
