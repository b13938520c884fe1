"""One case: a good input, damaged at random, read and used; and what came of it."""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import foveal

from .mutations import mutate_file
from .targets import TARGETS

SECONDS, MEBIBYTES = 5.0, 512  #: what one case may take

#: "read": used without an error. "refused": a FovealError of one line. All others are failures.
Kind: TypeAlias = Literal["read", "refused", "untyped", "message", "slow", "memory", "ended"]
FAILURES: tuple[Kind, ...] = ("untyped", "message", "slow", "memory", "ended")


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Attributes:
        kind: see ``Kind``; "message": the error has several lines or control characters; "ended": the process ended
            or did not answer.
        message: the error, empty for "read".
        seconds: time that reading and using took.
        growth: growth of the process's peak memory in MiB; 0 where the system does not tell.
    """

    kind: Kind
    message: str = ""
    seconds: float = 0.0
    growth: int = 0


def run_case(name: str, case: int, seed: int, good: Path, folder: Path) -> Outcome:
    """Damage a copy of the good input and use it.

    Args:
        name: of the target.
        case: number of the case; with the seed it decides the damage.
        seed: of the whole run.
        good: folder of the good input, which stays as it is.
        folder: where the damaged input is written; it must not exist.
    """
    target, rng = TARGETS[name], random.Random(f"{seed} {name} {case}")
    shutil.copytree(good, folder, copy_function=os.link)
    mutate_file(target.files(folder), rng)
    return use_input(name, folder)


def use_input(name: str, folder: Path) -> Outcome:
    """Use the input in ``folder`` as a user would."""
    before, start = _reset_peak(), time.process_time()  # processor time: other processes may keep the machine busy
    kind, message = _use(name, folder)
    seconds, growth = time.process_time() - start, _peak() - before
    if kind in ("read", "refused"):
        kind = "slow" if seconds > SECONDS else "memory" if growth > MEBIBYTES else kind
    return Outcome(kind, message, seconds, growth)


def _use(name: str, folder: Path) -> tuple[Kind, str]:
    try:
        TARGETS[name].use(folder)
    except foveal.FovealError as error:
        message = str(error)
        return "refused" if message.isprintable() else "message", message
    except MemoryError as error:
        return "memory", repr(error)
    except Exception as error:
        return "untyped", repr(error)
    return "read", ""


def _reset_peak() -> int:
    """Make the peak of the memory the present amount (Linux), and return it in MiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _peak()


def _peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))
