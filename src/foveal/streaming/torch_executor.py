"""Compute the pieces of a pass with torch, and the convolutions with the native engine where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .executor import Read, Valid
from .geometry import ArrayOperation, only_map
from .native import Item, group_steps, needs, reads_of
from .operations import Operation, Reduction, Window
from .passes import Pass, Plan, map_extent
from .regions import Region
from .steps import Step


class TorchExecutor:
    """An :class:`~.executor.Executor` on the device and in the precision of the weights.

    Args:
        plan: the passes of a program of :func:`~.trace.derive`.
        native: whether the native engine computes what it can; the weights must then be float32 on the CPU.
    """

    def __init__(self, plan: Plan, native: bool = False) -> None:
        self.plan, self.native = plan, native
        self.steps = plan.program.steps
        weight = next(plan.program.weights.parameters())
        self.device, self.precision = weight.device, weight.dtype
        self.tensors: dict[str, Tensor] = {}
        self.items: list[Item] = []  # of the pass
        self.last_use: dict[str, int] = {}

    def begin(self, part: Pass) -> None:
        threads = torch.get_num_threads()
        self.items = group_steps(self.plan, part, threads) if self.native else list(part.steps)
        self.last_use = self._last_use(part)

    def _last_use(self, part: Pass) -> dict[str, int]:
        """Index of the last item of a pass that reads each map; -1 for what is returned at the end."""
        uses = {name: index for index, item in enumerate(self.items) for name in reads_of(item)}
        summed = [each for name in part.sums for each in self.steps[name].inputs]
        return uses | dict.fromkeys((*part.keeps, *summed), -1)

    @torch.inference_mode()
    def piece(self, part: Pass, index: int, read: Read, valid: Valid) -> dict[str, NDArray[Any]]:
        regions = needs(self.plan, self.items, self.plan.wanted(part, index))
        windows = {
            name: Window(self._tensor(read(name, regions[name])), regions[name])
            for name in part.reads
            if name in regions
        }
        for number, item in enumerate(self.items):
            if isinstance(item, Step):
                self._compute(item, regions, windows)
            elif number in regions:
                windows |= item.run(windows, regions[number])
            for name in reads_of(item):
                if self.last_use[name] == number:
                    windows.pop(name, None)
        found: dict[str, NDArray[Any]] = {}
        for name in part.targets:
            region = part.grid.piece(index, map_extent(self.steps, name))
            if not region.is_empty:
                found[name] = self._result(self.steps[name], region, windows, valid.get(name))
        return found

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.as_tensor(values).to(self.device, self.precision)

    def _compute(self, step: Step, regions: Mapping[Any, Region], windows: dict[str, Window]) -> None:
        """Compute a step, unless the piece is beyond the end of its map."""
        if step.name not in regions:
            return
        values = [windows[name] if name in windows else self.tensors[name] for name in step.inputs]
        extents = [self.steps[name].extent for name in step.inputs]
        out = regions[step.name]
        if isinstance(step.operation, ArrayOperation):
            (window,) = (windows[name] for name in step.inputs)
            array = window.values[0].float().cpu().numpy()
            made = torch.from_numpy(step.operation.run_array(array, window.region, out, only_map(extents)))[None]
        else:
            made = cast(Operation, step.operation).run(values, out, extents)
        windows[step.name] = Window(made, out)

    def _result(
        self, step: Step, region: Region, windows: Mapping[str, Window], counted: NDArray[np.bool_] | None
    ) -> NDArray[Any]:
        """The part of a kept map, or the sum of a piece."""
        if step.reduction is None:
            return windows[step.name].cut(region)[0].permute(1, 2, 0).cpu().numpy()
        reduction: Reduction = step.reduction
        mask = None if counted is None else torch.from_numpy(counted).to(self.device)
        return reduction.partial([windows[each].cut(region) for each in step.inputs], mask).cpu().numpy()

    @torch.inference_mode()
    def finish(self, name: str, total: NDArray[np.float64], places: int) -> None:
        reduction: Reduction = self.steps[name].reduction
        self.tensors[name] = reduction.finish(torch.from_numpy(total), places).to(self.device)

    @torch.inference_mode()
    def compute(self, functions: Sequence[Step]) -> None:
        for step in functions:
            assert step.function is not None
            inputs = [self.tensors[name].to(self.precision) for name in step.inputs]
            self.tensors[step.name] = step.function(*inputs)

    def tensor(self, name: str) -> NDArray[Any]:
        return self.tensors[name].float().cpu().numpy()
