"""Progress in pipes: plain lines with the time left, for work that takes longer than two seconds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal import progress
from foveal.progress import Progress
from helpers.commands import Command


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the progress sees, in its only entry."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_after_two_seconds_and_then_every_ten(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress().bar("upscale", 2) as bar:
        for tile in range(1, 61):
            clock[0] += 0.5
            bar.part(tile / 60, f"tile {tile} of 60")
        bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "upscale 0/2 tile 4 of 60 left 0:00:58"
    assert [re.findall(r"tile (\d+)", line) for line in lines] == [["4"], ["24"], ["44"]]


def test_short_work_is_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress().bar("segment", 40) as bar:
        for _ in range(40):
            clock[0] += 0.04
            bar.advance("x")
    assert capsys.readouterr().err == ""


def test_items_of_an_earlier_run_do_not_shorten_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress().bar("batch", 100, 50) as bar:
        clock[0] += 10
        bar.advance(count=10)
    assert capsys.readouterr().err == "batch 60/100 left 0:00:40\n"


def test_tiles_and_copies_report() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (130, 200, 3), np.uint8)
    told: list[tuple[float, str]] = []

    def tell(share: float, text: str) -> None:
        told.append((share, text))

    foveal.load("efficientvit_b0.camvid").segment(pixels, tile=64, flip=True, scales=[1, 0.5], progress=tell)
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert len(set(shares)) == len(shares) >= 4
    assert shares[-1] == 1
    assert told[0][1].startswith("copy 1 of 4 tile 1 of ")
    told.clear()
    foveal.load("efficientvit_sr.x2").upscale(pixels, tile=64, progress=tell)
    assert [text for _, text in told] == [f"tile {i} of {len(told)}" for i in range(1, len(told) + 1)]
    assert len(told) > 4


def test_the_verb_reports_tiles(cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe, here with no time to wait for the lines."""
    monkeypatch.setattr(progress, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    Image.new("RGB", (150, 100), "grey").save(tmp_path / "x.png")
    done = cli("upscale", tmp_path / "x.png", "--tile", "64", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^upscale 0/1 tile 1 of \d+ left 0:\d\d:\d\d$", done.stderr, re.MULTILINE)
