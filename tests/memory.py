"""How far a piece of work raises the memory of a process of its own."""

from __future__ import annotations

import subprocess
import sys

# Linux forgets the peak when 5 is written to clear_refs, so that what imports needed before does not hide anything.
_SCRIPT = """
import sys
{prepare}
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith(key))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
try:
    {work}
    print("done")
except foveal.FovealError as error:
    print(error)
print(status("VmHWM") - before)
"""


def peak_growth(prepare: str, work: str, *arguments: object) -> tuple[str, int]:
    """Run ``work``, one statement, after ``prepare`` (which imports foveal): what came of it, and the growth in MiB.

    ``arguments`` are in ``sys.argv[1:]``. What comes of it is the message of a FovealError, or "done".
    """
    script = _SCRIPT.format(prepare=prepare, work=work)
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *message, growth = done.stdout.splitlines()
    return "\n".join(message), int(growth)
