"""The benchmark takes turns, compares outputs, and says what its figures depend on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import foveal
from foveal.measuring.benchmark import interleaved, ratio
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
    with pytest.raises(foveal.ConfigError, match="at least one model"):
        foveal.bench([])
    with pytest.raises(foveal.FovealError, match="no such file"):
        foveal.bench(["efficientvit_b99"])
