"""Time ``import foveal`` and ``foveal --help`` as whole processes: what a user waits before anything happens.

python benchmarks/startup.py [--rounds 11]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np

from foveal.measuring import machine
from foveal.measuring.benchmark import interleaved

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import foveal": [sys.executable, "-c", "import foveal"],
    "foveal --help": [sys.executable, "-m", "foveal", "--help"],
}


def main() -> None:
    """Time each command as a process and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    times = interleaved({name: lambda c=command: _run(c) for name, command in COMMANDS.items()}, rounds=rounds)
    print(f"{machine.one_line()}, median of {rounds}")
    for name, seconds in times.items():
        print(f"{name:16} {1e3 * float(np.median(seconds)):7.0f} ms")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
