"""Several processes that compute one image, started by torchrun, with the maps on a file system that all of them see.

Each process computes a row of successive pieces of every pass and adds up its own sums; after the pass the sums of all
are added, in the order of the processes. Margins are read from the files of the maps, which the others wrote before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError
from .maps import Progress

_PATIENCE = timedelta(days=7)  # torchrun ends all processes when one of them fails; until then they wait


class Team:
    """The processes.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def share(self, count: int) -> range:
        """The pieces of this process, of ``count``."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def add(self, sums: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        """Add the sums of all processes; return when all of them have finished the pass."""
        total: dict[str, NDArray[np.float64]] = {}
        for part in self._gather(dict(sums)):
            for name, values in part.items():
                total[name] = total[name] + values if name in total else values
        return total

    def agree(self, progress: Progress) -> Progress:
        """Where this process continues: a pass that one process has recorded as complete was completed by all."""
        ahead = max(self._gather(progress), key=lambda each: each.index)
        return progress if progress.index == ahead.index else Progress(ahead.index, 0, {}, ahead.complete)

    def wait(self) -> None:
        """Return when all processes are here."""
        self._gather(None)

    def _gather(self, value: Any) -> list[Any]:
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found


def find_team() -> Team:
    """The processes that torchrun started together with this one; this one alone without it.

    Raises:
        DependencyError: several, and torch is not installed.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2:
        return Team()
    try:
        import torch.distributed as dist
    except ImportError as error:
        raise DependencyError(
            f"WORLD_SIZE={size}: several processes need torch: pip install 'foveal[torch]', or unset WORLD_SIZE"
        ) from error

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_PATIENCE)  # sums are small, and are added on the CPU
    return Team(dist.get_rank(), dist.get_world_size())


def is_first() -> bool:
    """Whether this process is the one of its team that prints and writes results."""
    return int(os.environ.get("RANK", "0")) == 0 or int(os.environ.get("WORLD_SIZE", "1")) < 2
