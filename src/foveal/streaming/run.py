"""Run the passes of a plan piece by piece, in a fixed order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..progress import Report
from .maps import KeptMap, MemoryState, Progress, StateFolder
from .native import Item, group_steps, needs, reads_of
from .operations import Window
from .passes import Pass, Plan, map_extent
from .regions import Region
from .team import Team
from .trace import SOURCE, Step
from .validity import Validity

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

    def read(self, region: Region) -> Tensor:
        """The network's input in a region, ``(1, C, h, w)`` on the device of the network."""
        ...


class Outputs:
    """The outputs of the network, in the order in which it returns them: kept maps, or tensors without places."""

    def __init__(self, plan: Plan, maps: dict[str, KeptMap], tensors: dict[str, Tensor]) -> None:
        self.plan = plan
        self.values: list[KeptMap | Tensor] = [
            maps[name] if name in maps else tensors[name] for name in plan.program.outputs
        ]

    def kept(self) -> list[KeptMap]:
        """The outputs that are maps."""
        return [value for value in self.values if not isinstance(value, Tensor)]

    def arrays(self) -> list[NDArray[Any]]:
        """The outputs in memory: maps as ``(C, H, W)``, others as the network returns them."""
        found = []
        for name, value in zip(self.plan.program.outputs, self.values, strict=True):
            if isinstance(value, Tensor):
                found.append(value.float().cpu().numpy())
            else:
                extent = map_extent(self.plan.program.steps, name)
                found.append(value.read(extent.whole).transpose(2, 0, 1))
        return found


class _Execution:
    """The maps, sums and tensors of a run so far."""

    def __init__(
        self, plan: Plan, image: Image, state: MemoryState | StateFolder, dtype: str, native: bool = False
    ) -> None:
        self.native = native
        self.items: list[Item] = []  # of the pass
        self.plan, self.image, self.state, self.dtype = plan, image, state, dtype
        self.steps = plan.program.steps
        weight = next(plan.program.weights.parameters())
        self.device, self.precision = weight.device, weight.dtype
        self.maps: dict[str, KeptMap] = {}
        self.tensors: dict[str, Tensor] = {}
        self.sums: dict[str, NDArray[np.float64]] = dict(state.progress.sums)  # of this process, in this pass
        self.complete: dict[str, NDArray[np.float64]] = dict(state.progress.complete)
        self.validity: Validity | None = None
        if image.has_gaps:
            self.validity = Validity(plan, image.valid, lambda name, extent: state.open_map(name, extent, 1, "uint8"))

    def begin(self, index: int) -> None:
        """Open the maps of a pass, and compute the tensors without places that it needs."""
        part = self.plan.passes[index]
        threads = torch.get_num_threads()
        self.items = group_steps(self.plan, part, threads) if self.native else list(part.steps)
        for name in part.keeps:
            step = self.steps[name]
            assert step.extent is not None
            self.maps[name] = self.state.open_map(name, step.extent, step.channels, step.dtype or self.dtype)
        self.compute(part.functions)

    def end(self, index: int) -> None:
        """Complete the sums of a pass, and drop the maps that it was the last to read."""
        for name in self.plan.passes[index].sums:
            reduction = self.steps[name].reduction
            assert reduction is not None
            if name not in self.complete:
                raise InputError("no pixel of the image has data")
            places = int(self.complete[_count_of(name)])
            self.tensors[name] = reduction.finish(torch.from_numpy(self.complete[name]), places).to(self.device)
        for name in [name for name in self.maps if self.plan.last_reader(name) <= index]:
            del self.maps[name]
            self.state.drop(name)

    def compute(self, functions: Sequence[Step]) -> None:
        for step in functions:
            assert step.function is not None
            inputs = [self.tensors[name].to(self.precision) for name in step.inputs]
            self.tensors[step.name] = step.function(*inputs)

    def piece(self, part: Pass, index: int, last_use: dict[str, int]) -> None:
        """Compute one piece: write its part of the maps, and add its part of the sums."""
        if self.validity is not None:
            if part is self.plan.passes[0]:
                self.validity.prepare(part, index)
            if self.validity.lacks(part, index, (map_extent(self.steps, name) for name in part.targets)):
                self._blank(part, index)
                return
        regions = needs(self.plan, self.items, self.plan.wanted(part, index))
        windows = {
            name: Window(self._read(name, regions[name]), regions[name]) for name in part.reads if name in regions
        }
        for number, item in enumerate(self.items):
            if isinstance(item, Step):
                self._compute(item, regions, windows)
            elif number in regions:
                windows |= item.run(windows, regions[number])
            for name in reads_of(item):
                if last_use[name] == number:
                    windows.pop(name, None)
        for name in part.targets:
            self._store(part, name, index, windows)

    def _compute(self, step: Step, regions: Mapping[Any, Region], windows: dict[str, Window]) -> None:
        """Compute a step, unless the piece is beyond the end of its map."""
        if step.name not in regions:
            return
        assert step.operation is not None
        values = [windows[name] if name in windows else self.tensors[name] for name in step.inputs]
        extents = [self.steps[name].extent for name in step.inputs]
        out = regions[step.name]
        windows[step.name] = Window(step.operation.run(values, out, extents), out)

    def _store(self, part: Pass, name: str, index: int, windows: dict[str, Window]) -> None:
        extent = map_extent(self.steps, name)
        region = part.grid.piece(index, extent)
        if region.is_empty:
            return
        valid = None if self.validity is None else self.validity.places(region, extent.stride)
        valid = None if valid is None or valid.all() else valid
        step = self.steps[name]
        if step.reduction is None:
            values = windows[name].cut(region)[0].permute(1, 2, 0).cpu().numpy()
            if valid is not None:
                values = np.where(valid[..., None], values, values.dtype.type(step.blank))
            self.maps[name].write(region, values)
            return
        counted = None if valid is None else torch.from_numpy(valid).to(self.device)
        partial = step.reduction.partial([windows[each].cut(region) for each in step.inputs], counted)
        self._add(name, partial.cpu().numpy())
        self._add(_count_of(name), np.array(region.height * region.width if valid is None else valid.sum(), np.float64))

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

    def _read(self, name: str, region: Region) -> Tensor:
        if name == SOURCE:
            return self.image.read(region).to(self.precision)
        values = torch.from_numpy(np.asarray(self.maps[name].read(region)))
        return values.permute(2, 0, 1)[None].to(self.device, self.precision)


def _count_of(name: str) -> str:
    """Key, among the sums, of the number of places of a reduction."""
    return f"{name} places"


@torch.inference_mode()
def run(
    plan: Plan,
    image: Image,
    state: MemoryState | StateFolder | None = None,
    *,
    dtype: str = "float32",
    report: Report | None = None,
    team: Team | None = None,
    native: bool = False,
) -> Outputs:
    """Run all passes, from where ``state`` is.

    Args:
        plan: the passes.
        image: the network's input.
        state: where maps and progress are kept; default: in memory.
        dtype: of the kept maps, "float32" or "float16". With the latter the result is not exact.
        report: told the progress after each piece.
        team: the processes that compute the image together, with a state folder that all of them see.
        native: whether the native engine computes what it can; the weights must then be float32 on the CPU.
    """
    state, team = state or MemoryState(), team or Team()
    state.progress = team.agree(state.progress)
    execution = _Execution(plan, image, state, dtype, native)
    total = sum(part.arithmetic for part in plan.passes) or 1
    done, saved = 0.0, time.monotonic()
    begun, first = state.progress.index, state.progress.piece
    for index, part in enumerate(plan.passes):
        if index < begun:
            _skip(execution, index)
            done += part.arithmetic
            continue
        execution.begin(index)
        last_use = _last_use(part, execution)
        share = team.share(part.grid.count)
        start = first if index == begun else 0
        done += part.arithmetic * start / max(len(share), 1)
        for number, piece in enumerate(share[start:], start + 1):
            execution.piece(part, piece, last_use)
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
    execution.compute(plan.functions)
    return Outputs(plan, execution.maps, execution.tensors)


def _skip(execution: _Execution, index: int) -> None:
    """Take over a pass that an earlier process completed, without the maps that were dropped after it."""
    part, plan = execution.plan.passes[index], execution.plan
    for name in part.keeps:
        if plan.last_reader(name) >= execution.state.progress.index:
            step = execution.steps[name]
            assert step.extent is not None
            execution.maps[name] = execution.state.open_map(
                name, step.extent, step.channels, step.dtype or execution.dtype
            )
    execution.compute(part.functions)
    execution.end(index)


def _last_use(part: Pass, execution: _Execution) -> dict[str, int]:
    """Index of the last item of a pass that reads each map; -1 for what is stored at the end."""
    uses = {name: index for index, item in enumerate(execution.items) for name in reads_of(item)}
    summed = [each for name in part.sums for each in execution.steps[name].inputs]
    return uses | dict.fromkeys((*part.keeps, *summed), -1)
