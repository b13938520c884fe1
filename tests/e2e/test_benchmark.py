"""The benchmark takes turns, compares outputs, and says what its figures depend on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import foveal
from foveal.cli import main
from foveal.info import ModelInfo
from foveal.measuring.benchmark import interleaved, ratio, run_of
from foveal.prediction.predictor import Predictor
from foveal.training.train import TrainResult


def test_candidates_take_turns() -> None:
    """Every candidate runs once per round and starts a round in its turn."""
    order: list[str] = []
    times = interleaved({name: lambda n=name: order.append(n) for name in "abc"}, rounds=3, warmup=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratio_is_the_median_of_ratios() -> None:
    """A slow round slows both; the ratio of medians would be fooled, the median of ratios is not."""
    assert ratio([2.0, 20.0, 4.0], [1.0, 10.0, 1.0]) == 2.0


def test_report_is_complete(run: TrainResult, exported: Path) -> None:
    """A checkpoint and the file exported from it, side by side with equal outputs."""
    report = foveal.bench([run.best, exported], size=(64, 96), rounds=3, warmup=1, threads=1)
    found = json.loads(json.dumps(report.to_dict()))
    first, second = found["candidates"]
    assert first["ratio"] == 1.0
    assert second["agreement"] >= 0.999
    assert second["difference"] <= 1e-4
    assert first["params"] == second["params"] == sum(p.numel() for p in foveal.load_model(run.best).parameters())
    assert first["macs"] == second["macs"] > 0
    assert first["p50_ms"] <= first["p90_ms"]
    assert 20 < second["peak_mib"] < first["peak_mib"], "ONNX Runtime needs no torch in memory"
    assert found["machine"]["cpu"]
    assert (found["threads"], found["rounds"], found["size"]) == (1, 3, [64, 96])
    assert len(report.table()) == 3


def test_nonsense_is_refused() -> None:
    for options, message in (
        ({"refs": []}, "at least one model"),
        ({"refs": ["a", "b", "a"]}, "a is named twice"),
        ({"size": (0, 64)}, r"size=\(0, 64\): height and width are positive"),
        ({"batch": 0}, "batch=0: give 1 or more"),
        ({"rounds": 0}, "rounds=0: give 1 or more"),
        ({"warmup": -1}, "warmup=-1: give 0 or more"),
        ({"threads": -1}, "threads=-1: give 0 or more"),
        ({"runtime": "onnxruntime"}, "export this (one|model) first"),
        ({"dtype": "float61"}, "did you mean 'float16'"),
        ({"device": "cuda:99"}, "cuda:99"),
    ):
        with pytest.raises(foveal.FovealError, match=message):
            foveal.bench(**{"refs": ["efficientvit_b0"], **options})
    with pytest.raises(foveal.FovealError, match="no such file"):
        foveal.bench(["efficientvit_b99"])


@pytest.mark.parametrize(
    ("ref", "note"),
    [("efficientvit_b0.camvid", ""), pytest.param("efficientvit_b0", ", random weights", marks=pytest.mark.long)],
)
def test_dtype_of_weights_and_of_architectures(ref: str, note: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Both run in bfloat16; the exported file of the bundled weights cannot, so that torch runs them."""
    options = ["--device", "cpu", "--dtype", "bfloat16", "--size", "64x96", "--rounds", "1", "--threads", "1", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", ref, *options])
    assert ended.value.code == 0
    (found,) = json.loads(capsys.readouterr().out)["candidates"]
    assert found["runtime"] == f"torch on cpu, bfloat16{note}"
    assert found["peak_mib"] > 20, "the settings reach the process whose memory is measured"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without that device")
@pytest.mark.parametrize("ref", ["efficientvit_b0.camvid", "efficientvit_b0"])
def test_a_missing_device_is_one_line_and_exit_code_2(ref: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", ref, "--device", "cuda", "--size", "64x96"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "'cuda'" in error
    assert error.count("\n") == 1


def test_accelerators_finish_before_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device works behind the caller's back: the run ends when it has finished, not when it has its orders."""
    order: list[str] = []

    class Runner:
        device = torch.device("cuda", 0)

        def __call__(self, batch: np.ndarray) -> np.ndarray:
            order.append("run")
            return batch

    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: order.append(f"wait for {device}"))
    predictor = Predictor(Runner(), ModelInfo("efficientvit_b0", "segment"), "torch on cuda:0")
    run = run_of(predictor, np.zeros((1, 3, 8, 8), np.float32))
    interleaved({"a": run}, rounds=1, warmup=0, clock=lambda: float(len(order.append("clock") or order)))
    assert order == ["clock", "run", "wait for cuda:0", "clock"]
