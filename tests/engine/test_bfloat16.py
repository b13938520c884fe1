"""The native engine in bfloat16: its operations at random shapes, whole models, files, numbers that are not finite."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import foveal
from engine import test_operations, test_tokens
from engine.test_models import SIZES, images, in_float64
from engine.test_operations import Case
from foveal import assets
from foveal.engine.engine import Engine
from foveal.engine.lowering import make_plan
from foveal.engine.plan import Plan, Step
from foveal.errors import ConfigError
from foveal.info import ModelInfo
from foveal.prediction.native_runner import NativeRunner
from helpers.covered import CASES, covered
from helpers.narrow import narrow

BUNDLED = "efficientvit_b0.camvid"

# A single convolution has exact inputs and weights, sums in float32, and a result in float32.
OPERATIONS: dict[Callable[[Case], None], tuple[float, int]] = {
    test_operations.conv: (1e-5, 40),
    test_operations.depthwise: (1e-2, 10),
    test_operations.chain: (1e-2, 20),
    test_operations.squeezed: (1.5e-2, 20),
    test_operations.attention: (1e-2, 10),
    test_operations.pooling: (1.5e-2, 10),
    test_operations.resampling: (1e-2, 10),
    test_operations.enlarging: (1e-5, 10),
    test_tokens.attention: (1e-2, 10),
    test_tokens.token_conv: (1e-2, 10),
    test_tokens.scan: (1e-2, 10),
    test_tokens.small: (1e-2, 10),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_equals_float64(operation: Callable[[Case], None]) -> None:
    tolerance, cases = OPERATIONS[operation]
    for seed in range(cases):
        operation(Case(seed, tolerance))


def precise(case: Case, *shape: int) -> str:
    """Weights that are no numbers of bfloat16, with a small sum for each output."""
    name, rng = case.array(*shape), np.random.default_rng(0)
    weight = rng.uniform(0.5, 1, shape).astype(np.float32)
    odd = shape[1] // 2
    weight[:, 1 : 2 * odd : 2] = -weight[:, : 2 * odd : 2] - rng.uniform(0, 1e-4, weight[:, :odd].shape)
    if shape[1] % 2:
        weight[:, -1] = 0
    case.weights[name] = weight
    return name


@pytest.mark.parametrize(("channels", "kernel"), [(3, 3), (8, 1), (5, 5), (8, 3)])
def test_weights_of_few_channels_are_not_rounded(channels: int, kernel: int) -> None:
    case = Case(channels, 1e-5)
    params = {"kernel": kernel, "stride": 1, "groups": 1, "padding": "symmetric"}
    x, weights = case.image(channels), {"weight": precise(case, 20, channels, kernel, kernel), "bias": case.array(20)}
    case.step("conv", (1,), params=params, weights=weights)
    case.check(F.conv2d(x, case.tensor(weights["weight"]), case.tensor(weights["bias"]), padding=kernel // 2))


@pytest.mark.parametrize("channels", [16, 48])
@pytest.mark.parametrize("size", [(24, 24), (23, 41)])
def test_large_maps_are_convolved_with_floats(channels: int, size: tuple[int, int]) -> None:
    """Winograd's algorithm adds and subtracts inputs and weights: in bfloat16, the sums would be off by 1e-2."""
    case = Case(channels, 2e-3)
    case.height, case.width = size
    x, weights = case.image(channels), {"weight": case.array(20, channels, 3, 3), "bias": case.array(20)}
    params = {"kernel": 3, "stride": 1, "groups": 1, "padding": "symmetric"}
    case.step("conv", (1,), params=params, weights=weights)
    case.check(F.conv2d(x, case.tensor(weights["weight"]), case.tensor(weights["bias"]), padding=1))


def test_sums_over_more_states_than_registers_hold_are_not_rounded() -> None:
    """Four states that the next four cancel: rounded to bfloat16 in between, the sum would be off by a tenth."""
    case = Case(0, 1e-2)
    case.height, case.width = 20, 20
    x = case.image(8)
    case.weights |= {
        "no": np.zeros((8, 8, 1, 1), np.float32),
        "none": np.zeros((16, 8, 1, 1), np.float32),
        "matrices": np.repeat(np.array([1, 8, -8], np.float32), (8, 4, 4)),
        "decay": np.full((8, 8), -0.1, np.float32),
    }
    params = {"kernel": 1, "stride": 1, "groups": 1, "padding": "symmetric"}
    case.step("conv", (1,), params=params, weights={"weight": "no", "bias": "one"})
    case.step("conv", (1,), params=params, weights={"weight": "none", "bias": "matrices"})
    case.step("scan", (1, 2, 3), params={"window": 0, "first": 0}, weights={"decay": "decay", "skip": "one"})
    case.check(x)


@pytest.mark.parametrize("case", CASES)
def test_model_equals_float64_for_any_number_of_threads(case: str) -> None:
    model = covered(case)
    plan = make_plan(model)
    x = images(*SIZES[1])
    expected, one, three = in_float64(model, x), *(Engine(plan, threads, dtype="bfloat16")(x) for threads in (1, 3))
    assert np.abs(one - expected).max() <= 1e-2 * np.abs(expected).max()
    np.testing.assert_array_equal(one, three)


def test_values_are_rounded_to_the_nearest_to_even_of_two() -> None:
    """By every way of storing: whole vectors, single values, and images of three channels."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 3 * 20 * 37 * 5, np.uint32)
    bits[::7] = bits[::7] & 0xFFFF0000 | 0x8000  # half way between two
    bits[::11] |= 0x7F800000  # NaN, infinite, or rounded to it
    bits[::13] &= 0xFF80FFFF
    subnormal = (bits & 0x7F800000) == 0
    bits[subnormal] = 0x80000000  # a processor may take them as zero
    x = bits.view(np.float32).reshape(3, 20, 37, 5)
    scale = {"one": np.ones(20, np.float32), "zero": np.full(20, -0.0, np.float32)}
    steps = (
        Step("input", (0,), 1, params={"multiple": 1}, weights={"scale": "one", "shift": "zero"}),
        Step("output", (1,), 2, params={"stride": 0}),
    )
    found = Engine(Plan(ModelInfo(), steps, scale), dtype="bfloat16")(x)
    expected = torch.from_numpy(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(found, expected)  # NaN equals NaN
    np.testing.assert_array_equal(np.signbit(found)[found == expected], np.signbit(expected)[found == expected])
    image = np.nan_to_num(x[:, :3], nan=1.0000001, posinf=3e38, neginf=-3e38) / 1e30
    image[np.abs(image) < np.finfo(np.float32).tiny] = 0  # products of bfloat16 take subnormal numbers as zero
    identity = {**{name: array[:3] for name, array in scale.items()}, "weight": np.eye(3, dtype=np.float32)}
    params = {"kernel": 1, "stride": 1, "groups": 1, "padding": "symmetric"}
    identity["weight"] = identity["weight"][:, :, None, None]
    conv = Step("conv", (1,), 2, params=params, weights={"weight": "weight", "bias": "zero"})
    plan = Plan(ModelInfo(), (steps[0], conv, Step("output", (2,), 3, params={"stride": 0})), identity)
    found = Engine(plan, dtype="bfloat16")(image)
    np.testing.assert_array_equal(found, torch.from_numpy(image).bfloat16().float().numpy())


@pytest.mark.parametrize("channels", [3, 8, 17])
@pytest.mark.parametrize("groups", [1, 2])
def test_numbers_that_are_not_finite_reach_the_results_that_depend_on_them(channels: int, groups: int) -> None:
    """Also where channels are an odd number, and what lies behind them belongs to another pixel or group."""
    rng = np.random.default_rng(channels)
    case, total = Case(channels), channels * groups
    weights = {"weight": case.array(5 * groups, channels, 3, 3), "bias": case.array(5 * groups)}
    case.height, case.width = 9, 20
    case.image(total)
    for value in (np.nan, np.inf, -np.inf):
        case.x[0, rng.integers(total), rng.integers(9), rng.integers(20)] = value
    params = {"kernel": 3, "stride": 1, "groups": groups, "padding": "symmetric"}
    case.step("conv", (1,), params=params, weights=weights)
    case.step("output", (2,), params={"stride": 0})
    found = Engine(Plan(ModelInfo(), tuple(case.steps), case.weights), dtype="bfloat16")(case.x)
    weight, bias = (case.tensor(weights[role]).float() for role in ("weight", "bias"))
    expected = F.conv2d(torch.from_numpy(case.x), weight, bias, padding=1, groups=groups).numpy()
    for kind in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(kind(found), kind(expected))
    assert np.isfinite(found).any()
    assert not np.isfinite(found).all()


def test_plan_file_and_weights_in_the_package() -> None:
    """The plan file has float32 weights and runs in both types; the bundled model finds the same classes."""
    file = assets.path(BUNDLED, ".foveal")
    picture: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (60, 83, 3), np.uint8)
    half = foveal.load(file, dtype="bfloat16")
    assert half.runtime.startswith("native")
    assert "bfloat16" in half.runtime
    found, named, exact = (
        predictor(picture)
        for predictor in (half, foveal.load(BUNDLED, runtime="native", dtype="bfloat16"), foveal.load(BUNDLED))
    )
    np.testing.assert_array_equal(found.scores, named.scores)
    assert 0 < np.abs(found.scores - exact.scores).max() < 0.1
    assert (found.mask == exact.mask).mean() > 0.97


def test_a_runner_is_pickled_with_its_type() -> None:
    runner, x = NativeRunner(make_plan(narrow()), 1, "bfloat16"), images(1, 48, 48)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(runner))(x), runner(x))


def test_other_types_are_refused_in_one_line(tmp_path: Path) -> None:
    plan = make_plan(narrow())
    plan.save(tmp_path / "narrow.foveal")
    with pytest.raises(ConfigError, match="unknown dtype 'bfloat61' of the native engine; did you mean 'bfloat16'"):
        Engine(plan, dtype="bfloat61")
    with pytest.raises(ConfigError, match="unknown dtype 'bf16'"):
        foveal.load(tmp_path / "narrow.foveal", dtype="bf16")
    with pytest.raises(ConfigError, match="native runs on cpu in float32 or bfloat16, not with dtype='float16'"):
        foveal.load(tmp_path / "narrow.foveal", dtype="float16")
