"""Describe the machine and the versions that figures were measured with."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
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


def one_line(facts: Mapping[str, str | int] | None = None) -> str:
    """Processor, cores, operating system and Python version in one line.

    Args:
        facts: of a machine, as :func:`describe` gives them; default: this one.
    """
    facts = facts or _machine()
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['os']}, Python {facts['python']}"


def _machine() -> dict[str, str | int]:
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "os": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    """Name of the processor; on x86 with its family and model, which virtual machines often leave out of the name."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    name = facts.get("model name") or facts.get("Hardware") or facts.get("Model")
    if name and "cpu family" in facts:
        return f"{name} (family {facts['cpu family']}, model {facts.get('model')})"
    return name or platform.processor() or platform.machine()
