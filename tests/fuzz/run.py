"""Damage inputs of every kind that Foveal reads, use them in processes of their own, and print what came of them.

    python tests/fuzz/run.py --cases 20000

Inputs whose case failed are kept in the folder --out, one folder each, with the outcome. The exit code is 1 if any did.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.cases import FAILURES, Outcome, run_case
from fuzz.targets import TARGETS

ANSWER_WITHIN = 120  # seconds, after which a process counts as hanging
ADDRESS_SPACE = 8 << 30  # bytes that a process may have more than at its start


def main(arguments: list[str] | None = None) -> int:
    """Run all cases and print the table; return the exit code."""
    options = _parse(arguments)
    out = Path(options.out)
    per_target = -(-options.cases // len(options.targets))
    counts: dict[str, Counter[str]] = {name: Counter() for name in options.targets}
    start, done = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.processes) as pool:
        jobs = [
            pool.submit(_run_target, name, per_target, options.seed, Path(scratch) / f"{number}", out, counts[name])
            for number, name in enumerate(options.targets)
        ]
        total = per_target * len(jobs)
        while done < total and not all(job.done() for job in jobs):
            time.sleep(2)
            done = sum(sum(count.values()) for count in counts.values())
            left = (time.monotonic() - start) / max(done, 1) * (total - done)
            print(f"{done:,} of {total:,} cases, {left / 60:.0f} min left", file=sys.stderr)
        for job in jobs:
            job.result()
    print(table(counts))
    return 1 if any(count[kind] for count in counts.values() for kind in FAILURES) else 0


def table(counts: dict[str, Counter[str]]) -> str:
    """What came of the cases, as a table in Markdown."""
    heads = ["input", "cases", "read", "refused", "untyped error", "bad message", "above 5 s", "above 512 MiB", "ended"]
    rows = [heads, ["---", *["--:"] * (len(heads) - 1)]]
    for name, count in [*counts.items(), ("all", sum(counts.values(), Counter[str]()))]:
        numbers = [sum(count.values()), count["read"], count["refused"], *(count[kind] for kind in FAILURES)]
        rows.append([name, *(f"{number:,}" for number in numbers)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def slug(name: str) -> str:
    """The name of a target as the name of a folder."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000, help="number of cases, shared among the targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="fuzz-failures", help="folder for inputs whose case failed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS), metavar="TARGET")
    return parser.parse_args(arguments)


def _run_target(name: str, cases: int, seed: int, folder: Path, out: Path, count: Counter[str]) -> None:
    """Run all cases of one target in a child process, and in another one after each that ended or hung."""
    case = 0
    while case < cases:
        for outcome in _answers(name, case, cases, seed, folder):
            count[outcome.kind] += 1
            if outcome.kind in FAILURES:
                _keep(folder / "case", out / slug(name) / str(case), outcome)
            case += 1
        if case < cases and not (folder / "good").exists():
            raise SystemExit(f"{name}: the good input cannot be written")


def _answers(name: str, first: int, cases: int, seed: int, folder: Path) -> Iterator[Outcome]:
    """The outcomes of the cases from ``first`` on, from one child process, until it ends or hangs."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(name, first, cases, seed, folder, theirs), daemon=True
    )
    process.start()
    theirs.close()
    case, patience = first, 300  # seconds for imports and the good input
    try:
        while case < cases:
            if not ours.poll(patience):
                yield Outcome("ended", f"no answer within {patience} seconds")
                return
            outcome = ours.recv()
            if outcome is not None:  # None: the good input is written
                yield outcome
                ours.send(None)  # what had to be kept is kept
                case += 1
            patience = ANSWER_WITHIN
    except (EOFError, BrokenPipeError, ConnectionResetError):
        process.join()
        yield Outcome("ended", f"the process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _work(name: str, first: int, cases: int, seed: int, folder: Path, connection: Connection) -> None:
    """In a child process: write the good input, then run the cases and send the outcome of each."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    logging.disable()
    warnings.simplefilter("ignore")
    os.environ["OMP_NUM_THREADS"] = "1"
    good, place = folder / "good", folder / "case"
    if not good.exists():
        good.mkdir(parents=True)
        TARGETS[name].write(good)
    TARGETS[name].use(good)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, resource.RLIM_INFINITY))
    connection.send(None)
    for case in range(first, cases):
        shutil.rmtree(place, ignore_errors=True)
        connection.send(run_case(name, case, seed, good, place))
        connection.recv()


def _keep(folder: Path, to: Path, outcome: Outcome) -> None:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to / "input")
    (to / "outcome.json").write_text(json.dumps(asdict(outcome), indent=1))


if __name__ == "__main__":
    raise SystemExit(main())
