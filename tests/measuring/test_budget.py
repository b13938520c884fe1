"""Models within a time: they are ranked by quality, and those that are clearly too slow are not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import foveal
from foveal.cli import main
from foveal.measuring.budget import parse_milliseconds, rank_within
from foveal.measuring.page import write_page


@pytest.mark.parametrize(("text", "ms"), [("100ms", 100), ("0.1s", 100), (" 50 ", 50), ("2.5 MS", 2.5)])
def test_budgets_are_milliseconds(text: str, ms: float) -> None:
    assert parse_milliseconds(text) == ms


@pytest.mark.parametrize("text", ["", "0", "-3ms", "fast", "1h"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(foveal.ConfigError, match="for example 100ms"):
        parse_milliseconds(text)


def test_models_are_ranked_by_quality(tmp_path: Path) -> None:
    models = ("mobilenetv3_small_100", "efficientvit_b0", "mobilenetv2_100")
    options = {"task": "classify", "models": models, "size": (224, 224), "threads": 1, "rounds": 1}
    rows = tmp_path / "rows.jsonl"
    report = rank_within(1e6, **options, resume=rows)
    assert [row["key"]["model"] for row in report.rows] == [
        "mobilenetv2_100",
        "efficientvit_b0",
        "mobilenetv3_small_100",
    ]
    assert report.rows[1]["quality"] == "71.408 top-1 at 224 (efficientvit_b0.r224_in1k, timm results)"
    assert {row["used"] for row in report.rows} == {"native"}
    assert report.notes()[0].startswith("3 of 3 models take at most 1e+06 ms")
    assert [line[2] for line in report.table()] == ["within", "yes", "yes", "yes"]
    before = rows.read_bytes()
    narrow = rank_within(1e-3, **options, resume=rows)
    assert rows.read_bytes() == before, "times are not measured again for another budget"
    assert [line[2] for line in narrow.table()[1:]] == ["no"] * 3
    write_page(rows, tmp_path / "page.md")
    assert "| efficientvit_b0 | " in (tmp_path / "page.md").read_text(encoding="utf-8")
    times = [row["ms"] for row in narrow.rows]
    assert times == sorted(times), "those that are too slow, the fastest first"


def test_larger_models_of_a_family_that_is_too_slow_are_not_run() -> None:
    report = rank_within(
        1e-4, task="segment", models=("efficientvit_l3", "efficientvit_b0"), size=(64, 64), threads=1, rounds=1
    )
    first, second = report.rows
    assert (first["key"]["model"], second["key"]["model"]) == ("efficientvit_b0", "efficientvit_l3")
    assert first["ms"] > 0
    assert second["ms"] is None
    assert "efficientvit_b0, which is smaller, is far too slow" in second["why"]
    assert second["costs"][1] > first["costs"][1]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "upscale", "--size", "16x24", "--budget", "60s", "--rounds", "1", "--threads", "1", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "realtime_sr", *arguments])
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["task"], report["budget_ms"]) == ("upscale", 60000)
    assert report["rows"][0]["key"]["size"] == "16x24"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "100ms"], "--budget needs a task"),
        (["--budget", "100ms", "--task", "segment", "--preset", "headline"], "leave out --preset"),
        (["--budget", "100ms", "--task", "segment", "--batch", "4"], "--batch is not for --budget"),
        (["efficientvit_b0", "--resume", "rows.jsonl"], "--resume is for --preset headline"),
        (["--preset", "headline", "--page", "page.md"], "add --resume FILE"),
    ],
)
def test_wrong_requests_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
