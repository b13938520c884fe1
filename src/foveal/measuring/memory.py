"""The peak memory of a piece of work, measured in a process of its own."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_SCRIPT = """
import importlib, json, sys
module, function, arguments = json.loads(sys.argv[1])
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))
work = getattr(importlib.import_module(module), function)(*arguments)
before, importing = status("VmRSS"), status("VmHWM")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
work()
peak = status("VmHWM")
print(max(peak, importing), max(peak - before, 0))
"""


class PeakMemory(NamedTuple):
    """Largest resident memory of a process, in MiB; ``None`` where it cannot be measured."""

    total: float | None  #: of the whole process, imports included
    grown: float | None  #: what the work alone added


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> PeakMemory:
    """Run ``prepare(*arguments)()`` in a new process and read its peak memory (Linux only, from VmHWM).

    ``ru_maxrss`` would not do: a child process inherits that figure from the process that started it.

    Args:
        prepare: a function at the top level of a module. It imports and builds what must not count as growth, and
            returns the work as a function.
        *arguments: its arguments, of types that JSON has.
    """
    call = json.dumps([prepare.__module__, prepare.__name__, arguments])
    done = subprocess.run([sys.executable, "-c", _SCRIPT, call], capture_output=True, text=True)
    figures = done.stdout.split()
    if done.returncode or len(figures) < 2:
        return PeakMemory(None, None)
    return PeakMemory(round(int(figures[-2]) / 1024, 1), round(int(figures[-1]) / 1024, 1))


def resident(name: str) -> float | None:
    """A field of /proc/self/status in MiB: "VmRSS", the resident memory, or "VmHWM", its peak; ``None``: not Linux."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), None)


def reset_peak() -> float | None:
    """Give freed memory back, let the peak be what is resident now, and return that; ``None``: not possible here."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError):
        return None
    return resident("VmRSS")
