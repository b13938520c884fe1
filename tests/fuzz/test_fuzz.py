"""Damaged inputs of every kind are read or refused in one line: a few cases each here, thousands in the long test."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import run
from fuzz.cases import run_case, use_input
from fuzz.targets import TARGETS

FOUND = Path(__file__).parent / "found"
CASES = 20
MORE_CASES = {"checkpoints: .pte": 150, "checkpoints: .tflite": 150}  # a runtime that reads damage can end the process


@pytest.mark.filterwarnings("ignore")  # decoders warn of some damage
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_are_read_or_refused(name: str, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    TARGETS[name].write(good)
    assert use_input(name, good).kind in ("read", "slow")  # slow: the first use imports torch
    for case in range(MORE_CASES.get(name, CASES)):
        outcome = run_case(name, case, 1, good, tmp_path / f"{case}")
        assert outcome.kind in ("read", "refused", "slow"), (case, outcome)  # no test depends on time


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder", sorted(FOUND.glob("*/*")), ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_inputs_that_once_failed_are_read_or_refused(folder: Path, tmp_path: Path) -> None:
    """``found/TARGET/NAME`` holds an input that was once answered with another error."""
    name = next(name for name in TARGETS if run.slug(name) == folder.parent.name)
    assert use_input(name, folder).kind in ("read", "refused", "slow")


@pytest.mark.long
def test_many_damaged_inputs_are_read_or_refused(tmp_path: Path) -> None:
    assert run.main(["--cases", "20000", "--out", str(tmp_path)]) == 0, sorted(tmp_path.rglob("outcome.json"))
