"""Whole models run by the native engine equal torch in float64; they can be shared, copied, pickled and forked."""

from __future__ import annotations

import copy
import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from foveal.engine.engine import Engine
from foveal.engine.lowering import NotCoveredError, make_plan
from foveal.factory.create import create_model
from foveal.prediction.native_runner import NativeRunner
from helpers.covered import CASES, covered
from helpers.narrow import narrow

SIZES = ((1, 65, 47), (3, 40, 72))


def images(batch: int, height: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(height).random((batch, 3, height, width), np.float32)


def in_float64(model: torch.nn.Module, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The output of the model in eager mode, of segmentation at its own stride."""
    options = {"upsample": False} if hasattr(model, "multiple_of") else {}
    with torch.no_grad():
        return copy.deepcopy(model).double()(torch.from_numpy(x).double(), **options).numpy()


@pytest.mark.parametrize("case", CASES)
def test_equals_float64_for_any_number_of_threads(case: str) -> None:
    model = covered(case)
    plan = make_plan(model)
    engines = [Engine(plan, threads) for threads in (1, 2, 3)]
    for size in SIZES:
        x = images(*size)
        expected, (one, *others) = in_float64(model, x), (engine(x) for engine in engines)
        assert one.shape == expected.shape
        assert np.abs(one - expected).max() <= 1e-5 * np.abs(expected).max()
        for other in others:
            np.testing.assert_array_equal(one, other)


def test_a_batch_equals_its_images_one_by_one() -> None:
    engine, x = Engine(make_plan(narrow("segment"))), images(3, 33, 50)
    np.testing.assert_array_equal(engine(x), np.concatenate([engine(part) for part in np.split(x, 3)]))


def test_threads_of_the_caller_share_an_engine() -> None:
    engine = Engine(make_plan(narrow("segment")), 2)
    inputs = [images(1, height, 64) for height in (32, 40, 48, 56) * 3]
    expected = [engine(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(engine, inputs), expected, strict=True):
            np.testing.assert_array_equal(found, one)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_runs_in_a_forked_process_after_runs_in_the_parent() -> None:
    engine, x = Engine(make_plan(narrow()), 3), images(1, 64, 48)
    expected = engine(x)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a process that waits for ever fails the test
        code = 4
        try:
            code = 0 if np.array_equal(engine(x), expected) else 3
        finally:  # whatever happens, this process does not go on with the tests
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(engine(x), expected)


def test_a_runner_is_pickled_and_copied() -> None:
    runner, x = NativeRunner(make_plan(narrow()), 2), images(1, 48, 48)
    for other in (pickle.loads(pickle.dumps(runner)), copy.deepcopy(runner)):
        assert other.engine.threads == 2
        np.testing.assert_array_equal(other(x), runner(x))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model: model.backbone.stages[1].append(torch.nn.ELU()), "ELU"),
        (lambda model: setattr(model.backbone.stem[0].conv, "dilation", (2, 2)), "dilation=(2, 2)"),
        (lambda model: setattr(model.backbone.stem[0].conv, "padding", (0, 0)), "Conv2d(3, 8"),
        (lambda model: setattr(model.backbone.stem[0], "act", torch.nn.ELU()), "ELU"),
        (lambda model: setattr(model.backbone.stem[0], "norm", torch.nn.GroupNorm(2, 8)), "GroupNorm"),
    ],
)
def test_a_layer_that_is_not_covered_is_named(change: Any, named: str) -> None:
    model = narrow()
    change(model)
    with pytest.raises(NotCoveredError) as error:
        make_plan(model)
    assert named in str(error.value)
    assert "efficientvit_b0" in str(error.value)


def test_a_family_that_is_not_covered_is_named() -> None:
    with pytest.raises(NotCoveredError, match="EfficientViTBackbone"):
        make_plan(create_model("edifice_efficient_vit"))
