"""Rounds take turns, ratios resist a drifting machine, and the noise bound holds."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import foveal
from foveal.measuring.rounds import Work, interleaved, noise_bound, ratio, warm_up


def test_candidates_take_turns() -> None:
    """Every candidate runs once per round and starts a round in its turn."""
    order: list[str] = []
    times = interleaved({name: lambda n=name: order.append(n) for name in "abc"}, rounds=3, warmup=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize("names", ["abc", "abcde"])
def test_each_candidate_follows_both_neighbours_about_equally_often(names: str) -> None:
    """So that none of them always finds the caches that the same other one has left."""
    order: list[str] = []
    interleaved({name: lambda n=name: order.append(n) for name in names}, rounds=8 * len(names), warmup=0)
    follows = list(pairwise(order))
    for place, name in enumerate(names):
        counts = [follows.count((names[(place + step) % len(names)], name)) for step in (-1, 1)]
        assert max(counts) < 2 * min(counts), (name, counts)


def test_ratio_is_the_median_of_ratios() -> None:
    """A slow round slows both; the ratio of medians would be fooled, the median of ratios is not."""
    assert ratio([2.0, 20.0, 4.0], [1.0, 10.0, 1.0]) == 2.0


def test_before_and_a_measure_of_its_own() -> None:
    calls: list[str] = []
    times = interleaved(
        {"a": lambda: calls.append("run")},
        rounds=2,
        warmup=1,
        before=lambda name: calls.append(f"before {name}"),
        seconds=lambda name: float(len(name)),
    )
    assert times == {"a": [1.0, 1.0]}
    assert calls == ["before a", "run", "before a", "before a"]


def test_short_runs_are_repeated_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(lambda: None)
    monkeypatch.setattr("foveal.measuring.rounds.TURN", 0.002)
    assert len(work.turn()) > 1
    monkeypatch.setattr("foveal.measuring.rounds.TURN", 0.0)
    assert len(work.turn()) == 1


def test_warm_up_ends_when_the_time_is_steady_or_the_limit_is_reached() -> None:
    clocks = iter([4.0] * 5 + [2.0] * 5 + [1.0] * 10)  # a clock that rises
    taken: list[float] = []

    def measure() -> float:
        taken.append(next(clocks))
        return taken[-1]

    assert warm_up(measure, window=5, limit=1e9) == 0
    assert len(taken) == 20
    falling = iter(2.0**-i for i in range(1000))
    assert warm_up(lambda: next(falling), window=5, limit=1.99) > 0.02


@pytest.mark.parametrize("count", [8, 20, 51])
@pytest.mark.parametrize("spread", [0.01, 0.5])
def test_the_bound_holds_the_true_ratio(count: int, spread: float) -> None:
    """On times with heavy tails, of a candidate that takes 1.3 times as long: the truth is outside in 1 % of the cases.

    In fewer, since the bound has a part for loading on top.
    """
    random, outside, trials = np.random.default_rng(count), 0, 2000
    for _ in range(trials):
        first, second = np.exp(spread * random.standard_t(3, (2, count)))
        bound = noise_bound(1.3 * second, first)
        assert bound is not None
        outside += abs(ratio(1.3 * second, first) - 1.3) > bound
    assert outside / trials <= 0.01


def test_the_bound_shrinks_with_more_rounds_and_needs_two() -> None:
    random = np.random.default_rng(0)
    few, many = (noise_bound(*np.exp(0.1 * random.standard_normal((2, count)))) for count in (10, 1000))
    assert few is not None
    assert many is not None
    assert many < few / 3
    assert noise_bound([1.0], [1.0]) is None
    loading = noise_bound([1.0] * 3, [1.0] * 3)
    assert loading is not None
    assert noise_bound([1.0, 1.2, 1.1], [1.0] * 3) == pytest.approx(0.1 + 1.1 * loading)


def test_the_same_model_given_twice_is_within_the_bound() -> None:
    """On times that ``foveal.bench`` recorded for one model given twice, on a core that several processes shared."""
    recorded = json.loads(Path(__file__).with_name("same_model_twice.json").read_text(encoding="utf-8"))
    assert len(recorded) >= 20
    for pair in recorded:
        bound = noise_bound(pair["second"], pair["first"])
        assert bound is not None
        assert abs(ratio(pair["second"], pair["first"]) - 1) < bound


def test_measuring_leaves_the_number_of_torch_threads() -> None:
    before = torch.get_num_threads()
    foveal.bench(["efficientvit_m0"], size=(224, 224), threads=before + 1, rounds=1, warmup=0, memory=False)
    assert torch.get_num_threads() == before
