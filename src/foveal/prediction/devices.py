"""What this process may compute on: its CPUs and memory, and whether there could be a GPU, without importing torch."""

from __future__ import annotations

import ctypes.util
import importlib.util
import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

#: Device files of Linux, any of which a GPU of NVIDIA (also in WSL and on Jetson boards) or AMD has.
_GPU_FILES = ("nvidia[0-9]*", "nvidiactl", "dxg", "nvhost-gpu", "nvgpu", "kfd")
_GROUPS, _GROUP_SETTINGS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # of Linux


def cpu_count() -> int:
    """Number of CPUs that this process may use, at least 1: the default number of threads of every runtime.

    It is the size of the affinity mask (``taskset``, ``cpuset``), or less if a control group has a smaller quota
    (``docker run --cpus 2``).
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def cpu_quota(groups: Path = _GROUPS, root: Path = _GROUP_SETTINGS) -> float | None:
    """CPUs whose time the control groups of this process grant (Linux, both versions); ``None``: no limit.

    Args:
        groups: list of the control groups.
        root: where their settings are.
    """
    quotas = [_quota_of(folder) for folder in _group_folders("cpu", groups, root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def free_memory(
    groups: Path = _GROUPS, root: Path = _GROUP_SETTINGS, machine: Path = Path("/proc/meminfo")
) -> int | None:
    """Bytes of memory that this process can still take: what the machine has, or less by a limit of a control group.

    Args:
        groups: list of the control groups.
        root: where their settings are.
        machine: the state of the machine's memory.

    Returns:
        ``None`` if it is unknown.
    """
    found = [_memory_of(folder) for folder in _group_folders("memory", groups, root)]
    try:
        lines = machine.read_text("ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except OSError:
        pass
    return min((free for free in found if free is not None), default=None)


def _group_folders(controller: str, groups: Path, root: Path) -> Iterator[Path]:
    """Folders with the settings of the control groups of this process, and of the groups that they are in."""
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # In a container the path may be that of the host, which is not mounted: then the root has the settings.
        top = root / controller if controllers else root
        group = top / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder == top or top in folder.parents)


def _memory_of(folder: Path) -> int | None:
    """Bytes that one control group leaves free; ``None``: no limit."""
    for names in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            limit, used = (int((folder / name).read_text()) for name in names)
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
        return max(0, limit - used + _file_cache(folder))
    return None


def _file_cache(folder: Path) -> int:
    """Bytes of files that a control group has in memory, and that the system gives back when it needs room."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split() for line in lines if line.count(" ") == 1)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


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
