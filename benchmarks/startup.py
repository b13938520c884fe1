"""Time whole commands as processes, as a user waits for them: from ``import foveal`` to an upscaled photograph.

python benchmarks/startup.py [--rounds 11] [--cores 1] [--commands NAME ...] [--against SRC] [--json FILE]
    Prints the medians of wall and processor time. With --against, the ``src`` folder of another version, both versions
    take turns; ratios are taken round by round and their median is printed, above 1 where this version is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from foveal import assets
from foveal.measuring import machine

PHOTO = str(assets.FOLDER / "street.jpg")  # 1280x743
COMMANDS = {
    "python": ["-c", "pass"],
    "import": ["-c", "import foveal"],
    "help": ["-m", "foveal", "--help"],
    "segment": ["-m", "foveal", "segment", PHOTO, "--out", "mask.png"],
    "upscale": ["-m", "foveal", "upscale", PHOTO, "--out", "large.png"],
}
OWN = str(Path(__file__).resolve().parents[1] / "src")


def run(command: list[str], source: str, folder: str) -> tuple[float, float]:
    """Run a command of the version in ``source``; wall and processor time in seconds, with those of its children."""
    environment = {**os.environ, "PYTHONPATH": source, "PYTHONPYCACHEPREFIX": str(Path(folder) / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages have their bytecode
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {source}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def measure(name: str, sources: list[str], rounds: int, folder: str) -> dict[str, list[float]]:
    """Medians of one command: wall and processor time of each version, and the ratios of the last to the first."""
    times = []
    for number in range(rounds + 1):
        order = sources if number % 2 else sources[::-1]
        found = {source: run(COMMANDS[name], source, folder) for source in order}
        times.append([found[source] for source in sources])
    seconds = np.array(times[1:])  # (rounds, versions, 2) without the round that compiles
    medians = np.median(seconds, axis=0)
    ratios = np.median(seconds[:, -1] / seconds[:, 0], axis=0)
    return {"wall": medians[:, 0].tolist(), "processor": medians[:, 1].tolist(), "ratios": ratios.tolist()}


def main() -> None:
    """Time each command and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--cores", type=int, help="number of cores that the processes may use; default: all")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--against", type=Path, help="the src folder of another version")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    sources = [OWN, *([str(arguments.against.resolve())] if arguments.against else [])]
    print(f"{machine.one_line()}, median of {arguments.rounds}; seconds")
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.commands:
            row = report[name] = measure(name, sources, arguments.rounds, folder)
            line = f"{name:8} wall {row['wall'][0]:6.3f}  processor {row['processor'][0]:6.3f}"
            if arguments.against:
                line += f"  before {row['wall'][1]:6.3f} {row['processor'][1]:6.3f}"
                line += f"  ratio {row['ratios'][0]:5.2f} {row['ratios'][1]:5.2f}"
            print(line, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine.describe(), "seconds": report}, indent=2))


if __name__ == "__main__":
    main()
