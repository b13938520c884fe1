"""Cost laws: exponents and their confidence, where a model stops, and a real run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import foveal
from foveal.measuring.page import write_page
from foveal.measuring.presets import laws
from foveal.measuring.presets.laws import cost_laws, exponent_of
from foveal.measuring.presets.timing import fit_exponent
from foveal.measuring.row_file import RowFile


def test_exponent_and_confidence_are_those_of_a_linear_regression() -> None:
    rng = np.random.default_rng(0)
    pixels = np.array([4.0, 9.0, 16.0, 40.0, 100.0, 300.0])
    costs = 3 * pixels**1.2 * np.exp(rng.normal(0, 0.1, len(pixels)))
    expected = stats.linregress(np.log(pixels), np.log(costs))
    found = fit_exponent(pixels.tolist(), costs.tolist())
    assert found is not None
    assert found.value == pytest.approx(expected.slope)
    assert found.error == pytest.approx(expected.stderr * stats.t.ppf(0.975, len(pixels) - 2), rel=1e-3)


def test_exponents_of_few_points() -> None:
    assert fit_exponent([4.0], [1.0]) is None
    found = fit_exponent([4.0, 16.0], [1.0, 4.0])
    assert found is not None
    assert found.value == pytest.approx(1)
    assert math.isnan(found.error)


def row(side: int, ms: float) -> dict[str, Any]:
    key = {"model": "m", "kind": "fastest", "side": side, "threads": 1, "dtype": "float32"}
    return {"key": key, "runtime": "native", "ms": ms, "grown_mib": None}


def test_small_images_are_not_fitted() -> None:
    points = [row(224, 50.0), *(row(side, side**2 / 1e4) for side in (448, 896, 1792))]
    found = exponent_of(points, "ms")
    assert found is not None
    assert (round(found.value, 6), found.points) == (1.0, 3)
    assert exponent_of(points, "grown_mib") is None, "not measured"
    assert laws.law_table(points)[1][-2:] == ("n^1.00 ±0.00", "")


def test_steep_models_are_named_on_the_page(tmp_path: Path) -> None:
    """One of ours that grows as pixels^1.2, one in proportion, and a steep one of others."""
    file = RowFile(tmp_path / "rows.jsonl")
    for model, power in (
        ("efficientvit_b1", 1.2),
        ("efficientvit_b0", 1.0),
        ("benchmarks.peers.published:mit_b1", 1.5),
    ):
        for side in (448, 896, 1792):
            point = row(side, (side**2 / 1e4) ** power)
            file.add({"kind": "law", **point, "key": {**point["key"], "model": model}})
    assert laws.steep(file.rows) == ["efficientvit_b1 (n^1.20 ±0.00, 1 thread)"]
    write_page(tmp_path / "rows.jsonl", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "above 1.05: efficientvit_b1 (n^1.20" in text
    assert "| mit_b1 | native | 1 |" in text
    assert (tmp_path / "page.laws.png").exists()


def test_the_next_time_is_predicted_from_the_last_exponent() -> None:
    assert laws._predict([], 448) == 0
    assert laws._predict([(448, 2.0)], 896) == pytest.approx(8.0), "at least in proportion"
    assert laws._predict([(224, 1.0), (448, 16.0)], 896) == pytest.approx(256.0), "softmax: pixels squared"


def test_a_real_run_stops_where_it_would_take_too_long(tmp_path: Path) -> None:
    options = {"sides": (64, 20000), "threads": 1, "runtime": "native", "rounds": 1}
    rows = tmp_path / "rows.jsonl"
    report = cost_laws(models=("mobilenetv3_small_100",), **options, resume=rows)
    assert [row["key"]["side"] for row in report.rows] == [64]
    assert all(row["ms"] > 0 and row["costs"]["ours"][1] > 0 for row in report.rows)
    assert "20000x20000 would" in report.stopped["mobilenetv3_small_100, native"]
    assert len(report.table()) == 2
    before = rows.read_bytes()
    assert cost_laws(models=("mobilenetv3_small_100",), **options, resume=rows).rows == report.rows
    assert rows.read_bytes() == before
    report.draw(tmp_path / "laws.png")
    assert (tmp_path / "laws.png").read_bytes()[:4] == b"\x89PNG"


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(foveal.ConfigError, match="two sides or more"):
        cost_laws(sides=(64,))
