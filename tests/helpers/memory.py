"""How far pieces of work raise the memory of a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Linux forgets the peak when 5 is written to clear_refs, so that what imports needed before does not hide anything.
_SCRIPT = """
import json, sys
import foveal, {module}
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith(key))
found = []
for argument in sys.argv[1:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, message = status("VmRSS"), "done"
    try:
        {module}.{function}(argument)
    except foveal.FovealError as error:
        message = str(error)
    found.append((message, status("VmHWM") - before))
print(json.dumps(found))
"""


def peak_growths(module: str, function: str, arguments: Sequence[object]) -> list[tuple[str, int]]:
    """Call ``module.function`` with one argument after the other: (message of the FovealError or "done", MiB) of each.

    The figure is by how much the process was at its largest above what it had when the call began. Linux only.
    """
    script = _SCRIPT.format(module=module, function=function)
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},  # the modules of tests/helpers
    )
    assert done.returncode == 0, done.stderr
    return [(message, growth) for message, growth in json.loads(done.stdout)]
