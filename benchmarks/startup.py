"""Time whole commands as processes, as a user waits for them: from ``import foveal`` to an upscaled photograph.

python benchmarks/startup.py [--rounds 11] [--cores 1] [--commands NAME ...] [--against SRC]
    [--rows FILE.jsonl] [--page FILE.md]
    Prints the medians of wall and processor time. With --against, the ``src`` folder of another version, both versions
    take turns; ratios are taken round by round and their median is printed, above 1 where this version is faster. No
    rows are kept then.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measured_tables import parse, parser, write_tables

from foveal import assets
from foveal.measuring.machine import one_line
from foveal.measuring.page import markdown
from foveal.measuring.row_file import Row, RowFile
from foveal.prediction.devices import cpu_count

PHOTO = str(assets.FOLDER / "street.jpg")  # 1280x743
COMMANDS = {
    "python": ["-c", "pass"],
    "import": ["-c", "import foveal"],
    "help": ["-m", "foveal", "--help"],
    "segment": ["-m", "foveal", "segment", PHOTO, "--out", "mask.png"],
    "upscale": ["-m", "foveal", "upscale", PHOTO, "--out", "large.png"],
}
SHOWN = {
    "import": "`import foveal`",
    "help": "`foveal --help`",
    "segment": "`foveal segment street.jpg`",
    "upscale": "`foveal upscale street.jpg`",
}
TIMES = ("wall", "processor")
KIND = "startup"  # of the rows
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
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=11)
    arguments.add_argument("--cores", type=int, help="number of cores that the processes may use; default: all")
    arguments.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    arguments.add_argument("--against", type=Path, help="the src folder of another version")
    options = parse(arguments)
    if options.against and options.rows:
        arguments.error("--against keeps no rows: leave out --rows and --page")
    rows = RowFile(options.rows)
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    sources = [OWN, *([str(options.against.resolve())] if options.against else [])]
    print(f"{one_line(rows.machine)}, median of {options.rounds}; seconds")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.commands:
            key = {"command": name, "cores": cpu_count()}
            row = rows.find(KIND, key)
            if row is None:
                measured = measure(name, sources, options.rounds, folder)
                rows.add(row := {"kind": KIND, "key": key, "rounds": options.rounds, **measured})
            line = f"{name:8} wall {row['wall'][0]:6.3f}  processor {row['processor'][0]:6.3f}"
            if options.against:
                line += f"  before {row['wall'][1]:6.3f} {row['processor'][1]:6.3f}"
                line += f"  ratio {row['ratios'][0]:5.2f} {row['ratios'][1]:5.2f}"
            print(line, flush=True)
    if options.page:
        write_page(options.rows, options.page)


def write_page(rows: Path, page: Path) -> None:
    """Write the tables of all rows into a page."""
    write_tables("startup", rows, page, ("foveal", "onnxruntime", "numpy"), table)


def table(rows: Sequence[Row]) -> str:
    """The commands of users, in Markdown."""
    lines = [
        (SHOWN[row["key"]["command"]], str(row["key"]["cores"]), *(f"{row[kind][0]:.3f} s" for kind in TIMES))
        for row in rows
        if row["key"]["command"] in SHOWN
    ]
    return markdown([("command", "cores", "time", "processor time"), *lines])


if __name__ == "__main__":
    main()
