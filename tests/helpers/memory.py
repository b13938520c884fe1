"""Measure the peak memory of function calls in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Writing 5 to clear_refs resets the peak on Linux, so that memory that imports needed before does not count.
_SCRIPT = """
import json, sys
import foveal, {module}
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith(key))
result = []
for argument in sys.argv[1:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, message = status("VmRSS"), "done"
    try:
        {module}.{function}(argument)
    except foveal.FovealError as error:
        message = str(error)
    result.append((message, status("VmHWM") - before))
print(json.dumps(result))
"""


def peak_growths(module: str, function: str, arguments: Sequence[object]) -> list[tuple[str, int]]:
    """Call ``module.function`` with each argument: (message of the FovealError or "done", growth in MiB) of each call.

    The growth is the peak memory during the call minus the memory at its start. Linux only.
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
