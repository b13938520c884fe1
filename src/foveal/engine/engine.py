"""Run a plan on arrays, at any size, with any number of threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .binding import Binding, Packed, bind
from .library import load_library
from .plan import Plan


class OperationTime(NamedTuple):
    """What one operation computes, and how long it took.

    Attributes:
        label: its kind and the shapes of its maps.
        macs: multiply-accumulates of its products.
        bytes: of its inputs, weights and result, each counted once.
        seconds: median time of a run.
    """

    label: str
    macs: int
    bytes: int
    seconds: float


_KEPT = 4  # bindings of other sizes that are kept, each with its memory


class Engine:
    """A plan with packed weights. It can be called from several threads at once.

    Args:
        plan: the plan.
        threads: number of threads of a run. Results do not depend on it, to the bit.
        isa: instruction set, see :func:`~foveal.engine.library.load_library`.

    Raises:
        DependencyError: the library cannot be built.
    """

    def __init__(self, plan: Plan, threads: int = 1, isa: str = "") -> None:
        self.plan, self.threads = plan, threads
        self.library = load_library(isa)
        self._packed = Packed(plan, self.library)
        self._idle: OrderedDict[tuple[int, ...], list[Binding]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network on ``(B, C, H, W)`` in float32.

        Returns:
            ``(B, outputs)`` when classifying, else ``(B, channels, height, width)``.

        Raises:
            InputError: the network cannot run at this size, or not in this memory.
        """
        return self.run(batch)[0]

    def profile(self, batch: NDArray[np.float32], runs: int = 10) -> list[OperationTime]:
        """Time each operation over ``runs`` runs."""
        _, binding, _ = self.run(batch)
        times = [self.run(batch)[2] for _ in range(runs)]
        seconds = np.median(times, axis=0).tolist()
        return [OperationTime(*row) for row in zip(binding.labels, binding.macs, binding.bytes, seconds, strict=True)]

    def run(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], Binding, NDArray[np.float64]]:
        """Run; also return the binding and the seconds of each operation."""
        if batch.ndim != 4 or min(batch.shape) < 1:
            raise InputError(f"an array of {batch.shape}: give images (B, C, H, W)")
        batch = np.ascontiguousarray(batch, np.float32)
        try:
            binding = self._take(batch.shape)
            seconds = np.zeros(len(binding.ops))
            try:
                result = binding.run(batch, self.threads, seconds)
            finally:
                self._give_back(batch.shape, binding)
        except MemoryError as error:
            raise InputError(f"images of {batch.shape}: not enough memory: use a smaller image or batch") from error
        return (result[:, :, 0, 0] if binding.flat else result), binding, seconds

    def _take(self, shape: tuple[int, ...]) -> Binding:
        """A binding that no other thread has."""
        with self._lock:
            if idle := self._idle.get(shape):
                return idle.pop()
        return bind(self.plan, self._packed, shape)  # pyright: ignore[reportArgumentType]

    def _give_back(self, shape: tuple[int, ...], binding: Binding) -> None:
        with self._lock:
            self._idle.setdefault(shape, []).append(binding)
            self._idle.move_to_end(shape)
            while len(self._idle) > _KEPT:
                self._idle.popitem(last=False)
