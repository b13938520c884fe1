"""A candidate is a reference with settings of its own, which nothing ignores."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveal.errors import ConfigError
from foveal.measuring.candidates import Candidate, parse_candidate


def test_own_settings_take_precedence() -> None:
    text = "owner/name@main@runtime=onnxruntime,dtype=float32,size=64x96,batch=2,threads=3,task=segment,device=cuda:1"
    assert parse_candidate(text, {"threads": 1, "dtype": "bfloat16", "size": (32, 32)}) == Candidate(
        text,
        "owner/name@main",
        task="segment",
        size=(64, 96),
        batch=2,
        device="cuda:1",
        dtype="float32",
        runtime="onnxruntime",
        threads=3,
    )
    assert parse_candidate("a@size=64", {}).size == (64, 64)


def test_references_without_settings_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd@task=name.onnx").touch()
    for text in ("efficientvit_b0", "hf-hub:owner/name@v1", "runs/mine", "odd@task=name.onnx"):
        assert parse_candidate(text, {"threads": 2}) == Candidate(text, text, threads=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a@rutime=torch", "unknown setting 'rutime=torch'; did you mean 'runtime'"),
        ("a@batch=1,batch=2", "batch is given twice"),
        ("a@batch=many", "batch=many: give a whole number"),
        ("a@size=64x", "size=64x: give HEIGHTxWIDTH"),
        ("a@threads=0", "threads=0: give 1 or more"),
        ("a@size=0x64", "size=0x64: give HEIGHTxWIDTH"),
        ("a@runtime=torhc", "did you mean 'torch'"),
        ("a@dtype=float61", "did you mean 'float16'"),
        ("a@task=segmant", "did you mean 'segment'"),
        ("a@runtime=torch,fast", "unknown setting 'fast'"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_candidate(text, {})
