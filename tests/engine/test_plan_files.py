"""Plan files: what is written is read, and damaged or hostile ones are refused in one line or run safely."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveal.engine.engine import Engine
from foveal.engine.plan import Plan, Step, check, load_plan
from foveal.errors import CheckpointError, InputError
from foveal.info import ModelInfo
from helpers.hostile_plans import run_plans
from helpers.plans import isolated, random_plan

WINDOW = {"kernel": 3, "stride": 1, "padding": "symmetric"}


def small(**changes: Any) -> Plan:
    """input, conv, conv plus the first convolution, output; ``changes`` are changes of the step ``s1``, ``s2`` ..."""
    weights = {
        "one": np.ones(4, np.float32),
        "w": np.full((4, 4, 3, 3), 0.1, np.float32),
        "w1": np.full((4, 4, 1, 1), 0.1, np.float32),
    }
    arrays = {"weight": "w", "bias": "one"}
    steps = [
        Step("input", (0,), 1, params={"multiple": 1}, weights={"scale": "one", "shift": "one"}),
        Step("conv", (1,), 2, params={**WINDOW, "groups": 1}, weights=arrays),
        Step("conv", (2,), 3, residual=1, act="relu", params={**WINDOW, "groups": 1}, weights=arrays),
        Step("output", (3,), 4, params={"stride": 0}),
    ]
    for name, change in changes.items():
        number = int(name[1:])
        steps[number] = replace(steps[number], **change)
    return Plan(ModelInfo("model", "segment", in_chans=4), tuple(steps), weights)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    for seed in range(20):
        plan, _ = random_plan(seed)
        plan.save(path := tmp_path / "plan.foveal")
        read = load_plan(path)
        assert (read.info, read.steps) == (plan.info, plan.steps)
        assert read.weights.keys() == plan.weights.keys()
        for name, array in plan.weights.items():
            np.testing.assert_array_equal(read.weights[name], array)


def test_results_depend_on_no_memory_that_was_not_written() -> None:
    """Whatever the memory between the maps and in their padding holds, results are the same."""
    for seed in range(60):
        plan, shape = random_plan(seed)
        check(plan)
        x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        expected = Engine(plan, 1)(x)
        assert np.isfinite(expected).all()
        with isolated(float("nan")):
            np.testing.assert_array_equal(Engine(plan, 3)(x), expected, str(seed))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"s1": {"inputs": (0,)}}, "map 0 is the image"),
        ({"s2": {"residual": 0}}, "map 0 is the image"),
        ({"s0": {"inputs": (1,)}}, "not written before"),
        ({"s3": {"kind": "mean", "params": {}}}, "the last one is none of"),
        ({"s0": {"kind": "affine", "params": {"factor": 1, "addend": 0}, "weights": {}}}, "map 0 is the image"),
        ({"s1": {"out": 1}}, "written already"),
        ({"s1": {"out": 10**9}}, "out of range"),
        ({"s1": {"params": {**WINDOW, "groups": True}}}, "groups=True"),
        ({"s1": {"params": {**WINDOW, "groups": 1, "kernel": 10**400}}}, "a whole number"),
        ({"s1": {"kind": "affine", "params": {"factor": 10**400, "addend": 0}, "weights": {}}}, "a finite number"),
        ({"s1": {"kind": "affine", "params": {"factor": float("nan"), "addend": 0}, "weights": {}}}, "a finite number"),
        ({"s1": {"weights": {"weight": "w", "bias": "missing"}}}, "'missing' is missing"),
        ({"s1": {"act": "elu"}}, "activation 'elu'"),
    ],
)
def test_a_step_that_cannot_be_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    small(**changes).save(path := tmp_path / "plan.foveal")
    with pytest.raises(CheckpointError, match=message) as error:
        load_plan(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("w", np.zeros((1,) * 5, np.float32)),
        ("w", np.zeros((0, 4, 3, 3), np.float32)),
        ("w", np.zeros((4, 4, 3, 3))),
        ("one", np.zeros(4, np.int32)),
    ],
)
def test_an_array_that_cannot_be_is_refused(name: str, array: Any, tmp_path: Path) -> None:
    plan = small()
    replace(plan, weights={**plan.weights, name: np.asarray(array)}).save(path := tmp_path / "plan.foveal")
    with pytest.raises(CheckpointError, match=f"array '{name}'"):
        load_plan(path)


POINTWISE: dict[str, Any] = {
    "params": {**WINDOW, "kernel": 1, "groups": 1},
    "weights": {"weight": "w1", "bias": "one"},
}


def conv_groups(groups: int) -> dict[str, Any]:
    return {"s1": {"params": {**WINDOW, "groups": groups}}}


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({}, (1, 3, 8, 8), "an image of 3 channels, the network takes 4"),
        ({}, (1, 4, 8), "give images"),
        ({}, (1, 4, 0, 8), "give images"),
        (conv_groups(3), (1, 4, 8, 8), "step 1 .conv."),
        (conv_groups(2), (1, 4, 8, 8), "an array of"),
        ({"s1": {"params": {"kernel": 5, "stride": 1, "padding": "same", "groups": 1}}}, (1, 4, 8, 8), "an array of"),
        ({"s1": {"params": {**WINDOW, "stride": 2, "groups": 1}}}, (1, 4, 8, 8), "the residual is"),
        ({"s1": {"weights": {"weight": "w", "bias": "w"}}}, (1, 4, 8, 8), "an array of"),
        ({"s1": {"inputs": (1, 1)}}, (1, 4, 8, 8), "factors of channels in another convolution"),
        ({"s1": {"inputs": (1, 1), **POINTWISE}}, (1, 4, 8, 8), "factors of Shape"),
        ({"s1": {"kind": "depthwise", "params": WINDOW}}, (1, 4, 8, 8), "an array of"),
        ({"s0": {"params": {"multiple": 1024}}}, (4096, 4, 8192, 8192), "too large"),
        ({"s3": {"kind": "vector", "params": {}}}, (1, 4, 8, 8), "a vector of a map"),
        ({"s1": {"kind": "output", "params": {"stride": 0}, "weights": {}}}, (1, 4, 8, 8), "of the planar image"),
    ],
)
def test_a_plan_that_does_not_fit_an_image_is_refused(
    changes: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    plan = small(**changes)
    check(plan)
    x = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape, (0,) * len(shape))  # no memory
    engine = Engine(plan)
    with pytest.raises(InputError, match=message):
        engine._take((x.shape,)) if x.size > 1 << 20 else engine(x)


def test_metadata_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    small().save(path := tmp_path / "plan.foveal")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    edits: list[Callable[[dict[str, str]], Any]] = [
        lambda data: data.pop("foveal_plan"),
        lambda data: data.update(foveal_plan="["),
        lambda data: data.update(foveal_plan="{}"),
        lambda data: data.update(foveal_plan="[]"),
        lambda data: data.update(foveal_plan="[[" * 5000),
        lambda data: data.update(foveal_plan='[{"kind": "input"}]'),
        lambda data: data.update(foveal_plan='[{"kind": "input", "inputs": [0], "out": 1, "more": 1}]'),
        lambda data: data.update(foveal_plan=json.dumps(json.loads(data["foveal_plan"]) * 500)),
    ]
    for edit in edits:
        changed = json.loads(json.dumps(header))
        edit(changed["__metadata__"])
        text = json.dumps(changed).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        with pytest.raises(CheckpointError, match="the plan cannot be used"):
            load_plan(path)


_WITHOUT_THREADS = """
import resource
from pathlib import Path
import numpy as np
from foveal.engine.engine import Engine
from helpers.plans import random_plan
plan, shape = random_plan(3)
engine, x = Engine(plan, 1), np.ones(shape, np.float32)
expected = engine(x)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (4 << 20),) * 2)
engine.threads = 4
assert np.array_equal(engine(x), expected)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_runs_where_no_thread_can_be_started() -> None:
    """There is not enough memory for the stack of a thread."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", _WITHOUT_THREADS], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def check_outcomes(outcomes: Counter[str], count: int) -> None:
    """Random plans are run; damaged ones are run or refused with an error for plans or for sizes."""
    assert outcomes["run"] >= count // 2, outcomes
    assert outcomes.total() == count
    assert outcomes["long"] <= count // 50, outcomes
    assert outcomes.keys() <= {
        "run",
        "long",
        "not-finite",
        "CheckpointError",
        "ConfigError",
        "InputError",
        "OutOfMemoryError",
    }, outcomes


def test_random_and_damaged_plans_are_run_or_refused() -> None:
    """In a child process with limits of time and memory; no error but those of Foveal."""
    check_outcomes(run_plans(0, 300), 300)


@pytest.mark.long
def test_many_random_and_damaged_plans_are_run_or_refused() -> None:
    for first in range(1000, 11_000, 2500):
        check_outcomes(run_plans(first, 2500), 2500)
