"""Run a plan on arrays, at any size, with any number of threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutOfMemoryError
from .binding import Binding, bind
from .library import load_library
from .packing import Packed
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


_KEPT = 4  # sizes whose bindings are kept, each with its memory
_KEPT_BYTES = 1 << 29  # of all of them but the last


class Engine:
    """A plan with packed weights. It can be called from several threads at once.

    Args:
        plan: the plan.
        threads: number of threads of a run. Results do not depend on it, to the bit.
        isa: instruction set, see :func:`~foveal.engine.library.load_library`.
        dtype: "float32" or "bfloat16": the type of the maps between operations and of the weights of products. Arrays
            and results are float32 in both.

    Raises:
        ConfigError: an unknown type.
        DependencyError: the library cannot be built.
    """

    def __init__(self, plan: Plan, threads: int = 1, isa: str = "", dtype: str = "float32") -> None:
        self.plan, self.threads = plan, threads
        self.library = load_library(isa, dtype)
        self._packed = Packed(plan, self.library)
        self._idle: OrderedDict[tuple[tuple[int, ...], ...], list[Binding]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *arrays: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network on ``(B, C, H, W)`` in float32; a plan of several inputs takes as many arrays.

        Returns:
            ``(B, outputs)`` when classifying, else ``(B, channels, height, width)``. Of several results the last one.

        Raises:
            InputError: the network cannot run at this size, or not in this memory.
        """
        return self.run(*arrays)[0][-1]

    def profile(self, *arrays: NDArray[np.float32], runs: int = 10) -> list[OperationTime]:
        """Time each operation over ``runs`` runs."""
        _, binding, _ = self.run(*arrays)
        times = [self.run(*arrays)[2] for _ in range(runs)]
        seconds = np.median(times, axis=0).tolist()
        return [OperationTime(*row) for row in zip(binding.labels, binding.macs, binding.bytes, seconds, strict=True)]

    def run(self, *arrays: NDArray[np.float32]) -> tuple[list[NDArray[np.float32]], Binding, NDArray[np.float64]]:
        """Run; return all results in the order of their steps, the binding, and the seconds of each operation."""
        for array in arrays:
            if array.ndim != 4 or min(array.shape) < 1:
                raise InputError(f"an array of {array.shape}: give images (B, C, H, W)")
        given = [np.ascontiguousarray(array, np.float32) for array in arrays]
        shapes = tuple(array.shape for array in given)
        try:
            binding = self._take(shapes)
            if len(binding.images) != len(given):
                raise InputError(f"{len(given)} arrays: this network has {len(binding.images)} inputs")
            seconds = np.zeros(len(binding.ops))
            try:
                results = binding.run(given, self.threads, seconds)
            finally:
                self._give_back(shapes, binding)
        except MemoryError as error:
            raise OutOfMemoryError(f"images of {shapes[0]}: not enough memory: use a smaller image or batch") from error
        return results, binding, seconds

    def _take(self, shapes: tuple[tuple[int, ...], ...]) -> Binding:
        """A binding that no other thread has."""
        with self._lock:
            if idle := self._idle.get(shapes):
                return idle.pop()
        return bind(self.plan, self._packed, shapes, self.threads)

    def _give_back(self, shapes: tuple[tuple[int, ...], ...], binding: Binding) -> None:
        with self._lock:
            self._idle.setdefault(shapes, []).append(binding)
            self._idle.move_to_end(shapes)
            while len(self._idle) > _KEPT or (len(self._idle) > 1 and self._bytes() > _KEPT_BYTES):
                self._idle.popitem(last=False)

    def _bytes(self) -> int:
        """Memory of the idle bindings of all sizes but the last."""
        *others, _ = self._idle.values()
        return sum(binding.arena.nbytes for bindings in others for binding in bindings)
