"""What this process may compute on: its CPUs, and whether there could be a GPU, found out without importing torch."""

from __future__ import annotations

import ctypes.util
import importlib.util
import math
import os
import platform
import sys
from pathlib import Path

#: Device files of Linux, any of which a GPU of NVIDIA (also in WSL and on Jetson boards) or AMD has.
_GPU_FILES = ("nvidia[0-9]*", "nvidiactl", "dxg", "nvhost-gpu", "nvgpu", "kfd")


def cpu_count() -> int:
    """Number of CPUs that this process may use, at least 1: the default number of threads of every runtime.

    It is the size of the affinity mask (``taskset``, ``cpuset``), or less if a control group has a smaller quota
    (``docker run --cpus 2``).
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs whose time the control groups of this process grant (Linux, both versions); ``None``: no limit.

    Args:
        groups: list of the control groups.
        root: where their settings are.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be that of the host, which is not mounted: then the root has the settings.
        top = root / "cpu" if controllers else root
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder == top or top in folder.parents:
                quotas.append(_quota_of(folder))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    """Quota of one control group: version 2 has ``cpu.max``, version 1 two files."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = map(float, " ".join((folder / name).read_text() for name in names).split())
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None


def gpu_possible(devices: Path = Path("/dev")) -> bool:
    """Whether there could be a GPU of NVIDIA, AMD or Apple that this process may use.

    The question takes microseconds, whereas importing torch takes seconds. On Linux the device files answer it, on
    Windows NVIDIA's driver, on macOS the processor. ``True`` does not mean that a runtime can use the GPU.

    Args:
        devices: folder of the device files.
    """
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if sys.platform == "win32":
        return ctypes.util.find_library("nvcuda") is not None
    if any(os.environ.get(name) in ("", "-1") for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")):
        return False  # switched off
    return any(next(devices.glob(pattern), None) is not None for pattern in _GPU_FILES)


def torch_installed() -> bool:
    """Whether torch can be imported."""
    return importlib.util.find_spec("torch") is not None


def torch_gpu() -> str:
    """Kind of the GPU that torch can use, such as "cuda" or "mps"; empty: none. torch is imported only if need be."""
    if not (gpu_possible() and torch_installed()):
        return ""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "" if accelerator is None else accelerator.type


def why_cpu(runtime: str) -> str:
    """Why ``runtime`` was given the CPU when it had the choice."""
    return f"this {runtime} cannot use the GPU" if gpu_possible() else "no GPU found"
