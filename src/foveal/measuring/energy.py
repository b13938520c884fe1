"""Energy of a piece of work, where the machine measures it: RAPL for processors, NVML for NVIDIA GPUs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

POWERCAP = Path("/sys/class/powercap")  #: where Linux shows the counters of the processor's packages, also AMD's
_PACKAGE = re.compile(r"intel-rapl:\d+")


class PackageEnergy:
    """Energy of all processor packages since this object was made, in joules; other processes are included.

    Args:
        folder: where the counters are.

    Raises:
        OSError: no counter, or none that this user may read.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        zones = [path for path in sorted(folder.iterdir()) if _PACKAGE.fullmatch(path.name)]
        packages = [path for path in zones if (path / "name").read_text().startswith("package")]
        if not packages:
            raise FileNotFoundError(f"no package in {folder}")
        self._counters = [path / "energy_uj" for path in packages]
        self._ranges = [int((path / "max_energy_range_uj").read_text()) for path in packages]
        self._last = self._read()
        self._total = 0

    def __call__(self) -> float:
        """Joules since this object was made. A counter may have started again at most once since the last call."""
        now = self._read()
        for new, old, size in zip(now, self._last, self._ranges, strict=True):
            self._total += new - old if new >= old else new + size - old
        self._last = now
        return self._total / 1e6

    def _read(self) -> list[int]:
        return [int(path.read_text()) for path in self._counters]


def energy_counter(device: torch.device | None) -> Callable[[], float] | None:
    """A function that returns the joules that a device has used so far.

    Args:
        device: an NVIDIA GPU, read with the package nvidia-ml-py; ``None``: the processor.

    Returns:
        The function; ``None``: this machine does not tell.
    """
    if device is None:
        try:
            return PackageEnergy()
        except (OSError, ValueError):
            return None
    return _gpu_counter(device) if device.type == "cuda" else None


def _gpu_counter(device: torch.device) -> Callable[[], float] | None:
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    import torch

    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        # By UUID: NVML numbers all GPUs of the machine, torch those of CUDA_VISIBLE_DEVICES.
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:
        return None
    return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3


def joules_per_run(run: Callable[[], object], counter: Callable[[], float], seconds: float = 1.0) -> float:
    """Energy of one run, over as many runs as take ``seconds``: counters advance in steps of up to 0.1 seconds."""
    runs, before = 0, counter()
    end = time.perf_counter() + seconds
    while not runs or time.perf_counter() < end:
        run()
        runs += 1
    return (counter() - before) / runs
