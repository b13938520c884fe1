"""Describe the machine and the versions that figures were measured with."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe() -> dict[str, str | int]:
    """Processor, logical cores, operating system, and the versions of Python and of the packages that compute."""
    from importlib import metadata

    facts = _machine()
    for package in ("foveal", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "timm", "transformers"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def one_line() -> str:
    """Processor, cores, operating system and Python version in one line."""
    facts = _machine()
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['os']}, Python {facts['python']}"


def _machine() -> dict[str, str | int]:
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "os": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Hardware", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
